"""Do the commands of docs/data.md make the folders that the option files name? Stand-ins, no network."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from basicsr_effsr.imaging.bicubic import imresize
from datasets_prep import download
from datasets_prep.cli import app
from datasets_prep.files import encode_png, write_png

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / 'docs' / 'data.md').read_text(encoding='utf-8')
FENCED = re.findall(r'^```(\w*)\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
BLOCKS = [block.strip().splitlines() for language, block in FENCED if not language]  # commands
PER_SET = 2  # images in every stand-in
START = 'python -m datasets_prep '


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth, so that it is encoded quickly."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
    return imresize(small, size=(height, width))


def photographs(name: str) -> dict[str, np.ndarray]:
    """HR images under the names that a publisher gives them."""
    if name == 'DIV2K':
        return {f'{i:04d}': noise(492, 504, i) for i in (1, 2)}
    if name == 'Flickr2K':
        return {f'{i:06d}': noise(504, 492, i) for i in (1, 2)}
    if name == 'LSDIR':  # one more than is wanted; sides that no scale divides
        return {f'{i:07d}': noise(483 + i, 485, i) for i in (1, 2, 3)}
    return {word: noise(50, 61, i) for i, word in enumerate(('baby', 'bird'))}


def member_names(url: str) -> dict[str, np.ndarray]:
    """What an archive holds, in the publisher's layout."""
    stem = Path(url).name.partition('.')[0]
    if stem == 'benchmark':
        sets = ('Set5', 'Set14', 'B100', 'Urban100')
        return {f'benchmark/{name}/HR/{stem}.png': hr for name in sets for stem, hr in photographs(name).items()}
    if stem == 'Flickr2K':
        pictures = photographs('Flickr2K')
        lr = {
            f'Flickr2K/Flickr2K_LR_bicubic/X{scale}/{stem}x{scale}.png': imresize(hr, scale=1 / scale)
            for stem, hr in pictures.items()
            for scale in (2, 3, 4)
        }
        return lr | {f'Flickr2K/Flickr2K_HR/{stem}.png': hr for stem, hr in pictures.items()}
    kind = re.fullmatch(r'DIV2K_(train|valid)_(HR|LR_bicubic_X([234]))', stem)
    assert kind, url
    if kind[2] == 'HR':
        return {f'{stem}/{name}.png': hr for name, hr in photographs('DIV2K').items()}
    scale = int(kind[3])
    folder = f'DIV2K_{kind[1]}_LR_bicubic/X{scale}'
    return {f'{folder}/{name}x{scale}.png': imresize(hr, scale=1 / scale) for name, hr in photographs('DIV2K').items()}


