"""The unchanged host finds this package: real interpreters, real forks."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import basicsr
import pytest
from host import run, succeed
from nets import CASES

HOST = Path(basicsr.__file__).parent
ARCHS = Path(__file__).resolve().parents[1] / 'basicsr_effsr' / 'archs'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not [e for e in metadata.entry_points(group='torch.backends') if e.name == 'basicsr_effsr'],
        reason='the package is on the path but not installed, so there is no entry point to test: pip install -e .',
    ),
]

BUILD = """
import sys
from basicsr.archs import build_network
import basicsr
net = build_network({'type': 'HASN', 'num_feat': 8, 'num_block': 1})
print(basicsr.__file__, type(net).__module__, 'models' if 'basicsr_effsr.models' in sys.modules else '')
"""


def clone(folder: Path) -> Path:
    """A copy of the host as `git clone` leaves it: a folder ``basicsr`` in the current directory."""
    shutil.copytree(HOST, folder / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    return folder / 'basicsr'


def test_installed_host_finds_us_and_loads_only_what_was_asked_for(tmp_path):
    where, owner, *rest = succeed('-c', BUILD, cwd=tmp_path, fresh=True).splitlines()[-1].split()
    assert Path(where).parent == HOST
    assert owner == 'basicsr_effsr.archs.hasn_arch'
    assert not rest, 'asking for a network must not load the model classes'


def test_clone_in_the_current_directory_finds_us(tmp_path):
    folder = clone(tmp_path)
    where, owner, *_ = succeed('-c', BUILD, cwd=tmp_path, fresh=True).splitlines()[-1].split()
    assert Path(where).parent == folder
    assert owner == 'basicsr_effsr.archs.hasn_arch'


def test_a_fork_keeps_its_own_class_and_gets_our_other_names(tmp_path):
    folder = clone(tmp_path)
    (folder / 'archs' / 'hasn_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n\n\n'
        '@ARCH_REGISTRY.register()\nclass HASN:\n    origin = "the fork"\n'
    )
    out = succeed(
        '-c',
        'from basicsr.utils.registry import ARCH_REGISTRY as R\nimport basicsr.archs, basicsr_effsr\n'
        'print(R.get("HASN").origin, R.get("HASN_effsr").__module__)\n'
        'basicsr_effsr.register()\nprint(R.get("HASN").origin)\n',
        cwd=tmp_path,
    )
    assert out.splitlines()[-2:] == ['the fork basicsr_effsr.archs.hasn_arch', 'the fork']


def test_a_registry_without_suffixes_as_in_old_forks(tmp_path):
    folder = clone(tmp_path)
    for file in folder.rglob('*.py'):
        text = file.read_text(encoding='utf-8')
        if "suffix='basicsr'" in text and file.name != 'registry.py':
            file.write_text(text.replace("register(suffix='basicsr')", 'register()'), encoding='utf-8')
    registry = folder / 'utils' / 'registry.py'
    text = registry.read_text()
    for new, old in (
        ('def _do_register(self, name, obj, suffix=None):', 'def _do_register(self, name, obj):'),
        ("        if isinstance(suffix, str):\n            name = name + '_' + suffix\n", ''),
        ('def register(self, obj=None, suffix=None):', 'def register(self, obj=None):'),
        (', func_or_class, suffix)', ', func_or_class)'),
        ('(name, obj, suffix)', '(name, obj)'),
        ("def get(self, name, suffix='basicsr'):", 'def get(self, name):'),
        ("            ret = self._obj_map.get(name + '_' + suffix)\n", ''),
        ("            print(f'Name {name} is not found, use name: {name}_{suffix}!')\n", '            pass\n'),
    ):
        assert new in text
        text = text.replace(new, old)
    registry.write_text(text)
    assert 'basicsr_effsr.archs.hasn_arch' in succeed('-c', BUILD, cwd=tmp_path)


def test_a_third_party_may_take_the_name_after_import(tmp_path):
    out = succeed(
        '-c',
        'import basicsr\nfrom basicsr.utils.registry import ARCH_REGISTRY as R\n'
        '@R.register()\nclass HASN:\n    pass\n'
        'assert R.get("HASN") is HASN\nprint(R.get("HASN_effsr").__module__, R.get("HASN").__module__)\n',
        cwd=tmp_path,
    )
    assert out.split()[-2:] == ['basicsr_effsr.archs.hasn_arch', '__main__']


def test_a_third_party_may_take_the_name_after_ours_was_loaded(tmp_path):
    """It gets the name; a name of the host or of another third party stays taken."""
    out = succeed(
        '-c',
        'from basicsr.utils.registry import ARCH_REGISTRY as R\nfrom basicsr.archs import build_network\n'
        'build_network({"type": "AGDN"})\n'
        '@R.register()\nclass HASN:\n    pass\n'
        'assert R.get("HASN") is HASN\nprint(R.get("HASN_effsr").__module__)\n'
        'try:\n    R.register(type("HASN", (), {"__module__": "other"}))\n'
        'except AssertionError as error:\n    print("already registered" in str(error))\n'
        'try:\n    R.register(type("EDSR", (), {"__module__": "other"}))\n'
        'except AssertionError as error:\n    print("already registered" in str(error))\n',
        cwd=tmp_path,
    )
    assert out.split()[-3:] == ['basicsr_effsr.archs.hasn_arch', 'True', 'True']


def test_a_name_nobody_has_is_still_the_hosts_error(tmp_path):
    done = run('-c', 'from basicsr.archs import build_network; build_network({"type": "HASM"})', cwd=tmp_path)
    assert done.returncode != 0
    assert "No object named 'HASM' found in 'arch' registry!" in done.stderr


def test_spawned_workers_find_us(tmp_path):
    (tmp_path / 'work.py').write_text(
        'import torch\nfrom torch.utils.data import DataLoader, Dataset\n\n\n'
        'class Nets(Dataset):\n'
        '    def __len__(self):\n        return 2\n\n'
        '    def __getitem__(self, i):\n'
        '        from basicsr.archs import build_network\n'
        '        net = build_network({"type": "HASN", "num_feat": 8, "num_block": 1})\n'
        '        return sum(p.numel() for p in net.parameters())\n\n\n'
        'if __name__ == "__main__":\n'
        '    loader = DataLoader(Nets(), num_workers=1, multiprocessing_context="spawn")\n'
        '    print([int(n) for n in loader])\n'
    )
    sizes = eval(succeed('work.py', cwd=tmp_path, fresh=True).splitlines()[-1])
    assert len(sizes) == 2
    assert sizes[0] == sizes[1] > 0


def test_python_and_torch_load_nothing_but_the_hook(tmp_path):
    show = 'import sys; print(sorted(m for m in sys.modules if m.startswith(("basicsr", "datasets_prep"))))'
    assert eval(succeed('-c', show, cwd=tmp_path, fresh=True)) == []
    loaded = eval(succeed('-c', 'import torch\n' + show, cwd=tmp_path, fresh=True))
    ours = {'basicsr_effsr', 'basicsr_effsr._version', 'basicsr_effsr._autoload', 'basicsr_effsr.host'}
    assert set(loaded) <= ours, 'every process that imports torch pays for these'


@pytest.mark.parametrize('switch', ['0', 'off', 'False'])
def test_kill_switch(tmp_path, switch):
    show = 'import torch, sys; from basicsr_effsr import _autoload; print(_autoload.installed())'
    assert succeed('-c', show, cwd=tmp_path, BASICSR_EFFSR_AUTOLOAD=switch).split() == ['False']


def test_a_failing_hook_does_not_take_torch_with_it(tmp_path):
    done = run(
        '-c',
        'import sys\nclass Bad(list):\n    def insert(self, *a):\n        raise RuntimeError("no room")\n'
        'from basicsr_effsr import _autoload\nsys.meta_path = Bad(sys.meta_path)\n'
        '_autoload.install()\nprint("alive")\n',
        cwd=tmp_path,
        fresh=True,
    )
    assert done.stdout.split() == ['alive']
    assert 'automatic loading is off in this process' in done.stderr


@pytest.mark.parametrize('switch', ['BASICSR_EFFSR_AUTOLOAD', 'TORCH_DEVICE_BACKEND_AUTOLOAD'])
def test_explicit_registration_and_the_tools_work_without_the_hook(tmp_path, switch):
    """With pip's basicsr, which does not even import beside a current torchvision if nobody helps."""
    off = {switch: '0'}
    done = run('-c', 'import basicsr', cwd=tmp_path, **off)
    assert 'functional_tensor' in done.stderr, 'else this test shows nothing'
    code = 'import basicsr_effsr\nbasicsr_effsr.register()\n' + BUILD
    assert 'hasn_arch' in succeed('-c', code, cwd=tmp_path, **off)
    (tmp_path / 'test.yml').write_text('network_g: {type: HASN, upscale: 2}\ndatasets: {}\n')
    done = run('-m', 'basicsr_effsr.cli', 'compare', '-opt', 'test.yml', cwd=tmp_path, **off)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('effsr compare: test.yml: path.pretrain_network_g must name'), done.stderr
    done = run('-m', 'basicsr_effsr.cli', 'benchmark', '--arch', 'HASM', cwd=tmp_path, **off)
    assert (done.returncode, done.stderr.startswith("effsr benchmark: there is no network 'HASM'")) == (2, True)


