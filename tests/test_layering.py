"""Who may import whom, and which Python the drop-in files speak."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import basicsr_effsr

ROOT = Path(basicsr_effsr.__file__).parent
FILES = [f for f in ROOT.rglob('*.py') if f.parent != ROOT and f.name != '__init__.py']
ARCH_FILES = [*sorted((ROOT / 'archs').glob('*_arch.py')), ROOT / 'archs' / 'effsr_blocks.py']
MAY_IMPORT = {  # folder -> our own modules, by prefix, that its files may import
    'archs': ('archs.effsr_blocks',),
    'losses': ('losses.',),
    'utils': ('utils.',),
    'data': ('data.', 'utils.'),
    'models': ('models.', 'data.', 'utils.'),
    'tools': (
        'basicsr_effsr',
        'tools.',
        'archs.effsr_blocks',
        'utils.',
        'data.',
        '_autoload',
        '_host',
        '_loop',
        '_registration',
        'register',
        '__version__',
    ),
}


def modules_imported(file: Path):
    """Absolute names of what ``file`` imports, ``from a import b`` given as ``a.b``."""
    package = ['basicsr_effsr', *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from ('.'.join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file):
    ours = [m.removeprefix('basicsr_effsr.') for m in modules_imported(file) if m.startswith('basicsr_effsr')]
    allowed = MAY_IMPORT[file.relative_to(ROOT).parts[0]]
    assert all(m.startswith(allowed) for m in ours), ours


@pytest.mark.parametrize('file', ARCH_FILES, ids=lambda f: f.stem)
def test_drop_in_files_need_torch_and_the_registry_only(file):
    foreign = {
        m
        for m in modules_imported(file)
        if m.split('.')[0] not in {*sys.stdlib_module_names, '__future__', 'torch'}
        and not m.startswith(('basicsr.utils.registry.', 'basicsr_effsr.archs.effsr_blocks.'))
    }
    assert not foreign


def test_blocks_need_torch_only():
    tops = {m.split('.')[0] for m in modules_imported(ROOT / 'archs' / 'effsr_blocks.py')}
    assert tops <= {'__future__', 'math', 'torch'}


@pytest.mark.parametrize('file', ARCH_FILES, ids=lambda f: f.stem)
def test_drop_in_files_parse_on_old_pythons(file):
    ast.parse(file.read_text(), feature_version=(3, 8))
