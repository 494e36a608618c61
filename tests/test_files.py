"""The one home of reading and writing files: what is no regular file, and what cannot be written."""

from __future__ import annotations

import os
import socket

import pytest

from basicsr_effsr.utils.files import WriteError, atomic_path, open_regular, read_regular, write_bytes


@pytest.fixture(params=['pipe', 'folder', 'device', 'socket', 'link to a pipe'])
def no_file(request, tmp_path):
    """Something at a path that would block, never end, or cannot be read."""
    place = tmp_path / 'it'
    if request.param == 'folder':
        place.mkdir()
    elif request.param == 'device':
        place.symlink_to('/dev/zero')
    elif request.param == 'socket':
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
    else:
        os.mkfifo(tmp_path / 'pipe')
        place.symlink_to(tmp_path / 'pipe')
    return place


def test_only_regular_files_are_opened(tmp_path, no_file):
    with pytest.raises(OSError, match=str(no_file)):
        open_regular(no_file)
    (tmp_path / 'real').write_bytes(b'abc')
    (tmp_path / 'link').symlink_to('real')
    assert read_regular(tmp_path / 'link') == b'abc'
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / 'none')


@pytest.mark.parametrize('length', [1, 12, 100, 249, 255])
def test_a_temporary_name_is_no_longer_than_a_long_final_one(tmp_path, length):
    target = tmp_path / ('x' + 'é' * length).encode()[:length].decode(errors='ignore')
    with atomic_path(target) as part:
        assert len(os.fsencode(part.name)) <= max(48, length)
        part.write_bytes(b'abc')
    assert target.read_bytes() == b'abc'


@pytest.mark.parametrize('sync', [False, True])
def test_what_cannot_be_written_is_named_with_its_cause(tmp_path, sync):
    (tmp_path / 'file').write_bytes(b'')
    for target in (tmp_path / 'file' / 'a.png', tmp_path / ('x' * 256)):
        with pytest.raises(WriteError) as found:
            write_bytes(target, b'', sync=sync)
        assert str(found.value).startswith(f'{target}')
        assert 'Errno' not in str(found.value)
