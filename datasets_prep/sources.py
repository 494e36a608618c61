"""The table of data sets (``sources.json``), typed."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

SOURCES = Path(__file__).with_name('sources.json')


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or '..' in PurePosixPath(path).parts or '\\' in path or '\0' in path:
        raise ValueError('must be a path below the folder of all data sets')
    return path


def _address(url: str) -> str:
    if urlsplit(url).scheme not in ('http', 'https') or _below(name_in(url)) in ('', '.') or '/' in name_in(url):
        raise ValueError('must begin with http:// or https:// and end in the name of a file')
    return url


def name_in(url: str) -> str:
    """The name of the file at an address."""
    return unquote(PurePosixPath(urlsplit(url).path).name)


Below = Annotated[str, AfterValidator(_below)]


class _Row(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True)


class Source(_Row):
    """An archive, and a folder that it unpacks to; ``images`` counts the image files in there."""

    url: Annotated[str, AfterValidator(_address)]
    size: NonNegativeInt | None = None
    sha256: str | None = Field(None, pattern='^[0-9a-f]{64}$')
    md5: str | None = Field(None, pattern='^[0-9a-f]{32}$')
    into: Below = ''
    folder: Below = ''
    images: NonNegativeInt | None = None

    @property
    def checksum(self) -> str | None:
        """``algorithm:digest``, the stronger of those that are known; None if none is."""
        return f'sha256:{self.sha256}' if self.sha256 else f'md5:{self.md5}' if self.md5 else None


class Merge(_Row):
    """Folders whose images are put side by side."""

    into: Below
    folders: list[Below]
    images: NonNegativeInt


class DataSet(_Row):
    """A data set: archives to fetch, others that it needs, or (``manual``) how to get what is handed out on request.

    Of the latter the files like ``archives`` are unpacked, ``first`` so many images or all.
    """

    about: str = ''
    licence: str = ''
    files: list[Source] = []
    needs: list[str] = []
    merge: list[Merge] = []
    manual: str | None = None
    archives: str = '*'
    into: Below = ''
    folder: Below = ''
    first: NonNegativeInt | None = None
    images: NonNegativeInt = 1

    @model_validator(mode='after')
    def _has_a_source(self) -> DataSet:
        if not (self.files or self.needs or self.manual):
            raise ValueError('must have one of files, needs, manual')
        return self


class _Table(_Row):
    note: str = ''
    sets: dict[str, DataSet]


def read_sources(path: Path | None = None) -> dict[str, DataSet]:
    """The table of data sets, by default ours.

    Raises:
        ValueError: when it is not such a table.
        FileNotFoundError: when it does not exist.
    """
    path = path or SOURCES
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; give a table of sources like {SOURCES.name}')
    try:
        return _Table(**json.loads(path.read_text(encoding='utf-8'))).sets
    except ValidationError as error:
        first = error.errors()[0]
        why = f'{".".join(map(str, first["loc"]))}: {first["msg"]}'
    except (ValueError, TypeError, RecursionError) as error:
        why = str(error)
    raise ValueError(f'{path}: is not a table of sources ({why}); compare it with {SOURCES.name}')


def with_needs(names: list[str], table: dict[str, DataSet]) -> list[str]:
    """The data sets with those that they need, these first.

    Raises:
        ValueError: one is not in the table.
    """
    wanted: dict[str, None] = {}
    for name in names:
        if name not in table:
            raise ValueError(f'download: {name!r} is not in the table; known are {", ".join(table)}')
        if name not in wanted:
            rest = {other: its for other, its in table.items() if other != name}  # so that a circle ends
            wanted |= dict.fromkeys(with_needs(table[name].needs, rest)) | {name: None}
    return list(wanted)
