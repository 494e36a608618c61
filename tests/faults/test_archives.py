"""Hostile and damaged archives: each is refused in a sentence, quickly, with little memory, and nothing is unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from basicsr_effsr.utils.files import WriteError
from datasets_prep import archives
from datasets_prep.archives import ArchiveError, extract
from datasets_prep.files import encode_png

PNG = encode_png(np.zeros((4, 4, 3), np.uint8))
MOST_MEMORY = 200 * 2**20


def tarred(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = 'w') -> bytes:
    """A tar of files (name, content) and of bare headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def tarred_with(records: dict[str, str]) -> bytes:
    info = tarfile.TarInfo('HR/a.png')
    info.size, info.pax_headers = len(PNG), records
    return info.tobuf(tarfile.PAX_FORMAT) + PNG.ljust(1024, b'\0') + bytes(1024)


def header(kind: bytes, size: int = 0, name: str = 'HR/x.png', target: str = '') -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, data in members:
            archive.writestr(name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def compressed(head: bytes, zeros: int) -> bytes:
    """Gzip of ``head`` and of very many zeros."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode='wb', compresslevel=1) as file:
        file.write(head)
        for _ in range(zeros // 2**24):
            file.write(bytes(2**24))
    return buffer.getvalue()


def zip_of_kind(kind: int) -> bytes:
    info = zipfile.ZipInfo('HR/x.png')
    info.create_system, info.external_attr = 3, kind << 16
    return zipped((info, b'/etc/passwd'))


def claimed(data: bytes, at: int, value: bytes) -> bytes:
    """A zip whose record of the member in the list at the end claims something else."""
    place = data.rindex(b'PK\1\2') + at
    return data[:place] + value + data[place + len(value) :]


def pax_header(size: int) -> bytes:
    return header(tarfile.XHDTYPE, size).tobuf(tarfile.USTAR_FORMAT)


HOSTILE: dict[str, Callable[[], bytes]] = {
    'a pax header of 3 GB': lambda: compressed(header(tarfile.XHDTYPE, 3 * 2**30).tobuf(tarfile.GNU_FORMAT), 2**27),
    'a pax header of 3 GB, uncompressed': lambda: header(tarfile.XHDTYPE, 3 * 2**30).tobuf(tarfile.GNU_FORMAT),
    'a long name of 3 GB': lambda: compressed(header(tarfile.GNUTYPE_LONGNAME, 3 * 2**30).tobuf(), 2**27),
    'headers of headers': lambda: pax_header(512) * 5000 + bytes(1024),
    'pax headers in a row': lambda: (pax_header(512) + b'13 path=a/b\n\n'.ljust(512, b'\0')) * 5000 + bytes(1024),
    'a file of 2 GB of zeros': lambda: compressed(header(tarfile.REGTYPE, 2**31).tobuf(), 2**27),
    'a file of a size below zero': lambda: header(tarfile.REGTYPE, -512).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
    'a sparse file': lambda: header(tarfile.GNUTYPE_SPARSE, 2**40).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
    'too many files': lambda: tarred(*(header(tarfile.REGTYPE, name=f'{i}.png') for i in range(600))),
    'a path that climbs': lambda: tarred(('../x.png', PNG)),
    'a path that climbs later': lambda: zipped(('HR/a.png', PNG), ('HR/../../x.png', PNG)),
    'an absolute path': lambda: zipped(('/tmp/x.png', PNG)),
    'a drive': lambda: zipped(('C:x.png', PNG)),
    'a name of 4000 letters': lambda: tarred(('HR/' + 'x' * 4000, PNG)),
    'a name in no encoding': lambda: tarred(('HR/\udcff.png', PNG)),
    'a line end in a name': lambda: tarred(('HR/a\nb.png', PNG)),
    'one name twice': lambda: tarred(('HR/a.png', PNG), ('HR/a.png', PNG[:-1])),
    'one name in two cases': lambda: zipped(('HR/a.png', PNG), ('hr/A.png', PNG)),
    'one name on Windows': lambda: zipped(('HR/a.png', PNG), ('HR/a.png. ', PNG)),
    'one name on macOS': lambda: tarred(('HR/\u00e9.png', PNG), ('HR/e\u0301.png', PNG)),
    'a name that reads backwards': lambda: tarred(('HR/\u202egnp.exe', PNG)),
    'folders without end': lambda: tarred(('a/' * 1500 + 'x.png', PNG)),
    'a size below zero in a pax header': lambda: tarred_with({'size': '-5'}),
    'a path that climbs in a pax header': lambda: tarred_with({'path': '../../x.png'}),
    'a sparse file in a pax header': lambda: tarred_with({'GNU.sparse.major': '1', 'GNU.sparse.minor': '0'}),
    'a file that is a folder': lambda: tarred(('HR', PNG), ('HR/a.png', PNG)),
    'a folder that is a file': lambda: zipped(('HR/a.png', PNG), ('HR', PNG)),
    'a symbolic link': lambda: tarred(header(tarfile.SYMTYPE, target='/etc')),
    'a file behind a link': lambda: tarred(header(tarfile.SYMTYPE, name='HR', target='/tmp'), ('HR/x.png', PNG)),
    'a hard link': lambda: tarred(('HR/a.png', PNG), header(tarfile.LNKTYPE, target='HR/a.png')),
    'a device': lambda: tarred(header(tarfile.CHRTYPE)),
    'a pipe': lambda: tarred(header(tarfile.FIFOTYPE)),
    'a link in a zip': lambda: zip_of_kind(0o120777),
    'a pipe in a zip': lambda: zip_of_kind(0o010644),
    'a bomb': lambda: zipped(('HR/a.png', bytes(2**27)), compression=zipfile.ZIP_DEFLATED),
    'a claim of 1 TB': lambda: claimed(zipped(('HR/a.png', PNG)), 24, struct.pack('<I', 2**32 - 2)),
    'a wrong checksum': lambda: claimed(zipped(('HR/a.png', PNG)), 16, b'\0\0\0\0'),
    'an unknown compression': lambda: claimed(zipped(('HR/a.png', PNG)), 10, b'\x63\0'),
    'an encrypted member': lambda: claimed(zipped(('HR/a.png', PNG)), 8, b'\1\0'),
    'nothing': lambda: b'',
    'no member': lambda: zipped(),
    'a page of a server': lambda: b'<html>please log in</html>',
    'an end of a list alone': lambda: b'PK\5\6' + bytes(18),
}


@pytest.mark.parametrize('what', HOSTILE)
def test_an_archive_is_refused_that_holds(what, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'MAX_MEMBERS', 500)
    archive, into = tmp_path / 'a.archive', tmp_path / 'into'
    archive.write_bytes(HOSTILE[what]())
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=str(archive)):
            extract(archive, into)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert [p for p in tmp_path.rglob('*') if not p.is_dir()] == [archive]


def good() -> Iterator[bytes]:
    """The same three images in every form."""
    members = [(f'HR/{i}.png', PNG + bytes([i])) for i in range(3)]
    plain = tarred(*members)
    yield from (zipped(*members), zipped(*members, compression=zipfile.ZIP_DEFLATED))
    yield from (plain, gzip.compress(plain, mtime=0), bz2.compress(plain), lzma.compress(plain))


@pytest.mark.parametrize('form', range(6))
@pytest.mark.parametrize('damage', ['cut', 'flipped', 'zeros'])
def test_a_damaged_archive_gives_whole_files_or_a_sentence(form, damage, tmp_path):
    data, rng = list(good())[form], random.Random(form)
    allowed = {PNG + bytes([i]) for i in range(3)}
    stored = form in (2,)  # a plain tar has no checksum of its content
    for trial in range(40):
        at = rng.randrange(len(data))
        changed = {
            'cut': data[:at],
            'flipped': data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            'zeros': data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :],
        }[damage]
        (tmp_path / 'a').write_bytes(changed)
        into = tmp_path / f'into{trial}'
        with suppress(ArchiveError, WriteError):
            extract(tmp_path / 'a', into)
        for file in into.rglob('*.png'):
            assert stored or file.read_bytes() in allowed
    assert not list(tmp_path.rglob('*.part'))


def test_an_archive_in_an_archive_is_a_file_like_others(tmp_path):
    (tmp_path / 'a.zip').write_bytes(zipped(('HR/a.png', PNG), ('inner.zip', HOSTILE['a path that climbs later']())))
    assert extract(tmp_path / 'a.zip', tmp_path / 'into') == (2, 0)
    assert sorted(p.name for p in (tmp_path / 'into').rglob('*') if p.is_file()) == ['a.png', 'inner.zip']
