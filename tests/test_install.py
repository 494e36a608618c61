"""``effsr host install``: a release as BasicSR's is, built by pip from a folder, without a network."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

from basicsr_effsr.host import install
from basicsr_effsr.utils.errors import UserError

SETUP = """\
from setuptools import setup

def get_version():
    exec(compile("__version__ = '1.4.2'", 'version.py', 'exec'))
    return locals()['__version__']

setup(name='basicsr', version=get_version(), packages=['basicsr'])
"""


@pytest.fixture
def release(tmp_path, monkeypatch):
    """The hash of a released archive; pip knows no other place, and installs into ``tmp_path / 'site'``."""
    archive = tmp_path / 'basicsr-1.4.2.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        for name, text in {'setup.py': SETUP, 'basicsr/__init__.py': '', 'PKG-INFO': ''}.items():
            member = tarfile.TarInfo(f'basicsr-1.4.2/{name}')
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    for name, value in {'NO_INDEX': '1', 'FIND_LINKS': tmp_path, 'TARGET': tmp_path / 'site'}.items():
        monkeypatch.setenv(f'PIP_{name}', str(value))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.mark.slow
def test_what_reads_locals_after_exec_is_built_on_every_python(release, tmp_path, monkeypatch):
    monkeypatch.setattr(install, 'SHA256', release)
    install.install()
    assert {path.name for path in (tmp_path / 'site').iterdir()} == {'basicsr', 'basicsr-1.4.2.dist-info'}


@pytest.mark.slow
@pytest.mark.usefixtures('release')
def test_another_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match=install.RELEASE):
        install.install()
    assert not (tmp_path / 'site').exists()
