"""Wheel and source distribution hold what an installation needs, and an install by --target works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def distributions(tmp_path_factory) -> dict[str, Path]:
    pytest.importorskip('build', reason="building needs the package 'build': pip install -e '.[dev]'")
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        shutil.copy(ROOT / name, source)
    for name in ('basicsr_effsr', 'datasets_prep', 'docs', 'options', 'tests'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return {'wheel': next(out.glob('*.whl')), 'sdist': next(out.glob('*.tar.gz'))}


def test_wheel_holds_every_module_the_data_files_and_the_entry_points(distributions):
    with zipfile.ZipFile(distributions['wheel']) as wheel:
        names = set(wheel.namelist())
        metadata = next(name for name in names if name.endswith('entry_points.txt'))
        points = wheel.read(metadata).decode()
    for package in ('basicsr_effsr', 'datasets_prep'):
        for file in (ROOT / package).rglob('*'):
            if file.suffix in ('.py', '.json', '.html', '.typed'):
                assert file.relative_to(ROOT).as_posix() in names
    for file in (ROOT / 'options').rglob('*.yml'):
        assert f'basicsr_effsr/recipes/{file.relative_to(ROOT / "options").as_posix()}' in names
    assert 'basicsr_effsr = basicsr_effsr._autoload:install' in points
    assert 'effsr = basicsr_effsr.cli:main' in points
    assert not any(name.endswith('.pth') or name.startswith('tests/') for name in names)


def test_sdist_holds_what_a_build_needs(distributions):
    with tarfile.open(distributions['sdist']) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'setup.py', 'pyproject.toml', 'LICENSE', 'README.md', 'basicsr_effsr/_autoload.py'} <= names
    assert {'options/train/hasn_x4.yml', 'docs/tools.md', 'tests/nets.py', 'tests/conftest.py'} <= names


def test_installed_by_target_it_is_found_through_the_path(distributions, tmp_path):
    target = tmp_path / 'site'
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', str(target)]
    subprocess.run([*command, str(distributions['wheel'])], check=True, capture_output=True)
    code = (
        'import torch, basicsr_effsr, sys\nfrom basicsr_effsr import _autoload\n'
        'print(basicsr_effsr.__file__, _autoload.installed(), sum(type(f).__name__ == "_Finder" and '
        'type(f).__module__.startswith("basicsr_effsr") for f in sys.meta_path))'
    )
    env = {**os.environ, 'PYTHONPATH': str(target)}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    where, active, finders = done.stdout.split()
    assert Path(where).is_relative_to(target)
    assert (active, finders) == ('True', '1')
    recipe = [sys.executable, '-m', 'basicsr_effsr.cli', 'recipe', 'hasn_x4', '--data', '/data']
    text = subprocess.run(recipe, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert 'dataroot_gt: /data/DIV2K/DIV2K_train_HR_sub' in text


def test_installing_never_changes_which_basicsr_somebody_has(distributions):
    with zipfile.ZipFile(distributions['wheel']) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith('METADATA'))
        lines = wheel.read(metadata).decode().splitlines()
    assert not [line for line in lines if line.startswith('Requires-Dist: basicsr')]