def test_a_direct_import_gives_way_without_the_hook(tmp_path):
    folder = clone(tmp_path)
    degradations = folder / 'data' / 'degradations.py'  # without the hook nobody serves the dead name
    degradations.write_text(degradations.read_text().replace('functional_tensor', 'functional'))
    (folder / 'archs' / 'hasn_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n\n\n@ARCH_REGISTRY.register()\nclass HASN:\n    pass\n'
    )
    code = (
        'import basicsr.archs\nfrom basicsr_effsr.archs import hasn_arch\n'
        'from basicsr_effsr.archs.agdn_arch import AGDN\n'
        'from basicsr.utils.registry import ARCH_REGISTRY as R\n'
        'print(R.get("HASN").__module__, R.get("HASN_effsr").__module__, R.get("AGDN") is AGDN)\n'
    )
    said = succeed('-c', code, cwd=tmp_path, BASICSR_EFFSR_AUTOLOAD='0').splitlines()[-1]
    assert said == 'basicsr.archs.hasn_arch basicsr_effsr.archs.hasn_arch True'


def test_arch_files_drop_into_a_pristine_tree(tmp_path):
    """Copied arch files work in a tree where this package cannot be imported at all."""
    folder = clone(tmp_path)
    for file in [*ARCHS.glob('*_arch.py'), ARCHS / 'effsr_blocks.py']:
        shutil.copy(file, folder / 'archs')
    degradations = folder / 'data' / 'degradations.py'
    degradations.write_text(degradations.read_text().replace('functional_tensor', 'functional'))
    out = succeed(
        '-c',
        'import sys\nsys.modules["basicsr_effsr"] = None\n'
        'from importlib import import_module\nfrom basicsr.archs import build_network\nimport torch\n'
        'for stem in sys.argv[1:]:\n'
        '    for name in import_module(f"basicsr.archs.{stem}").__all__:\n'
        '        with torch.device("meta"):\n            net = build_network({"type": name})\n'
        '        print(name, type(net).__module__)\n',
        *(file.stem for file in ARCHS.glob('*_arch.py')),
        cwd=tmp_path,
        TORCH_DEVICE_BACKEND_AUTOLOAD='0',
    )
    built = dict(line.split() for line in out.splitlines() if ' basicsr.archs.' in line)
    assert {case.type for case in CASES.values()} <= set(built)
    assert all(module.startswith('basicsr.archs.') for module in built.values())


