"""Weights by name: fetched from their authors when a name asks for it, pinned, and from then on kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from basicsr_effsr._registration import defaults_of, lookup
from basicsr_effsr.utils.download import fetch
from basicsr_effsr.utils.errors import UserError, near
from basicsr_effsr.utils.files import atomic_path, digest_of, read_text, write_bytes
from basicsr_effsr.utils.report import markdown_table, strict_json

SCHEME = 'zoo:'
HOST = 'https://raw.githubusercontent.com'


@dataclass(frozen=True)
class Published:
    """Weights that an author has published; facts of a file are None if it was not available."""

    name: str  # in this zoo
    repository: str  # of the author, owner/name
    commit: str | None  # at which the file lies there; None if no address of it stays
    licence: str | None  # that the repository states; None if it states none
    path: str  # of the file in the repository, or where it is to be found
    network: dict[str, Any]  # type and options that are not the default
    bytes: int | None = None
    sha256: str | None = None
    content: str | None = None  # hash of its parameters, see content_of
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)  # set -> (PSNR [dB], SSIM) as measured

    @property
    def url(self) -> str | None:
        """Address of the file, at ``EFFSR_MIRROR`` if that is set; None if it has to be brought by hand."""
        if self.commit is None:
            return None
        return '/'.join([os.environ.get('EFFSR_MIRROR', HOST).rstrip('/'), self.repository, self.commit, self.path])


@cache
def published() -> dict[str, Published]:
    """Name -> weights of the authors."""
    table = json.loads(Path(__file__).with_name('zoo.json').read_text(encoding='utf-8'))
    found: dict[str, Published] = {}
    for source in table['sources']:
        about = {key: value for key, value in source.items() if key != 'models'}
        found |= {name: Published(name=name, **about, **model) for name, model in source['models'].items()}
    return found


def cache_folder(part: str) -> Path:
    """A folder in ``EFFSR_CACHE``, or in the user's cache folder; not created."""
    from platformdirs import user_cache_path

    return Path(os.environ.get('EFFSR_CACHE') or user_cache_path('basicsr_effsr')) / part


def folder() -> Path:
    """Where weights are kept."""
    return cache_folder('zoo')


def added() -> dict[str, Path]:
    """Name -> file of the models that the user has added."""
    return {file.stem: file for file in sorted(folder().glob('*.safetensors'))}


def kept(name: str) -> Path:
    """The file of a published name in the cache, whether it is there or not."""
    return folder() / f'{name}.pth'


def named(source: str | Path) -> str | None:
    """The name behind ``zoo://``; None for a path."""
    text = str(source)  # a Path has turned two slashes into one
    return text.removeprefix(SCHEME).lstrip('/') if text.startswith(SCHEME) else None


def located(source: str | Path, *, say: Callable[[str], None] | None = None) -> Path:
    """The file of ``zoo://NAME``, fetched if it is not in the cache yet; any path is itself.

    ``say`` is called with a sentence about what is being fetched, and whose it is.

    Raises:
        UserError: no such name, no address to fetch it from, or a file that is not the author's.
        DownloadError: the server cannot be reached, or sends something else; the message says what to do.
    """
    name = named(source)
    if name is None:
        return Path(source)
    mine = added()
    if name in mine:
        return mine[name]
    model = published().get(name)
    if model is None:
        raise UserError(f'zoo://{name}: no such model; {near(name, [*published(), *mine])} (effsr zoo lists all)')
    file = kept(name)
    if file.is_file():
        hashed, note = digest_of(file), _record(file)
        expected = read_text(note).strip() if note.is_file() else model.sha256
        if hashed != expected:
            raise UserError(f'{file} has the SHA-256 {hashed}, expected {expected}; remove it and fetch it again')
        return file
    if model.url is None:
        raise UserError(
            f'zoo://{name}: these weights have no stable address; get them from {model.repository} '
            f'({model.path}) and run effsr zoo import FOLDER'
        )
    if say is not None:
        whose = f'licence {model.licence}' if model.licence else 'no licence stated'
        say(f'fetching {name} ({(model.bytes or 0) / 1e6:.1f} MB) from {model.repository}, {whose}, into {file.parent}')
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f'.{file.name}.lock')):  # processes of one training ask at the same time
        fetch(model.url, file, size=model.bytes, checksum=f'sha256:{model.sha256}', say=say or (lambda line: None))
    return file


def model_file(model: str | Path, *, say: Callable[[str], None] | None = None) -> Path:
    """The checkpoint that is meant by a name of the zoo, with or without ``zoo://``, or by a path.

    Raises:
        UserError, DownloadError: as :func:`located`.
    """
    text = str(model)
    bare = not (Path(text).suffix or os.sep in text or os.path.exists(text))
    return located(f'{SCHEME}//{text}' if bare else model, say=say)


