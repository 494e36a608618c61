"""``effsr doctor`` in real environments, and the small functions of the host adapter."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import basicsr
import pytest
from host import run, succeed

from basicsr_effsr.host import adapt

EFFSR = ('-m', 'basicsr_effsr.cli')
HOST = Path(basicsr.__file__).parent


@pytest.mark.slow
def test_healthy_environment(tmp_path):
    done = run(*EFFSR, 'doctor', '--json', cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report['problems'] == []
    assert done.returncode == 0
    assert report['names']['HASN'] == {'kind': 'arch', 'owner': 'this package', 'ours as': 'HASN_effsr'}
    assert report['facts']['outputs go to'].startswith(str(tmp_path))


@pytest.mark.slow
def test_switched_off_loading_is_a_problem_with_a_fix(tmp_path):
    done = run(*EFFSR, 'doctor', cwd=tmp_path, BASICSR_EFFSR_AUTOLOAD='0')
    assert done.returncode == 1
    assert 'BASICSR_EFFSR_AUTOLOAD=0: unset it' in done.stdout


@pytest.mark.slow
def test_a_shadowing_fork_with_its_own_class_is_named(tmp_path):
    folder = tmp_path / 'basicsr'
    shutil.copytree(HOST, folder, ignore=shutil.ignore_patterns('__pycache__'))
    (folder / 'archs' / 'hasn_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n\n\n@ARCH_REGISTRY.register()\nclass HASN:\n    pass\n'
    )
    report = json.loads(succeed(*EFFSR, 'doctor', '--json', cwd=tmp_path))
    assert report['facts']['basicsr'] == str(folder)
    assert report['names']['HASN']['owner'] == 'basicsr.archs.hasn_arch'
    assert any('HASN belongs to basicsr.archs.hasn_arch' in n and 'HASN_effsr' in n for n in report['notes'])
    assert any('shadows the installed basicsr' in note for note in report['notes'])


@pytest.mark.slow
def test_a_host_that_does_not_import_is_reported(tmp_path):
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'basicsr' / '__init__.py').write_text('import a_module_nobody_has\n')
    done = run(*EFFSR, 'doctor', cwd=tmp_path)
    assert done.returncode == 1
    assert 'ModuleNotFoundError' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'text', 'words'),
    [
        ('basicsr.py', '', 'rename that file'),
        ('torch.py', 'raise OSError("libnothing.so: cannot open")', '(OSError: libnothing.so'),
    ],
)
def test_files_in_the_way_are_named(tmp_path, file, text, words):
    (tmp_path / file).write_text(text)
    done = run(*EFFSR, 'doctor', cwd=tmp_path, fresh=True)
    assert done.returncode == 1
    assert words in ' '.join(done.stdout.split()), done.stdout + done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_loading_off_beside_a_current_torchvision_has_a_fix_for_both_problems(tmp_path):
    done = run(*EFFSR, 'doctor', cwd=tmp_path, BASICSR_EFFSR_AUTOLOAD='0')
    assert 'functional_tensor' in done.stdout
    assert 'our automatic loading' in done.stdout


@pytest.mark.slow
def test_no_name_is_cut_in_a_narrow_terminal(tmp_path):
    done = run(*EFFSR, 'doctor', cwd=tmp_path, COLUMNS='80')
    assert done.returncode == 0
    assert '…' not in done.stdout
    assert 'PackedPairedImageDataset' in done.stdout


def test_overview_lists_every_command_without_loading_it():
    done = run('-X', 'importtime', *EFFSR, '--help', cwd=Path.cwd())
    assert done.returncode == 0
    for name in ('doctor', 'compare', 'prepare'):
        assert name in done.stdout
    assert ' torch' not in done.stderr
    assert 'numpy' not in done.stderr


def test_outputs_go_where_the_user_stands_only_for_an_installed_host(tmp_path):
    assert adapt.output_root('/usr/lib/python3/site-packages') == os.getcwd()
    assert adapt.output_root('/opt/env/lib/python3/dist-packages') == os.getcwd()
    assert adapt.output_root(str(tmp_path)) == str(tmp_path)
    (tmp_path / 'basicsr-1.4.2.dist-info').mkdir()
    assert adapt.output_root(str(tmp_path)) == os.getcwd(), 'pip install --target'


def test_root_path_stays_what_it_was_first_set_to():
    import copy

    opt = adapt._RootedOptions(name='x')
    opt['root_path'] = '/here'
    opt['root_path'] = '/site-packages'
    opt['name'] = 'y'
    assert opt['root_path'] == '/here'
    assert opt['name'] == 'y'
    assert copy.deepcopy(opt)['root_path'] == '/here'


@pytest.mark.slow
def test_two_opencv_packages_in_one_folder_are_named(tmp_path):
    for name in ('opencv-python', 'opencv-python-headless'):
        info = tmp_path / f'{name.replace("-", "_")}-4.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 4.0\n')
    report = json.loads(run(*EFFSR, 'doctor', '--json', cwd=tmp_path).stdout)
    assert any('opencv-python and opencv-python-headless' in note for note in report['notes'])
