"""Who may import whom: every file of both packages, imports inside functions included; and what drop-in files need.

``pytest tests/test_layering.py -s`` prints the floors.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import basicsr_effsr

PACKAGE = Path(basicsr_effsr.__file__).parent
ROOT = PACKAGE.parent
BESIDE = {'efrdn_ablation_arch': ('basicsr_effsr.archs.efrdn_arch.',)}  # ablations lie beside their network
ARCH_FILES = [*sorted((PACKAGE / 'archs').glob('*_arch.py')), PACKAGE / 'archs' / 'effsr_blocks.py']

# From the ground up. A module may import what stands on a lower floor, and its own floor where that is one folder.
FLOORS: tuple[tuple[str, ...], ...] = (
    ('basicsr_effsr._version',),
    ('basicsr_effsr.utils',),
    ('basicsr_effsr.archs.effsr_blocks',),
    ('basicsr_effsr._registration',),
    ('basicsr_effsr.archs', 'basicsr_effsr.losses'),
    ('basicsr_effsr.imaging', 'basicsr_effsr.weights'),
    ('basicsr_effsr.data',),
    ('datasets_prep',),
    ('basicsr_effsr.options',),
    ('basicsr_effsr.models',),
    ('basicsr_effsr.host',),
    ('basicsr_effsr._autoload',),
    ('basicsr_effsr.spandrel_bridge', 'basicsr_effsr.tools'),
    ('basicsr_effsr.api',),
    ('basicsr_effsr',),
    ('basicsr_effsr.cli', 'basicsr_effsr.train', 'basicsr_effsr.test'),
)


def modules(root: Path) -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    files = [file for package in ('basicsr_effsr', 'datasets_prep') for file in (root / package).rglob('*.py')]
    return {'.'.join(f.relative_to(root).with_suffix('').parts).removesuffix('.__init__'): f for f in files}


@cache
def imports(source: str) -> tuple[ast.AST, ...]:
    """The import statements anywhere in a source."""
    return tuple(node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom)))


def names_imported(source: str, package: list[str]) -> Iterator[str]:
    """Absolute names of what a source imports, anywhere in it; ``from a import b`` is given as ``a.b``."""
    for node in imports(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from ('.'.join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def arrows(files: Mapping[str, Path]) -> set[tuple[str, str]]:
    """(importing module, imported module), both ours."""
    found = set()
    for module, file in files.items():
        package = module.split('.') if file.name == '__init__.py' else module.split('.')[:-1]
        for name in names_imported(file.read_text(encoding='utf-8'), package):
            while name and name not in files:
                name = name.rpartition('.')[0]
            if name and name != module:
                found.add((module, name))
    return found


def place(module: str) -> tuple[int, str]:
    """(floor, room) of a module: the longest entry of FLOORS that it lies in."""
    rooms = [
        (len(room), floor, room)
        for floor, names in enumerate(FLOORS)
        for room in names
        if module == room or (module.startswith(f'{room}.') and room != 'basicsr_effsr')
    ]
    assert rooms, f'{module} is on no floor: give it one in FLOORS'
    _, floor, room = max(rooms)
    return floor, room


def upward(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those arrows that point up, or across from room to room."""
    found = []
    for module, imported in pairs:
        (floor, room), (other_floor, other_room) = place(module), place(imported)
        if not (other_floor < floor or room == other_room):
            found.append((module, imported))
    return sorted(found)


def circle(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Modules that import each other in a circle; empty if none do."""
    graph: dict[str, set[str]] = {}
    for module, imported in pairs:
        graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_down():
    pairs = arrows(modules(ROOT))
    assert not upward(pairs), f'upward: {upward(pairs)}'
    assert not circle(pairs), f'circle: {circle(pairs)}'
    for number, names in reversed(list(enumerate(FLOORS))):
        print(f'{number:2d}  {", ".join(names)}')


@pytest.mark.parametrize(
    'planted',
    [
        ('basicsr_effsr/utils/planted.py', 'import basicsr_effsr.models.effsr_model'),
        ('basicsr_effsr/models/planted.py', 'def f():\n    from basicsr_effsr.tools import evaluate'),
        ('basicsr_effsr/losses/planted.py', 'from basicsr_effsr.archs.hasn_arch import HASN'),
        ('basicsr_effsr/data/planted.py', 'from .. import cli'),
        ('datasets_prep/planted.py', 'from basicsr_effsr.models import effsr_model'),
    ],
    ids=lambda planted: planted[0],
)
def test_a_planted_upward_import_is_found(tmp_path, planted):
    file, source = planted
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    module = file.removesuffix('.py').replace('/', '.')
    pairs = arrows(modules(ROOT) | modules(tmp_path))
    assert [pair for pair in upward(pairs) if pair[0] == module]


def test_a_planted_circle_is_found(tmp_path):
    (tmp_path / 'datasets_prep').mkdir()
    (tmp_path / 'datasets_prep' / 'one.py').write_text('from datasets_prep import two')
    (tmp_path / 'datasets_prep' / 'two.py').write_text('def f():\n    from . import one')
    assert set(circle(arrows(modules(tmp_path)))) == {'datasets_prep.one', 'datasets_prep.two'}


def foreign_names(file: Path) -> set[str]:
    """What a drop-in file imports beside the standard library, torch, the registry, the blocks and BESIDE."""
    return {
        name
        for name in names_imported(file.read_text(encoding='utf-8'), ['basicsr_effsr', 'archs'])
        if name.split('.')[0] not in {*sys.stdlib_module_names, 'torch'}
        and not name.startswith(
            ('basicsr.utils.registry.', *BESIDE.get(file.stem, ()), 'basicsr_effsr.archs.effsr_blocks.')
        )
    }


@pytest.mark.parametrize('file', ARCH_FILES, ids=lambda f: f.stem)
def test_drop_in_files_need_torch_and_the_registry_only(file):
    assert not foreign_names(file)


def test_blocks_need_torch_only():
    names = names_imported((PACKAGE / 'archs' / 'effsr_blocks.py').read_text(), ['basicsr_effsr', 'archs'])
    assert {name.split('.')[0] for name in names} <= {'__future__', 'math', 're', 'torch', 'typing'}


@pytest.mark.parametrize('file', ARCH_FILES, ids=lambda f: f.stem)
def test_drop_in_files_parse_on_old_pythons(file):
    ast.parse(file.read_text(encoding='utf-8'), feature_version=(3, 8))


def test_no_class_takes_a_name_that_is_not_free():
    """BasicSR's own decorator stops where a fork has the name; ``register_in`` gives way."""
    assert not [file for file in PACKAGE.rglob('*.py') if '_REGISTRY.register(' in file.read_text(encoding='utf-8')]


# what opens a file that somebody else has written, and believes what it says -> where that is done
READERS = {
    'torch.load': 'utils/stored.py',
    'safe_open': 'utils/stored.py',
    'yaml.load': 'options/file.py',
    'Image.open': 'imaging/',
    'cv2.imread': '',
    'cv2.imdecode': 'imaging/',
    'lmdb.open': 'lmdb',
    'tarfile.open': 'archives.py',
    'np.load': '',
    'pickle.load': '',
}


@pytest.mark.parametrize('reader', READERS)
def test_what_others_wrote_has_one_reader(reader):
    """Whose claims it checks, see ``tests/faults``."""
    files = [file for folder in (PACKAGE, ROOT / 'datasets_prep') for file in folder.rglob('*.py')]
    found = [str(f) for f in files if re.search(rf'\b{reader}\(', f.read_text(encoding='utf-8'))]
    assert all(READERS[reader] and READERS[reader] in name for name in found), found