def _record(file: Path) -> Path:
    """Where the hash is noted of weights of unknown hash that were imported."""
    return file.with_suffix('.sha256')


def content_of(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes and values of parameters in float32, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f'{name} {tuple(state[name].shape)}\n'.encode())
        digest.update(state[name].detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _options(network: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a network that its weights show."""
    cls, _ = lookup('ARCH', network['type'])
    return {
        key: value for key, value in {**defaults_of(cls), **network}.items() if key not in getattr(cls, 'unseen', ())
    }


def known_as(file: Path) -> tuple[str, str] | None:
    """The published name of a file, and how it was found: by hash, content, or network (whose hash is not known).

    Raises:
        ValueError: no checkpoint, or of no known network.
        OSError: it cannot be read.
    """
    from basicsr_effsr.weights.recognise import recognise

    hashed = digest_of(file)
    for name, model in published().items():
        if model.sha256 == hashed:
            return name, 'hash'
    found = recognise(file)
    content, options = content_of(found.state), _options(found.network)
    for name, model in published().items():
        if model.content == content:
            return name, 'content'
        if model.sha256 is None and _options(model.network) == options:
            return name, 'network'
    return None


def bring(source: Path) -> Iterator[tuple[Path, str]]:
    """Copies the authors' files below a folder, or one file, into the cache; gives each checkpoint and what it is.

    Raises:
        UserError: no checkpoint is there.
        WriteError: the cache cannot be written.
    """
    from basicsr_effsr.weights.recognise import described, recognise

    files = [source] if source.is_file() else [f for f in sorted(source.rglob('*')) if f.suffix in ('.pth', '.pt')]
    if not files:
        raise UserError(f"{source}: holds no checkpoints (.pth, .pt); give the folder of the authors' files")
    for file in files:
        try:
            known = known_as(file)
            what = '' if known else f'{described(recognise(file).network)}, not published by its authors: effsr zoo add'
        except (OSError, ValueError) as error:
            known, what = None, str(error)
        if known is not None:
            name, how = known
            target = kept(name)
            with atomic_path(target, sync=True) as part:
                shutil.copyfile(file, part)
            _record(target).unlink(missing_ok=True)
            if how != 'hash':
                write_bytes(_record(target), f'{digest_of(target)}\n'.encode())
            sure = {'hash': 'verified by its SHA-256', 'content': 'verified by its parameters'}
            what = f'{name}, {sure.get(how, "not verified: its hash is recorded now")}'
        yield file, what


def add(
    name: str,
    file: Path,
    *,
    training: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Puts a model of one's own into the zoo: safetensors that states its network, and a model card; gives both.

    ``training`` is the option file it was trained with, ``scores`` the ``report.json`` of ``effsr evaluate``.

    Raises:
        UserError: a name that is taken or cannot be one, or scores of other weights.
        ValueError: the checkpoint is of no known network.
    """
    from basicsr_effsr.weights.checkpoint import as_safetensors
    from basicsr_effsr.weights.recognise import metadata_of, recognise

    if not re.fullmatch(r'[A-Za-z0-9][\w-]*', name) or name in published():
        raise UserError(f"the name of a model must be of letters, digits, _ and -, and not an author's, got {name!r}")
    target = folder() / f'{name}.safetensors'
    if target.exists() and not overwrite:
        raise UserError(f'{target} exists; give another name or --overwrite')
    found = recognise(file)
    facts = metadata_of(found.network, found.net, file, 'fp32')
    write_bytes(target, as_safetensors(found.net.state_dict(), facts), sync=True)
    card = target.with_suffix('.md')
    write_bytes(card, _card(name, facts, training or {}, scores or {}).encode(), sync=True)
    return target, card


def _card(name: str, facts: Mapping[str, str], training: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """A model card in Markdown: what it is, how it was trained, what it scores."""
    import torch

    lines = [f'# {name}', '', *(f'- {key}: {value}' for key, value in facts.items()), f'- torch: {torch.__version__}']
    if scores:
        rows = [[key, f'{m["psnr"]:.2f}', f'{m["ssim"]:.4f}'] for key, m in scores.get('means', {}).items()]
        table = markdown_table(['set', 'PSNR [dB]', 'SSIM'], rows).rstrip()
        lines += ['', f'## Scores ({scores.get("protocol", "")})', '', table]
    if training:
        wanted = ('name', 'manual_seed', 'scale', 'network_g', 'datasets', 'train')
        shown = {key: training[key] for key in wanted if key in training}
        lines += ['', '## Training', '', '```json', strict_json(shown), '```']
    return '\n'.join(lines) + '\n'
