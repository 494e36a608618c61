"""What README and the documents name exists: files, commands, sizes of networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from nets import CASES

from basicsr_effsr.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob('*.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
    *sorted((ROOT / 'benchmarks').glob('*.md')),
]
every_page = pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
OURS = r'(?:basicsr_effsr|datasets_prep|options|tests|benchmarks|docs)/[\w./-]*\w\.(?:py|yml|md|json|html|png)'


@every_page
def test_files_it_names_exist(page):
    missing = [name for name in re.findall(OURS, page.read_text(encoding='utf-8')) if not (ROOT / name).exists()]
    assert not missing


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', page.read_text(encoding='utf-8')):
        if '://' not in target:
            assert (page.parent / target).exists(), target


@every_page
def test_commands_it_names_exist(page):
    text = page.read_text(encoding='utf-8')
    assert set(re.findall(r'(?:^|[ `/])effsr ([a-z]+)\b', text)) <= set(COMMANDS)
    targets = {a or b for a, b in re.findall(r'`make (\w+)`|^ {4}make (\w+)', text, re.M)}
    assert targets <= set(re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M))


def test_sizes_of_published_networks_are_in_the_model_zoo():
    zoo = (ROOT / 'docs' / 'model-zoo.md').read_text(encoding='utf-8')
    for case in CASES.values():
        for size in case.params.values():
            assert f'{size:,}' in zoo, (case.type, size)


def test_pages_speak_of_the_project_alone():
    for page in PAGES:
        assert not re.search(r'/(?:work|root|tmp)/|\bissue \d', page.read_text(encoding='utf-8')), page


def options_of(words: list[str]) -> set[str]:
    """The options of a command line's command."""
    context = typer.Context(typer.main.get_command(app), info_name='effsr')
    command = context.command
    while isinstance(command, typer.core.TyperGroup) and words and not words[0].startswith('-'):
        _, command, words = command.resolve_command(context, words)
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {'--help'}


@every_page
def test_options_of_commands_in_its_blocks_exist(page):
    blocks = re.findall(r'^```\w*\n(.*?)^```', page.read_text(encoding='utf-8'), re.S | re.M)
    for line in (
        line for block in blocks for line in re.findall(r'(?:^\$? ?|/|&& )effsr (\w+(?: [^\n]*)?)$', block, re.M)
    ):
        words = re.split(r'\s(?:&&|>|#|\|)', line)[0].split()
        named = {word.partition('=')[0] for word in words if re.match(r'--?[a-z]', word)}
        assert named <= options_of(words), line


@every_page
def test_python_in_its_blocks_compiles(page):
    for block in re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.S | re.M):
        if not block.startswith('>>>'):  # a doctest, which is run
            compile(block, str(page), 'exec')
