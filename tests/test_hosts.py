"""The releases of BasicSR that the field's forks stand on: our classes train, resume, test and are checked in each.

The releases come from the package index once and stay in pytest's cache. Forks rarely install theirs: it lies in the
current directory, as here, and a fresh clone of one has no ``basicsr/version.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from host import run, succeed
from nets import CASES
from runs import TINY_HASN, short_run, twin_of, write

from basicsr_effsr.archs import hasn_arch

ARCHS = Path(__file__).resolve().parents[1] / 'basicsr_effsr' / 'archs'
RELEASES = ('1.3.4.9', '1.3.5', '1.4.2')
CHECK = ('-m', 'basicsr_effsr.cli', 'check', '-opt')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='session')
def released(request, tmp_path_factory):
    """The folder ``basicsr`` of a release; tests skip where the index cannot be reached."""
    cache = request.config.cache.mkdir('basicsr')

    def fetch(version: str) -> Path:
        archive = cache / f'basicsr-{version}.tar.gz'
        folder = tmp_path_factory.mktemp('release')
        if not archive.is_file():
            pip = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', 'basicsr']
            pip += ['--no-build-isolation', '--dest', str(folder), f'basicsr=={version}']  # setup.py imports torch
            done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                reason = (done.stderr.strip() or '?').splitlines()[-1]
                pytest.skip(f'basicsr {version} cannot be had from the package index: {reason}')
            shutil.move(folder / archive.name, archive)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter='data')
        return folder / f'basicsr-{version}'

    return fetch


@pytest.fixture
def host(request, released, tmp_path) -> Path:
    """A folder that holds the release ``basicsr`` asked for by indirect parametrisation; ``clone``: as git has it."""
    version, _, clone = request.param.partition(' ')
    shutil.copytree(released(version) / 'basicsr', tmp_path / 'basicsr')
    if clone:
        (tmp_path / 'basicsr' / 'version.py').unlink()
    return tmp_path


in_every_release = pytest.mark.parametrize('host', RELEASES, indirect=True)


@pytest.fixture(scope='module')
def without(tmp_path_factory) -> dict[str, str]:
    """Environment of ``python -S`` in which every package of this one can be imported, but BasicSR."""
    folder = tmp_path_factory.mktemp('packages')
    for path in (Path(path) for path in sys.path if 'site' in Path(path).name):  # site-packages
        for file in path.iterdir():
            if not file.name.startswith(('basicsr', '__')) and not (folder / file.name).exists():
                (folder / file.name).symlink_to(file)
    return {'PYTHONPATH': os.pathsep.join([str(ARCHS.parents[1]), str(folder)])}


def options(photos: Path, kind: str) -> dict:
    opt = short_run(photos, TINY_HASN, iters=4)
    opt['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False}
    opt['val']['suffix'] = None  # the host's model reads it when it saves images
    if kind == 'theirs':
        opt['model_type'] = 'SRModel'
        opt['datasets']['train']['type'] = 'PairedImageDataset'
    return opt


def weights(file: Path) -> dict:
    return torch.load(file, map_location='cpu', weights_only=True)['params_ema']


@in_every_release
@pytest.mark.parametrize('kind', ['ours', 'theirs'])
def test_train_resume_test_check(host, photos, kind):
    """With all our classes, then with our network alone in the host's model and data set."""
    opt = options(photos, kind)
    file, models = write(opt, host / 'run.yml'), host / 'experiments' / 'short' / 'models'
    assert 'Ready: python -m basicsr.train' in succeed(*CHECK, file, cwd=host)
    succeed('-m', 'basicsr.train', '-opt', file, cwd=host, fresh=kind == 'ours')
    straight = weights(models / 'net_g_4.pth')
    for gone in (models / 'net_g_4.pth', models.parent / 'training_states' / '4.state'):
        gone.unlink()
    succeed('-m', 'basicsr.train', '-opt', file, '--auto_resume', cwd=host)
    resumed = weights(models / 'net_g_4.pth')
    if kind == 'ours':
        torch.testing.assert_close(resumed, straight, rtol=0, atol=0)
    test = write(twin_of(opt, models / 'net_g_4.pth'), host / 'test.yml')
    succeed('-m', 'basicsr.test', '-opt', test, cwd=host)
    assert len(list((host / 'results' / 'short' / 'visualization' / 'photos').glob('*.png'))) == 4


@pytest.mark.parametrize('host', [f'{release} clone' for release in RELEASES], indirect=True)
def test_a_clone_without_its_version_file(host, photos):
    file = write(options(photos, 'ours'), host / 'run.yml')
    assert 'Ready: python -m basicsr.train' in succeed(*CHECK, file, cwd=host)
    succeed('-m', 'basicsr.train', '-opt', file, cwd=host)
    assert (host / 'experiments' / 'short' / 'models' / 'net_g_4.pth').is_file()


