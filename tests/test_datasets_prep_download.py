"""Does a download survive the servers and archives of the real world? Loopback only."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from host import HANGS

from basicsr_effsr.utils.download import DownloadError, UnreachableError, fetch
from datasets_prep.archives import ArchiveError, extract
from datasets_prep.download import count_images, download, read_sources
from datasets_prep.files import encode_png
from datasets_prep.jobs import Schedule

PNG = encode_png(np.zeros((4, 4, 3), np.uint8))
FAST = {'pauses': (0.01, 0.01), 'timeout': HANGS}


def zipped(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], mode='w', extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra)
    return buffer.getvalue()


class Server:
    """Serves ``data`` and misbehaves as told; keeps the Range headers it has seen."""

    def __init__(self) -> None:
        self.data = b''
        self.etag: str | None = '"1"'
        self.ranges = True
        self.drop_after: list[int] = []  # bytes after which the connection is cut, one per request
        self.status: list[int] = []  # error codes to answer first
        self.hide_length = False
        self.back = 0  # bytes by which a range begins too early, as some proxies do, in the next answer
        self.seen: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args) -> None:
                pass

        self.httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.httpd.server_port}/set.zip'
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get('Range')
        self.seen.append(wanted)
        if self.status:
            request.send_error(self.status.pop(0))
            return
        begin = 0
        if wanted and self.ranges and request.headers.get('If-Range', self.etag) == self.etag:
            begin = int(wanted.removeprefix('bytes=').rstrip('-')) - self.back
            self.back = 0
            if begin >= len(self.data):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header('Content-Range', f'bytes {begin}-{len(self.data) - 1}/{len(self.data)}')
        else:
            request.send_response(200)
        if not self.hide_length:
            request.send_header('Content-Length', str(len(self.data) - begin))
        if self.etag:
            request.send_header('ETag', self.etag)
        request.end_headers()
        end = begin + self.drop_after.pop(0) if self.drop_after else len(self.data)
        request.wfile.write(self.data[begin:end])
        request.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.data = np.random.default_rng(0).bytes(1_000_000)
    yield server
    server.close()


class TestFetch:
    def test_a_dropped_connection_is_resumed_where_it_broke(self, server, tmp_path):
        server.drop_after = [300_000, 200_000]
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data
        assert server.seen == [None, 'bytes=300000-', 'bytes=500000-']
        assert [p.name for p in tmp_path.iterdir()] == ['a.zip']

    def test_as_many_drops_as_it_takes_if_each_brings_something(self, server, tmp_path):
        server.drop_after = [100_000] * 7
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data
        assert len(server.seen) == 8

    def test_a_range_that_was_not_asked_for_is_not_appended(self, server, tmp_path):
        server.drop_after = [300_000]
        server.back = 1000
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data

    def test_the_next_run_goes_on_too(self, server, tmp_path):
        server.drop_after = [400_000, 0, 0, 0]
        with pytest.raises(DownloadError, match=r'\b400000 bytes'):
            fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert not (tmp_path / 'a.zip').exists()
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert server.seen[-1] == 'bytes=400000-'
        assert (tmp_path / 'a.zip').read_bytes() == server.data

    def test_a_file_that_changed_meanwhile_is_fetched_anew(self, server, tmp_path):
        server.drop_after = [400_000, 0, 0, 0]
        with pytest.raises(DownloadError):
            fetch(server.url, tmp_path / 'a.zip', **FAST)
        server.data, server.etag = server.data[::-1], '"2"'
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data

    def test_a_file_that_changed_without_an_etag_is_fetched_anew(self, server, tmp_path):
        server.etag = None
        server.drop_after = [400_000, 0, 0, 0]
        with pytest.raises(DownloadError):
            fetch(server.url, tmp_path / 'a.zip', **FAST)
        server.data = server.data[::-1] + b'longer'
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data

    def test_a_server_without_ranges_starts_again(self, server, tmp_path):
        server.ranges = False
        server.drop_after = [300_000]
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data

    def test_errors_of_the_moment_are_retried_and_final_ones_told(self, server, tmp_path):
        server.status = [503, 429]
        fetch(server.url, tmp_path / 'a.zip', **FAST)
        assert (tmp_path / 'a.zip').read_bytes() == server.data
        server.status = [404]
        with pytest.raises(DownloadError, match='the server answers 404'):
            fetch(server.url, tmp_path / 'b.zip', **FAST)
        assert len(server.seen) == 4

    def test_a_wrong_checksum_or_size_leaves_nothing(self, server, tmp_path):
        with pytest.raises(DownloadError, match='has the sha256'):
            fetch(server.url, tmp_path / 'a.zip', checksum='sha256:' + '0' * 64, **FAST)
        with pytest.raises(DownloadError, match='has 1000000 bytes, the table says 7'):
            fetch(server.url, tmp_path / 'a.zip', size=7, **FAST)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(DownloadError, match='has the md5'):
            fetch(server.url, tmp_path / 'a.zip', checksum='md5:' + '0' * 32, **FAST)
        for name in ('sha256', 'md5'):
            right = f'{name}:{hashlib.new(name, server.data).hexdigest()}'
            fetch(server.url, tmp_path / f'{name}.zip', checksum=right, size=1_000_000, **FAST)
            assert (tmp_path / f'{name}.zip').is_file()

    def test_a_short_file_without_a_length_is_caught_by_its_known_size(self, server, tmp_path):
        server.hide_length = True
        server.drop_after = [10]
        with pytest.raises(DownloadError, match='has 10 bytes, the table says 1000000'):
            fetch(server.url, tmp_path / 'a.zip', size=1_000_000, **FAST)

    def test_offline_is_said_in_words(self, server, tmp_path):
        server.close()
        with pytest.raises(DownloadError, match=r'are you offline\? Run the same command again'):
            fetch(server.url, tmp_path / 'a.zip', **FAST)

    @pytest.mark.parametrize('url', ['http://127.0.0.1:9/a.zip', 'http://no-such-host.invalid/a.zip'])
    def test_nobody_there_is_tried_twice_and_no_more(self, tmp_path, url):
        said = []
        with pytest.raises(UnreachableError, match=r'cannot be reached \(.+\); are you offline\?'):
            fetch(url, tmp_path / 'a.zip', pauses=[0.01] * 5, say=said.append)
        assert len(said) == 1
        assert re.fullmatch(r'a\.zip: [\w ]+; trying again in 0 s', said[0])
        assert list(tmp_path.iterdir()) == []

    def test_a_server_that_went_away_after_it_had_answered_is_waited_for(self, server, tmp_path):
        server.drop_after = [300_000]
        said = []

        def say(text):
            said.append(text)
            if len(said) == 1:
                server.close()

        with pytest.raises(DownloadError, match=r'\b300000 bytes') as caught:
            fetch(server.url, tmp_path / 'a.zip', **FAST, say=say)
        assert not isinstance(caught.value, UnreachableError)
        assert [text.split(';')[0] for text in said] == [
            'a.zip: the connection ended after 300000 of 1000000 bytes',
            'a.zip: Connection refused',
            'a.zip: Connection refused',
        ]

    def test_a_file_put_there_by_hand_is_checked_and_never_removed(self, server, tmp_path):
        (tmp_path / 'a.zip').write_bytes(b'mine')
        with pytest.raises(DownloadError, match='remove it and run again'):
            fetch(server.url, tmp_path / 'a.zip', size=5)
        fetch(server.url, tmp_path / 'a.zip', size=4)
        assert (tmp_path / 'a.zip').read_bytes() == b'mine'
        assert server.seen == []


def link(kind, target) -> tarfile.TarInfo:
    info = tarfile.TarInfo('HR/link.png')
    info.type, info.linkname = kind, target
    return info


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        info = zipfile.ZipInfo('HR/link.png')
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, '/etc/passwd')
    return buffer.getvalue()


HOSTILE = {
    'climbs out': (zipped({'HR/a.png': PNG, '../evil.png': PNG}), 'is not a file name inside'),
    'is absolute': (tarred({'/tmp/evil.png': PNG}), 'is not a file name inside'),
    'has a drive': (zipped({'C:evil.png': PNG}), 'is not a file name inside'),
    'has backslashes': (tarred({'..\\evil.png': PNG}), 'is not a file name inside'),
    'has control characters': (tarred({'HR/a\n.png': PNG}), 'is not a file name inside'),
    'holds a symlink': (tarred({'HR/a.png': PNG}, extra=link(tarfile.SYMTYPE, '/etc')), 'a link, a device'),
    'holds a hard link': (tarred({'HR/a.png': PNG}, extra=link(tarfile.LNKTYPE, 'HR/a.png')), 'a link, a device'),
    'holds a device': (tarred({'HR/a.png': PNG}, extra=link(tarfile.CHRTYPE, '')), 'a link, a device'),
    'holds a zip symlink': (zip_link(), 'a link, a device'),
    'is a bomb': (zipped({'HR/a.png': bytes(2**27)}, zipfile.ZIP_DEFLATED), 'not a set of photographs'),
    'writes a file twice': (zipped({'HR/a.png': PNG, 'HR/A.png': PNG}), 'one file on some systems'),
    'is empty': (zipped({}), 'is empty'),
    'is no archive': (b'<html>please log in</html>', 'is damaged or no archive'),
    'is cut off': (tarred({'HR/a.png': PNG, 'HR/b.png': bytes(5000)}, 'w:gz')[:-20], 'is damaged or no archive'),
}


class TestExtract:
    @pytest.mark.parametrize('case', HOSTILE)
    def test_an_archive_is_refused_and_nothing_unpacked_when_it(self, tmp_path, case):
        data, words = HOSTILE[case]
        (tmp_path / 'a.archive').write_bytes(data)
        with pytest.raises(ArchiveError, match=words):
            extract(tmp_path / 'a.archive', tmp_path / 'into')
        assert [p for p in tmp_path.rglob('*') if p.is_file()] == [tmp_path / 'a.archive']

    @pytest.mark.parametrize('case', ['is no archive', 'is cut off'])
    def test_damage_is_one_sentence(self, tmp_path, case):
        (tmp_path / 'a.tar').write_bytes(HOSTILE[case][0])
        with pytest.raises(ArchiveError) as caught:
            extract(tmp_path / 'a.tar', tmp_path / 'into')
        assert re.fullmatch(
            r'\S+/a\.tar: is damaged or no archive \([\w, -]+\); remove it and download it again', str(caught.value)
        )

    def test_a_damaged_member_leaves_no_half_file(self, tmp_path):
        data = bytearray(zipped({'HR/a.png': PNG, 'HR/b.png': PNG * 50}))
        data[data.rindex(PNG * 50) + 200] ^= 1
        (tmp_path / 'a.zip').write_bytes(data)
        with pytest.raises(ArchiveError, match='is damaged'):
            extract(tmp_path / 'a.zip', tmp_path / 'into')
        assert [p.name for p in (tmp_path / 'into').rglob('*') if p.is_file()] == ['a.png']

    @pytest.mark.parametrize('pack', [zipped, tarred, lambda members: tarred(members, 'w:gz')])
    def test_what_is_there_is_kept_and_the_rest_unpacked(self, tmp_path, pack):
        (tmp_path / 'archive').write_bytes(pack({f'HR/{i}.png': PNG + bytes([i]) for i in range(4)}))
        assert extract(tmp_path / 'archive', tmp_path / 'into') == (4, 0)
        (tmp_path / 'into' / 'HR' / '2.png').unlink()
        (tmp_path / 'into' / 'HR' / '3.png').write_bytes(PNG)  # too short
        assert extract(tmp_path / 'archive', tmp_path / 'into') == (2, 2)
        for i in range(4):
            assert (tmp_path / 'into' / 'HR' / f'{i}.png').read_bytes() == PNG + bytes([i])

    def test_the_first_are_the_first_by_name(self, tmp_path):
        (tmp_path / 'a.tar').write_bytes(tarred({f'{i}.png': PNG for i in (3, 1, 2, 0)} | {'readme.txt': b'x'}))
        assert extract(tmp_path / 'a.tar', tmp_path / 'into', first=2) == (2, 0)
        assert sorted(p.name for p in (tmp_path / 'into').iterdir()) == ['0.png', '1.png']


class TestDownload:
    @pytest.fixture
    def table(self, server, tmp_path):
        server.data = zipped({f'Mini_HR/{i}.png': PNG for i in range(3)})
        one = {'url': server.url, 'size': None, 'sha256': None, 'into': 'Mini', 'folder': 'Mini_HR', 'images': 3}
        sets = {
            'Mini': {'about': '', 'licence': '', 'files': [one]},
            'Both': {
                'about': '',
                'licence': '',
                'needs': ['Mini'],
                'merge': [{'into': 'Both/HR', 'folders': ['Mini/Mini_HR'], 'images': 3}],
            },
            'ByHand': {
                'about': '',
                'licence': '',
                'manual': 'ask the authors',
                'archives': 'part-*.zip',
                'into': 'ByHand',
                'folder': 'ByHand',
                'first': 3,
                'images': 3,
            },
        }
        path = tmp_path / 'sources.json'
        path.write_text(json.dumps({'sets': sets}))
        return path

    def test_from_the_table_to_the_images(self, server, table, tmp_path):
        summary = download(['Both'], tmp_path / 'd', sources=table, **FAST)
        assert summary.exit_code == 0, summary.failed
        assert any('checksum not known' in note for note in summary.notes)
        assert count_images(tmp_path / 'd' / 'Both' / 'HR') == 3
        assert list((tmp_path / 'd' / 'archives').iterdir()) == []
        before = len(server.seen)
        again = download(['Both'], tmp_path / 'd', sources=table, **FAST)
        assert (again.done, again.skipped, len(server.seen)) == (0, 2, before)

    def offline(self, table, count):
        sets = json.loads(table.read_text())['sets']
        sets['Mini']['files'] = [
            sets['Mini']['files'][0] | {'url': f'http://host-{i % 2}.invalid/{i}.zip', 'folder': f'HR{i}'}
            for i in range(count)
        ]
        table.write_text(json.dumps({'sets': sets}))

    def test_offline_every_server_is_tried_once(self, table, tmp_path, capsys):
        self.offline(table, 8)
        summary = download(['Both'], tmp_path / 'd', sources=table, pauses=(0.01,))
        assert list(summary.failed) == [f'{i}.zip' for i in range(8)]
        assert all('cannot be reached' in reason for reason in summary.failed.values())
        assert summary.exit_code == 1
        assert len(capsys.readouterr().err.splitlines()) == 2

    def test_what_was_put_there_by_hand_is_taken_offline_too(self, server, table, tmp_path):
        self.offline(table, 3)
        (tmp_path / 'd' / 'archives').mkdir(parents=True)
        for i in range(3):
            (tmp_path / 'd' / 'archives' / f'{i}.zip').write_bytes(zipped({f'HR{i}/{j}.png': PNG for j in range(3)}))
        (tmp_path / 'd' / 'archives' / '0.zip').unlink()
        summary = download(['Mini'], tmp_path / 'd', sources=table, pauses=(0.01,))
        assert summary.done == 2
        assert list(summary.failed) == ['0.zip']

    def test_the_merge_waits_for_the_other_shards(self, server, table, tmp_path):
        sets = json.loads(table.read_text())['sets']
        for name in ('One', 'Two'):
            data = zipped({f'{name}_HR/{name}{i}.png': PNG for i in range(2)})
            (tmp_path / 'd' / 'archives').mkdir(parents=True, exist_ok=True)
            (tmp_path / 'd' / 'archives' / f'{name}.zip').write_bytes(data)
            file = {'url': f'http://127.0.0.1:9/{name}.zip', 'into': name, 'folder': f'{name}_HR', 'images': 2}
            sets[name] = {'about': '', 'licence': '', 'files': [file]}
        sets['Both']['needs'] = ['One', 'Two']
        sets['Both']['merge'] = [
            {'into': f'Both/{kind}', 'folders': ['One/One_HR', 'Two/Two_HR'], 'images': 4} for kind in ('HR', 'LR')
        ]
        table.write_text(json.dumps({'sets': sets}))
        first = download(['Both'], tmp_path / 'd', sources=table, schedule=Schedule(1, (1, 2)))
        assert (first.exit_code, first.failed) == (0, {})
        assert 'Both: follows when the other shards are done: run once more without --shard' in first.notes
        assert sum('follows' in note for note in first.notes) == 1
        assert not (tmp_path / 'd' / 'Both').exists()
        second = download(['Both'], tmp_path / 'd', sources=table, schedule=Schedule(1, (2, 2)))
        assert second.exit_code == 0
        assert sorted(p.name for p in (tmp_path / 'd' / 'Both' / 'LR').iterdir()) == [
            'One0.png',
            'One1.png',
            'Two0.png',
            'Two1.png',
        ]
        assert count_images(tmp_path / 'd' / 'Both' / 'HR') == 4
        for file in (tmp_path / 'd' / 'Two' / 'Two_HR').iterdir():
            file.unlink()
        sets['Two']['files'][0]['images'] = 0
        table.write_text(json.dumps({'sets': sets}))
        failed = download(['Both'], tmp_path / 'd', sources=table, schedule=Schedule(1)).failed
        assert [*failed] == [str(tmp_path / 'd' / 'Both' / kind) for kind in ('HR', 'LR')]
        assert f'2 in {tmp_path}/d/One/One_HR, 0 in {tmp_path}/d/Two/Two_HR' in failed[str(tmp_path / 'd/Both/LR')]

    @pytest.mark.parametrize('known', [False, True])
    def test_a_dry_run_asks_nothing(self, server, table, tmp_path, known):
        if known:
            table.write_text(table.read_text().replace('"sha256": null', f'"sha256": "{"0" * 64}"'))
        summary = download(['Mini'], tmp_path / 'd', sources=table, schedule=Schedule(dry_run=True))
        assert summary.planned == 1
        assert any('checksum not known' in note for note in summary.notes) == (not known)
        assert server.seen == []
        assert not (tmp_path / 'd').exists()

    def test_our_table_claims_the_checksums_that_others_have_recorded(self):
        """The docs name them; nothing was downloaded to make the table."""
        sets = read_sources()
        assert all(file.checksum.startswith('sha256:') and file.size > 1_000_000 for file in sets['DIV2K'].files)
        for name in ('Flickr2K', 'Set5', 'Set14', 'B100', 'Urban100'):
            assert [file.checksum.partition(':')[0] for file in sets[name].files] == ['md5']
        for name in ('DF2K', 'LSDIR', 'LSDIR10k', 'DIV2K_LSDIR10K', 'Manga109'):
            assert not sets[name].files

    def test_missing_images_are_an_error(self, server, table, tmp_path):
        server.data = zipped({f'Mini_HR/{i}.png': PNG for i in range(2)})
        failed = download(['Mini'], tmp_path / 'd', sources=table, **FAST).failed
        assert 'holds 2 images after unpacking set.zip, 3 were expected' in failed['set.zip']

    def test_a_hostile_archive_is_told_and_the_others_go_on(self, server, table, tmp_path):
        server.data = HOSTILE['climbs out'][0]
        failed = download(['Mini', 'ByHand'], tmp_path / 'd', sources=table, **FAST).failed
        assert 'is not a file name inside' in failed['set.zip']
        assert failed['ByHand'] == 'ask the authors'

    def test_archives_fetched_by_hand_are_taken_from_their_folder(self, table, tmp_path):
        (tmp_path / 'mine').mkdir()
        for part in (0, 1):
            data = zipped({f'{part}{i}.png': PNG for i in range(2)})
            (tmp_path / 'mine' / f'part-{part}.zip').write_bytes(data)
        summary = download(['ByHand'], tmp_path / 'd', sources=table, archives=tmp_path / 'mine', **FAST)
        assert summary.exit_code == 0, summary.failed
        assert sorted(p.name for p in (tmp_path / 'd' / 'ByHand').iterdir()) == ['00.png', '01.png', '10.png']
        assert download(['ByHand'], tmp_path / 'd', sources=table).skipped == 1

    def test_an_unknown_data_set_lists_the_known(self, table, tmp_path):
        with pytest.raises(ValueError, match='known are Mini, Both, ByHand'):
            download(['Maxi'], tmp_path, sources=table)

    @pytest.mark.parametrize(
        ('change', 'place'),
        [
            (lambda sets: sets.update(A={}), 'sets.A'),
            (lambda sets: sets.update(A=[]), 'sets.A'),
            (lambda sets: sets['Mini'].update(files={}), 'sets.Mini.files'),
            (lambda sets: sets['Mini'].update(files=['x']), 'sets.Mini.files.0'),
            (lambda sets: sets['Mini']['files'][0].update(url='file:///etc/passwd'), 'sets.Mini.files.0.url'),
            (lambda sets: sets['Mini']['files'][0].update(url='http://h/..%2F..%2Fx'), 'sets.Mini.files.0.url'),
            (lambda sets: sets['Mini']['files'][0].update(url=7), 'sets.Mini.files.0.url'),
            (lambda sets: sets['Mini']['files'][0].update(size='3'), 'sets.Mini.files.0.size'),
            (lambda sets: sets['Mini']['files'][0].update(images=-1), 'sets.Mini.files.0.images'),
            (lambda sets: sets['Mini']['files'][0].update(into='/etc'), 'sets.Mini.files.0.into'),
            (lambda sets: sets['Mini']['files'][0].update(folder='../..'), 'sets.Mini.files.0.folder'),
            (lambda sets: sets['Mini']['files'][0].update(sha256='0'), 'sets.Mini.files.0.sha256'),
            (lambda sets: sets['Both'].update(needs=[3]), 'sets.Both.needs.0'),
            (lambda sets: sets['Both'].update(merge={}), 'sets.Both.merge'),
            (lambda sets: sets['ByHand'].update(first=True), 'sets.ByHand.first'),
            (lambda sets: sets['ByHand'].update(colour='red'), 'sets.ByHand.colour'),
        ],
    )
    def test_an_ill_typed_table_is_refused_at_its_place(self, table, change, place):
        sets = json.loads(table.read_text())['sets']
        change(sets)
        table.write_text(json.dumps({'sets': sets}))
        with pytest.raises(ValueError, match=rf'{table}: .* \({place}: '):
            read_sources(table)

    @pytest.mark.parametrize(
        'text', ['', '[]', '7', 'null', '{"sets": null}', '{}', '[' * 100_000, '{"sets": {}, "x": 1}']
    )
    def test_what_is_no_table_is_refused(self, tmp_path, text):
        (tmp_path / 't.json').write_text(text)
        with pytest.raises(ValueError, match='is not a table of sources'):
            read_sources(tmp_path / 't.json')

    def test_sets_that_need_each_other_are_refused(self, table, tmp_path):
        sets = json.loads(table.read_text())['sets']
        sets['Mini']['needs'] = ['Both']
        table.write_text(json.dumps({'sets': sets}))
        with pytest.raises(ValueError, match='not in the table'):
            download(['Both'], tmp_path / 'd', sources=table)