def write_tar(path: Path, members: dict[str, np.ndarray]) -> None:
    with tarfile.open(path, 'w') as archive:
        for name, img in members.items():
            data = encode_png(img)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_archive(path: Path, members: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.tar':
        write_tar(path, members)
        return
    with zipfile.ZipFile(path, 'w') as archive:
        for name, img in members.items():
            archive.writestr(name, encode_png(img))


def stand_ins(root: Path) -> Path:
    """The archives as if fetched by hand, LSDIR's apart, and the real table with their numbers of images."""
    table = json.loads(download.SOURCES.read_text(encoding='utf-8'))
    for entry in table['sets'].values():
        for file in entry.get('files', []):
            file |= {'size': None, 'sha256': None, 'md5': None, 'images': PER_SET}
            path = root / 'datasets' / 'archives' / Path(file['url']).name
            if not path.exists():
                write_archive(path, member_names(file['url']))
        for merge in entry.get('merge', []):
            merge['images'] = PER_SET * len(merge['folders'])
        if 'first' in entry:
            entry |= {'first': PER_SET, 'images': PER_SET}
    (root / 'lsdir-archives').mkdir()
    members = {f'0001000/{stem}.png': hr for stem, hr in photographs('LSDIR').items()}
    write_tar(root / 'lsdir-archives' / 'shard-00.tar.gz', members)
    path = root / 'sources.json'
    path.write_text(json.dumps(table))
    return path


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder in which every command of the page was run, block by block; and what each said."""
    root = tmp_path_factory.mktemp('page')
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, 'SOURCES', stand_ins(root))
        for stem, hr in photographs('photos').items():
            write_png(root / 'photos' / f'{stem}.png', hr)
            write_png(root / 'datasets' / 'photos' / f'{stem}.png', hr)
        for block in BLOCKS:
            patch.chdir(root)
            for line in block:
                if line.startswith('cd '):
                    patch.chdir(line.removeprefix('cd '))
                    continue
                words = shlex.split(line.removeprefix(START))
                here = [] if words[0] in ('sample', 'meta-info', 'download') else ['-j', '0']
                result = CliRunner().invoke(app, [*words, *here])
                said.append((line, result.exit_code, result.output))
    return root, said


def dataroots() -> dict[str, list[str]]:
    """Every folder of images and list of them that an option file names, and the option files that do."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / 'options').rglob('*.yml')):
        for root in re.findall(r'(?:dataroot_\w+|meta_info):\s+(\S+)', file.read_text(encoding='utf-8')):
            found.setdefault(root, []).append(file.name)
    return found


def test_every_command_of_the_page_does_what_it_says(prepared):
    _, said = prepared
    assert len(said) > 20
    assert {line.removeprefix(START).split()[0] for line, *_ in said} == {
        'sample', 'download', 'subimages', 'verify', 'lmdb', 'pack', 'meta-info', 'lr'
    }  # fmt: skip
    assert [(line, output) for line, code, output in said if code != 0] == []


def test_every_folder_that_an_option_file_names_is_made_by_the_page(prepared):
    root, _ = prepared
    named = dataroots()
    assert len(named) > 15
    assert {name: files for name, files in named.items() if not (root / name).exists()} == {}
    for name in named:
        assert (root / name).is_file() or [*(root / name).glob('*.png')], name


@pytest.mark.parametrize('file', sorted((ROOT / 'options' / 'train').glob('*.yml')), ids=lambda file: file.stem)
def test_the_pairs_of_a_training_file_are_pairs(prepared, file, monkeypatch):
    import yaml

    from basicsr_effsr.data.pairs import list_pairs

    monkeypatch.chdir(prepared[0])
    options = yaml.safe_load(file.read_text(encoding='utf-8'))
    for data in options['datasets'].values():
        if 'dataroot_gt' in data and 'dataroot_lq' in data and not data['dataroot_gt'].endswith('.pack'):
            assert len(list_pairs('x', data)) >= PER_SET


@pytest.mark.parametrize('name', ['hasn_x4', 'hasn_x4_warmstart', 'agdn_s_x4_finetune', 'quick_dparn_finetune'])
def test_the_packs_of_a_recipe_are_made_by_its_own_commands(prepared, name, monkeypatch):
    """One recipe for each of the data sets that are trained on."""
    import yaml

    from basicsr_effsr.cli import app as effsr
    from basicsr_effsr.data.pairs import list_pairs

    monkeypatch.chdir(prepared[0])
    text = CliRunner().invoke(effsr, ['recipe', name, '--pack']).output
    commands = re.findall(r'# +python -m datasets_prep (pack .*)', text)
    assert len(commands) == 2
    for line in commands:
        result = CliRunner().invoke(app, [*shlex.split(line), '-j', '0'])
        assert result.exit_code == 0, result.output
    assert len(list_pairs('x', yaml.safe_load(text)['datasets']['train'])) >= PER_SET


def test_df2k_has_both_of_every_scale(prepared):
    folder = prepared[0] / 'datasets' / 'DF2K'
    names = ['000001', '000002', '0001', '0002']
    assert sorted(p.stem for p in (folder / 'DF2K_train_HR').glob('*.png')) == names
    for scale in (2, 3, 4):
        lr = folder / 'DF2K_train_LR_bicubic' / f'X{scale}'
        assert sorted(p.stem for p in lr.glob('*.png')) == [f'{name}x{scale}' for name in names]


def test_lsdir_is_cut_to_what_the_scale_divides(prepared):
    folder = prepared[0] / 'datasets' / 'DIV2K_LSDIR10K'
    hr = sorted(p.stem for p in (folder / 'DIV2K_LSDIR10K_train_HR').glob('*.png'))
    assert hr == ['0000001', '0000002', '0001', '0002']  # the third of LSDIR is not among the first two
    result = CliRunner().invoke(
        app,
        [
            'verify',
            str(folder / 'DIV2K_LSDIR10K_train_HR_mod4_sub'),
            str(folder / 'DIV2K_LSDIR10K_train_LR_bicubic' / 'X4_sub'),
            *'--scale 4 --border 2 -j 0'.split(),
        ],
    )
    assert result.exit_code == 0, result.output
