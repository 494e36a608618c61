"""``effsr recipe``: the option files that come with this package, with the user's data paths filled in."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from basicsr_effsr.options.file import option_text, read_option_file
from basicsr_effsr.utils.console import Console
from basicsr_effsr.utils.errors import UserError, near, printable
from basicsr_effsr.utils.report import strict_json

SUB_IMAGES = 40  # of 480 x 480, step 240, that an image of DIV2K gives: 32,592 of 800


def recipes(kind: str) -> dict[str, Path]:
    """Option files of ``train`` or ``test`` by name: those of the wheel, or of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / 'recipes'
    folder = installed if installed.is_dir() else package.parent / 'options'
    return {file.stem: file for file in sorted((folder / kind).glob('*.yml'))}


def named(name: str, kind: str) -> Path:
    """The option file of that name."""
    known = recipes(kind)
    if name not in known:
        raise UserError(f'there is no recipe {name!r} to {kind}; {near(name, known)} (effsr recipe list shows all)')
    return known[name]


def summary(file: Path) -> dict[str, Any]:
    """What ``effsr recipe list`` says of an option file, from its options and its header.

    ``stage`` counts the recipes to train before it, which the header's line "Before:" names, and is None for a test.
    """
    options, header = read_option_file(file), option_text(file).partition('\n\n')[0]
    reproduces = re.search(r'^# Reproduces: *((?:.+)(?:\n#  .+)*)', header, re.M)
    before = re.search(r'^# Before:.*?options/train/(\w+)\.yml', header, re.M)
    stage = None
    if file.parent.name == 'train':
        stage = 1 if before is None else summary(file.with_name(f'{before[1]}.yml'))['stage'] + 1
    return {
        'name': file.stem,
        'network': options['network_g']['type'],
        'scale': options['scale'],
        'stage': stage,
        'after': before and before[1],
        'reproduces': reproduces and re.sub(r'\n# +', ' ', reproduces[1]),
    }


def packed(text: str, scale: int) -> str:
    """The option file ``text`` with packs to train from, whole images instead of sub-images."""
    before, mark, after = text.partition('\n  val:\n')
    if 'type: PackedPairedImageDataset' in before:
        return text
    roots = re.findall(r'^    dataroot_(?:gt|lq): (\S+)$', before, re.M)
    if 'type: EffSRPairedDataset' not in before or len(roots) != 2:
        raise UserError('--pack is for training on pairs of HR and LR images, and this recipe does not')
    whole = [root.removesuffix('_sub') for root in roots]
    lines = ['# Packs are made once:', *(f'#   python -m datasets_prep pack {root} {root}.pack' for root in whole)]
    data = [f'dataroot_gt: {whole[0]}.pack', f'dataroot_lq: {whole[1]}.pack', 'uint8: true  # to the device as bytes']
    if whole != roots:
        data.insert(2, f"filename_tmpl: '{{}}x{scale}'")
        ratio = r'(dataset_enlarge_ratio:) (\d+)'
        before = re.sub(ratio, lambda m: f'{m[1]} {int(m[2]) * SUB_IMAGES}  # of whole images, not sub-images', before)
    before = re.sub(r'^ +# .*sub-images.*\n|^    dataroot_lq: .*\n', '', before, flags=re.M)
    before = before.replace('type: EffSRPairedDataset', 'type: PackedPairedImageDataset')
    indented = '\n'.join(f'    {line}' for line in lines + data)
    return re.sub(r'^    dataroot_gt: .*$', lambda _: indented, before, flags=re.M) + mark + after


def filled(text: str, data: Path) -> str:
    """The option file ``text`` with its data sets in the folder ``data``, for a user without a checkout."""

    def moved(found: re.Match[str]) -> str:
        path = (data / found[2]).as_posix()
        if not found[1].endswith(': '):
            return found[1] + shlex.quote(path)
        plain = re.fullmatch(r'[\w./-]+( [\w./-]+)*', path)
        return found[1] + (path if plain else json.dumps(path, ensure_ascii=False))

    sample = shlex.quote((data / 'sample').as_posix())
    text = re.sub(r'(\S*[ (])datasets/(\S+)', moved, text)
    text = re.sub(r'(?<=datasets_prep sample)\b', lambda _: f' {sample}', text)
    text = re.sub(r'-opt options/train/(\w+\.yml)', r'-opt \1', text)
    text = re.sub(r'-opt options/test/(\w+\.yml)', r'-opt test_\1', text)
    text = re.sub(r'options/train/(\w+)\.yml', r'effsr recipe \1', text)
    return re.sub(r'options/test/(\w+)\.yml', r'effsr recipe \1 --test', text)


def command(
    name: Annotated[str, typer.Argument(help='Recipe, or list for all of them.')] = 'list',
    data: Annotated[Path, typer.Option(help='Folder of the data sets, as docs/data.md makes them.')] = Path('datasets'),
    pack: Annotated[bool, typer.Option('--pack', help='Train from packs instead of folders of sub-images.')] = False,
    test: Annotated[bool, typer.Option('--test', help='The recipe to test the network, not to train it.')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print the list as JSON.')] = False,
) -> None:
    """Print an option file with the paths of your data: effsr recipe hasn_x4 --data DIR > hasn_x4.yml"""
    kind = 'test' if test else 'train'
    if name == 'list':
        rows = [summary(file) for file in recipes(kind).values()]
        if as_json:
            typer.echo(strict_json(rows))
            return
        cells = []
        for row in rows:
            stage = f'{row["stage"]}, after {row["after"]}' if row['after'] else str(row['stage'] or '-')
            reproduces = filled(row['reproduces'] or '-', Path('datasets')).split('. ')[0].removesuffix('.')
            cells.append((row['name'], row['network'], f'x{row["scale"]}', stage, reproduces))
        Console().table(f'Recipes to {kind}', ('name', 'network', 'scale', 'stage', 'reproduces'), cells)
        return
    file = named(name, kind)
    text = option_text(file)
    if pack:
        if test:
            raise UserError('--pack is for training; a network is tested on folders of images')
        text = packed(text, read_option_file(file)['scale'])
    words = ['effsr', 'recipe', name, '--data', str(data), *['--pack'] * pack, *['--test'] * test]
    recipe = f'# Made by:    {printable(shlex.join(words))}\n{filled(text, data)}'.encode()
    typer.echo(recipe, nl=False)