@in_every_release
def test_copied_files_work_without_this_package_beside_a_class_of_the_fork(host):
    archs = host / 'basicsr' / 'archs'
    for file in [*ARCHS.glob('*_arch.py'), ARCHS / 'effsr_blocks.py']:
        shutil.copy(file, archs)
    (archs / 'my_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n\n\n@ARCH_REGISTRY.register()\nclass AGDN:\n    pass\n'
    )
    degradations = host / 'basicsr' / 'data' / 'degradations.py'
    degradations.write_text(degradations.read_text().replace('functional_tensor', 'functional'))
    code = (
        'import sys\nsys.modules["basicsr_effsr"] = None\nimport torch\nfrom basicsr.archs import ARCH_REGISTRY\n'
        'for name in sys.argv[1:]:\n'
        '    with torch.device("meta"):\n        print(name, type(ARCH_REGISTRY.get(name)()).__module__)\n'
    )
    names = {'AGDN', 'AGDN_effsr'} | {case.type for case in CASES.values()}
    done = run('-c', code, *sorted(names), cwd=host, TORCH_DEVICE_BACKEND_AUTOLOAD='0')
    assert done.returncode == 0, done.stderr
    built = dict(line.split() for line in done.stdout.splitlines())
    assert built.keys() == names
    assert built['AGDN'] == 'basicsr.archs.my_arch'
    assert built['AGDN_effsr'] == 'basicsr.archs.agdn_arch'


def run_without(without, *arguments: str, cwd: Path):
    done = run('-S', '-m', *arguments, cwd=cwd, **without)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


def test_commands_for_our_networks_need_no_basicsr(without, photos, tmp_path):
    net = {key: value for key, value in TINY_HASN.items() if key != 'type'}
    torch.save({'params': hasn_arch.HASN(upscale=4, **net).state_dict()}, tmp_path / 'w.pth')
    opt = twin_of(short_run(photos, TINY_HASN), tmp_path / 'w.pth')
    opt['datasets']['test_1']['type'] = 'PairedImageDataset'
    write(opt, tmp_path / 'test.yml')
    cli = 'basicsr_effsr.cli'
    for command in (
        ('infer', str(photos / 'X4' / '0.png'), '--weights', 'w.pth', '--out', 'out'),
        ('convert', 'w.pth', 'w.safetensors', '--to', 'safetensors'),
        ('benchmark', '-opt', 'test.yml', '--size', '16x16', '--runs', '1'),
        ('compare', '-opt', 'test.yml', '--out', 'c.png'),
        ('export', '-opt', 'test.yml', '--out', 'e.pt', '--form', 'torchscript'),
    ):
        done = run_without(without, cli, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    'command',
    [('basicsr_effsr.cli', 'check'), ('basicsr_effsr.train',), ('basicsr_effsr.test',)],
    ids=lambda command: command[-1],
)
def test_what_needs_basicsr_says_so(without, photos, tmp_path, command):
    write(short_run(photos, TINY_HASN), tmp_path / 'run.yml')
    done = run_without(without, *command, '-opt', 'run.yml', cwd=tmp_path)
    assert done.returncode == 2
    assert 'effsr host install' in done.stderr


@pytest.mark.parametrize('host', ['1.3.5'], indirect=True)
def test_the_console_script_checks_the_fork_in_the_current_directory(host, photos):
    (host / 'basicsr' / 'archs' / 'fork_arch.py').write_text(
        'from torch import nn\n\nfrom basicsr.utils.registry import ARCH_REGISTRY\n\n\n'
        '@ARCH_REGISTRY.register()\nclass ForkNet(nn.Sequential):\n'
        '    def __init__(self, upscale):\n'
        '        super().__init__(nn.Conv2d(3, 3 * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale))\n'
    )
    file = write({**options(photos, 'ours'), 'network_g': {'type': 'ForkNet', 'upscale': 4}}, host / 'run.yml')
    script = 'import sys; sys.path[0] = "/nowhere"; from basicsr_effsr.cli import main; main()'  # as of bin/effsr
    assert 'Ready' in succeed('-c', script, *CHECK[2:], file, cwd=host)


@pytest.mark.parametrize('command', ['check', 'benchmark'])
def test_a_basicsr_that_does_not_import_is_named(tmp_path, command):
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'basicsr' / '__init__.py').write_text('import a_module_nobody_has\n')
    (tmp_path / 'run.yml').write_text('network_g: {type: HASN, upscale: 2}\n')
    done = run('-m', 'basicsr_effsr.cli', command, '-opt', 'run.yml', cwd=tmp_path)
    assert done.returncode == 2
    assert 'a_module_nobody_has' in done.stderr
    assert 'Traceback' not in done.stderr