@pytest.mark.parametrize('first', ['ours', 'theirs'])
def test_a_copied_arch_file_leaves_a_forks_own_class_its_name(tmp_path, first):
    folder = clone(tmp_path)
    degradations = folder / 'data' / 'degradations.py'
    degradations.write_text(degradations.read_text().replace('functional_tensor', 'functional'))
    shutil.copy(ARCHS / 'effsr_blocks.py', folder / 'archs')
    shutil.copy(ARCHS / 'hasn_arch.py', folder / 'archs' / 'effsr_hasn_arch.py')
    (folder / 'archs' / 'hasn_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n\n\n@ARCH_REGISTRY.register()\nclass HASN:\n    pass\n'
    )
    init = folder / 'archs' / '__init__.py'  # the order in which a folder is listed is the file system's
    sort = f'sorted(scandir(arch_folder), reverse={first == "theirs"})'
    init.write_text(init.read_text().replace('scandir(arch_folder)', sort))
    code = (
        'from basicsr.archs import ARCH_REGISTRY as R\nprint(R.get("HASN").__module__, R.get("HASN_effsr").__module__)'
    )
    out = succeed('-c', code, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0')
    assert out.split() == ['basicsr.archs.hasn_arch', 'basicsr.archs.effsr_hasn_arch']


def test_registering_restores_our_classes_after_the_registry_was_loaded_again(tmp_path):
    code = (
        'import importlib, basicsr_effsr\nbasicsr_effsr.register()\n'
        'from basicsr.utils import registry\n'
        'kinds = [registry.ARCH_REGISTRY, registry.LOSS_REGISTRY, registry.DATASET_REGISTRY, registry.MODEL_REGISTRY]\n'
        'before = [{name for name, obj in kind if "effsr" in obj.__module__} for kind in kinds]\n'
        'importlib.reload(registry)\nbasicsr_effsr.register()\n'
        'kinds = [registry.ARCH_REGISTRY, registry.LOSS_REGISTRY, registry.DATASET_REGISTRY, registry.MODEL_REGISTRY]\n'
        'print(before == [{name for name, _ in kind} for kind in kinds], all(before))\n'
    )
    assert succeed('-c', code, cwd=tmp_path).splitlines()[-1] == 'True True'


def test_hook_prefers_a_real_module_of_the_dead_name(tmp_path):
    code = (
        'import torch, sys, types\nfrom importlib.machinery import ModuleSpec\n'
        'class Real:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "torchvision.transforms.functional_tensor":\n'
        '            return ModuleSpec(name, self)\n'
        '    def create_module(self, spec):\n        return None\n'
        '    def exec_module(self, module):\n        module.rgb_to_grayscale = "theirs"\n'
        'sys.meta_path.append(Real())\n'
        'from torchvision.transforms.functional_tensor import rgb_to_grayscale\nprint(rgb_to_grayscale)\n'
    )
    assert succeed('-c', code, cwd=tmp_path).split() == ['theirs']
    dead = 'torchvision.transforms.functional_tensor'
    served = f'import torch\nfrom {dead} import rgb_to_grayscale as f\nprint(f.__module__)'
    assert succeed('-c', served, cwd=tmp_path).split() == ['torchvision.transforms.functional']
