"""Are the data sets that our commands write exact, complete, and readable by the host?"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from host import run
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.data import packs
from basicsr_effsr.data.packs import Pack, PackError
from basicsr_effsr.data.pairs import list_pairs
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.utils.files import WriteError, atomic_path, sweep_parts
from datasets_prep.cli import app
from datasets_prep.files import ImageError, image_shape, read_image, write_png
from datasets_prep.jobs import Job, Schedule, parse_shard, run_jobs
from datasets_prep.lmdb_maker import make_lmdb, make_meta_info
from datasets_prep.lr import make_lr
from datasets_prep.pack import make_pack
from datasets_prep.sample import PHOTOGRAPHS, write_sample
from datasets_prep.subimages import make_subimages, positions
from datasets_prep.verify import verify


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def tree(folder):
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture
def hr(tmp_path):
    folder = tmp_path / 'HR'
    for i, size in enumerate([(48, 60), (36, 72), (61, 50)]):
        write_png(folder / f'{i:04d}.png', noise(*size, 3, seed=i))
    return folder


class TestFiles:
    def test_nothing_is_left_of_a_file_that_fails_half_way(self, tmp_path):
        def write_half():
            with atomic_path(tmp_path / 'a.png') as part:
                part.write_bytes(b'half')
                raise RuntimeError

        with pytest.raises(RuntimeError):
            write_half()
        assert list(tmp_path.iterdir()) == []

    def test_the_sweep_takes_dead_parts_and_leaves_living_ones(self, tmp_path):
        dead = tmp_path / 'sub' / '.b.png.1234.part'
        dead.parent.mkdir()
        dead.write_bytes(b'half')
        with atomic_path(tmp_path / 'a.png') as part:
            assert sweep_parts(tmp_path) == 1
            part.write_bytes(b'whole')
        assert tree(tmp_path) == {'a.png': b'whole'}

    @pytest.mark.parametrize(
        'kind', ['palette', 'gray', 'gray16', 'colour16', 'bilevel', 'cmyk', 'alpha', 'gray alpha']
    )
    def test_the_header_announces_what_reading_gives(self, tmp_path, kind):
        rgb = Image.fromarray(noise(14, 12, 3))
        path = tmp_path / ('a.jpg' if kind == 'cmyk' else 'a.png')
        if kind == 'gray16':
            write_png(path, noise(14, 12, dtype=np.uint16))
        elif kind == 'colour16':
            write_png(path, noise(14, 12, 3, dtype=np.uint16))
        elif kind == 'palette':
            rgb.quantize(16).save(path)
        else:
            rgb.convert({'gray': 'L', 'bilevel': '1', 'cmyk': 'CMYK', 'alpha': 'RGBA', 'gray alpha': 'LA'}[kind]).save(
                path
            )
        img = read_image(path)
        channels = {'gray': 1, 'gray16': 1, 'bilevel': 1, 'alpha': 4, 'gray alpha': 4}.get(kind, 3)
        assert image_shape(path) == (14, 12, channels)
        assert img.shape == ((14, 12) if channels == 1 else (14, 12, channels))
        assert img.dtype == (np.uint16 if '16' in kind else np.uint8)

    def test_palettes_come_out_as_their_colours(self, tmp_path):
        image = Image.fromarray(noise(9, 9, 3)).quantize(8)
        image.save(tmp_path / 'a.png')
        np.testing.assert_array_equal(read_image(tmp_path / 'a.png')[:, :, ::-1], np.asarray(image.convert('RGB')))

    def test_lr_of_a_turned_photograph_is_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / 'photos').mkdir()
        Image.fromarray(noise(24, 36, 3)).save(tmp_path / 'photos' / 'a.jpg', exif=exif)
        assert make_lr(tmp_path / 'photos', tmp_path, scales=(2,), hr_out=tmp_path / 'HR').exit_code == 0
        assert [read_image(tmp_path / f / 'a.png').shape[:2] for f in ('HR', 'X2')] == [(36, 24), (18, 12)]
        assert verify(tmp_path / 'HR', tmp_path / 'X2', scale=2).exit_code == 0

    @pytest.mark.parametrize('place', ['before', 'behind', 'misnamed'])
    def test_the_orientation_is_found_wherever_it_stands(self, tmp_path, place):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / 'a.png'
        if place == 'misnamed':
            Image.fromarray(noise(9, 12, 3)).save(path, 'jpeg', exif=exif)
        else:
            Image.fromarray(noise(9, 12, 3)).save(path)
            data = path.read_bytes()
            at = {'before': 33, 'behind': len(data) - 12}[place]
            path.write_bytes(data[:at] + chunk(b'eXIf', exif.tobytes()[6:]) + data[at:])
        assert read_image(path).shape == (12, 9, 3)
        assert image_shape(path) == (12, 9, 3)

    @pytest.mark.parametrize('exif', [b'', b'garbage', b'MM\0*\0\0\0\x08\0\1'])
    def test_damaged_exif_asks_for_nothing(self, tmp_path, exif):
        write_png(tmp_path / 'a.png', noise(9, 12, 3))
        data = (tmp_path / 'a.png').read_bytes()
        (tmp_path / 'a.png').write_bytes(data[:33] + chunk(b'eXIf', exif) + data[33:])
        assert read_image(tmp_path / 'a.png').shape == (9, 12, 3)

    @pytest.mark.parametrize(
        ('depth', 'value', 'stored'), [(1, 1, 255), (2, 1, 85), (4, 3, 51), (8, 7, 7), (16, 1000, 1000)]
    )
    def test_gray_with_a_transparent_value_has_an_alpha_channel(self, tmp_path, depth, value, stored):
        rows = [np.full(depth, 0, np.uint8) for _ in range(8)]  # 8 pixels of depth bits
        rows[2][:] = np.frombuffer((sum(value << depth * i for i in range(8))).to_bytes(depth, 'big'), np.uint8)
        head = chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, depth, 0, 0, 0, 0))
        pixels = chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
        path = tmp_path / 'HR' / 'a.png'
        path.parent.mkdir()
        path.write_bytes(
            b'\x89PNG\r\n\x1a\n' + head + chunk(b'tRNS', value.to_bytes(2, 'big')) + pixels + chunk(b'IEND', b'')
        )
        img = read_image(path)
        most = np.iinfo(img.dtype).max
        assert image_shape(path) == img.shape == (8, 8, 4)
        assert set(img[2].reshape(-1)) == {stored, 0}
        np.testing.assert_array_equal(img[:, :, 3], most * (np.arange(8) != 2)[:, None].repeat(8, 1))
        refused = make_lr(path.parent, tmp_path / 'LR', scales=(2,))
        assert 'has an alpha channel' in refused.failed[str(path)]
        assert 'got 4 channels' in make_pack(path.parent, tmp_path / 'a.pack').failed[str(path)]
        assert make_lr(path.parent, tmp_path / 'LR2', scales=(2,), alpha='drop').exit_code == 0

    def test_images_of_any_size_are_read(self, hr, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1300)  # 48 x 60 is more than twice that
        assert make_pack(hr, tmp_path / 'HR.pack').exit_code == 0
        assert make_meta_info(hr, tmp_path / 'meta.txt').exit_code == 0

    def test_floats_are_refused(self, tmp_path):
        cv2.imwrite(str(tmp_path / 'a.tiff'), np.zeros((4, 4, 3), np.float32))
        with pytest.raises(ImageError, match=r'a\.tiff'):
            read_image(tmp_path / 'a.tiff')


def double(task):
    if task == 'bad':
        raise ValueError('is bad')
    if task == 'deadly':
        os._exit(9)
    if task == 'stop':
        raise KeyboardInterrupt
    if task == 'full':
        raise WriteError('full: cannot be written')
    return 2 * task


class TestJobs:
    @pytest.mark.parametrize('workers', [0, 2])
    def test_an_error_is_named_and_the_others_go_on(self, workers):
        jobs = [Job(f'item {task}', partial(double, task)) for task in (1, 'bad', 3)]
        summary = run_jobs('test', jobs, Schedule(workers))
        assert summary.results == {'item 1': 2, 'item 3': 6}
        assert summary.failed == {'item bad': 'is bad'}
        assert summary.exit_code == 1
        assert 'failed: item bad: is bad' in summary.lines()

    def test_a_dying_worker_is_named_and_the_others_go_on(self):
        jobs = [Job(f'item {task}', partial(double, task)) for task in (*range(4), 'deadly', *range(4, 12))]
        summary = run_jobs('test', jobs, Schedule(1))
        assert {*summary.results} | {*summary.failed} == {job.name for job in jobs}
        assert 'item deadly' in summary.failed
        assert len(summary.failed) <= 2  # what was in flight beside it

    def test_an_interrupt_ends_in_exit_code_130(self):
        summary = run_jobs('test', [Job(str(task), partial(double, task)) for task in (1, 'stop', 3)], Schedule())
        assert summary.results == {'1': 2}
        assert summary.exit_code == 130

    @pytest.mark.slow
    def test_two_interrupts_in_a_row_leave_no_worker_behind(self, tmp_path):
        """The first within ``submit``, which had not yet noted its thread; the second when the pool is to end."""
        code = """
import concurrent.futures.process as pools, functools, time
from datasets_prep import jobs

kept = []

def interrupted(*arguments, **_):
    kept.append(arguments)
    if isinstance(arguments[0], dict):  # in the place of wait: when all is done, so that nothing wakes the thread
        [future.result() for future in arguments[0]]
        time.sleep(0.2)
    pools._threads_wakeups.clear()
    raise KeyboardInterrupt

pools.ProcessPoolExecutor.shutdown = jobs.wait = interrupted
work = jobs.Job('a', functools.partial(time.sleep, 0))
raise SystemExit(jobs.run_jobs('it', [work], jobs.Schedule(workers=2)).exit_code)
"""
        assert run('-c', code, cwd=tmp_path, timeout=120).returncode == 130

    @pytest.mark.parametrize('workers', [0, 1])
    def test_what_cannot_be_written_ends_the_run(self, workers):
        jobs = [Job(str(task), partial(double, task)) for task in ('full', *range(20))]
        summary = run_jobs('test', jobs, Schedule(workers))
        assert [*summary.failed] == ['full']
        assert len(summary.results) < 20
        assert summary.exit_code == 1

    def test_shards_are_disjoint_and_complete(self):
        jobs = [Job(str(i), partial(double, i)) for i in range(11)]
        parts = [set(run_jobs('test', jobs, Schedule(shard=(i, 3))).results) for i in (1, 2, 3)]
        assert sorted(len(part) for part in parts) == [3, 4, 4]
        assert set.union(*parts) == {str(i) for i in range(11)}

    @pytest.mark.parametrize('text', ['0/2', '3/2', '1', 'a/b', '-1/2', '1/0'])
    def test_impossible_shards_are_refused(self, text):
        with pytest.raises(ValueError, match='--shard must be i/n'):
            parse_shard(text)

    def test_an_output_older_than_its_source_is_not_done(self, tmp_path):
        source, output = tmp_path / 'source', tmp_path / 'output'
        source.touch()
        output.touch()
        job = Job('item', partial(double, 1), (source,), (output,))
        os.utime(output, ns=(10**9, 10**9))
        os.utime(source, ns=(10**9, 10**9))
        assert job.is_done
        os.utime(source, ns=(2 * 10**9, 2 * 10**9))
        assert not job.is_done
        os.utime(source, (2**33, 2**33))  # a clock that is wrong must not make work for ever
        assert job.is_done


class TestLR:
    def test_every_scale_is_the_bicubic_of_the_cropped_hr(self, hr, tmp_path):
        assert make_lr(hr, tmp_path / 'LR', hr_out=tmp_path / 'HRmod12').exit_code == 0
        for source in sorted(hr.glob('*.png')):
            img = read_image(source)
            cropped = img[: img.shape[0] // 12 * 12, : img.shape[1] // 12 * 12]
            np.testing.assert_array_equal(read_image(tmp_path / 'HRmod12' / source.name), cropped)
            for scale in (2, 3, 4):
                ours = read_image(tmp_path / 'LR' / f'X{scale}' / source.name)
                np.testing.assert_array_equal(ours, imresize(cropped, scale=1 / scale))

    def test_an_image_that_would_lose_pixels_is_an_error_without_a_place_for_the_cropped_one(self, hr, tmp_path):
        summary = make_lr(hr, tmp_path / 'LR')
        assert list(summary.failed) == [str(hr / '0002.png')]
        assert '61x50 is not a multiple of 12' in summary.failed[str(hr / '0002.png')]
        assert sorted(p.name for p in (tmp_path / 'LR' / 'X3').glob('*.png')) == ['0000.png', '0001.png']

    def test_names_follow_the_templates(self, hr, tmp_path):
        make_lr(
            hr,
            tmp_path,
            scales=(4,),
            modulus=12,
            hr_out=tmp_path / 'GTmod12',
            folder_tmpl='LRbicx{scale}',
            filename_tmpl='{}x{scale}',
        )
        assert (tmp_path / 'LRbicx4' / '0001x4.png').is_file()
        assert read_image(tmp_path / 'LRbicx4' / '0002x4.png').shape == (15, 12, 3)

    @pytest.mark.parametrize('shape', [(24, 36), (24, 36, 3)])
    def test_16_bit_stays_16_bit(self, tmp_path, shape):
        img = noise(*shape, dtype=np.uint16)
        write_png(tmp_path / 'HR' / 'a.png', img)
        assert make_lr(tmp_path / 'HR', tmp_path / 'LR').exit_code == 0
        ours = read_image(tmp_path / 'LR' / 'X2' / 'a.png')
        assert ours.dtype == np.uint16
        np.testing.assert_array_equal(ours, imresize(img, scale=1 / 2))

    def test_transparency_is_refused_by_name_or_dropped(self, tmp_path):
        img = noise(24, 24, 4)
        write_png(tmp_path / 'HR' / 'a.png', img)
        refused = make_lr(tmp_path / 'HR', tmp_path / 'LR')
        assert 'has an alpha channel' in refused.failed[str(tmp_path / 'HR' / 'a.png')]
        assert make_lr(tmp_path / 'HR', tmp_path / 'LR2', alpha='drop').exit_code == 0
        np.testing.assert_array_equal(
            read_image(tmp_path / 'LR2' / 'X4' / 'a.png'), imresize(img[:, :, :3], scale=1 / 4)
        )

    def test_unreadable_and_tiny_images_are_named(self, hr, tmp_path):
        (hr / 'broken.png').write_bytes(b'no image')
        write_png(hr / 'tiny.png', noise(8, 30, 3))
        failed = make_lr(hr, tmp_path / 'LR', hr_out=tmp_path / 'HR12').failed
        assert 'cannot be read' in failed[str(hr / 'broken.png')]
        assert 'at least 12 pixels, got 8x30' in failed[str(hr / 'tiny.png')]
        assert len(failed) == 2

    def test_a_second_run_does_nothing_and_a_lost_file_is_made_again(self, hr, tmp_path):
        options = {'hr_out': tmp_path / 'HR12', 'scales': (2, 4)}
        assert make_lr(hr, tmp_path / 'LR', **options).done == 3
        before = tree(tmp_path)
        again = make_lr(hr, tmp_path / 'LR', **options)
        assert (again.done, again.skipped) == (0, 3)
        (tmp_path / 'LR' / 'X2' / '0001.png').unlink()
        assert make_lr(hr, tmp_path / 'LR', **options).done == 1
        assert tree(tmp_path) == before

    def test_a_dry_run_writes_nothing(self, hr, tmp_path):
        before = tree(tmp_path)
        summary = make_lr(hr, tmp_path / 'LR', schedule=Schedule(dry_run=True))
        assert summary.planned == 3
        assert f'would do: {hr / "0000.png"}' in summary.lines()
        assert tree(tmp_path) == before
        assert not (tmp_path / 'LR').exists()

    def test_workers_and_shards_give_the_same_bytes(self, hr, tmp_path):
        make_lr(hr, tmp_path / 'a', hr_out=tmp_path / 'a' / 'HR')
        make_lr(hr, tmp_path / 'b', hr_out=tmp_path / 'b' / 'HR', schedule=Schedule(1, shard=(1, 2)))
        make_lr(hr, tmp_path / 'b', hr_out=tmp_path / 'b' / 'HR', schedule=Schedule(1, shard=(2, 2)))
        assert tree(tmp_path / 'a') == tree(tmp_path / 'b')

    @pytest.mark.parametrize(
        ('options', 'words'),
        [
            ({'scales': (0,)}, 'scales must be positive'),
            ({'scales': (2, 3), 'modulus': 4}, 'modulus must be a multiple'),
            ({'alpha': 'maybe'}, 'alpha must be'),
            ({'folder_tmpl': 'LR'}, 'folder-tmpl must hold'),
        ],
    )
    def test_impossible_options_are_refused(self, hr, tmp_path, options, words):
        with pytest.raises(ValueError, match=words):
            make_lr(hr, tmp_path / 'LR', **options)

    @pytest.mark.parametrize('suffix', ['.bmp', '.jpg', '.PNG'])
    def test_hr_files_under_whose_names_the_host_finds_no_lr_need_a_copy(self, tmp_path, suffix):
        hr = tmp_path / 'HR'
        hr.mkdir()
        image = hr / f'a{suffix}'
        assert cv2.imwrite(str(image), noise(24, 36, 3))
        with pytest.raises(ValueError, match=rf'a\{suffix}: .* give --hr-out'):
            make_lr(hr, tmp_path / 'LR', scales=(4,))
        assert not (tmp_path / 'LR').exists()
        assert make_lr(hr, tmp_path / 'LR', scales=(4,), hr_out=tmp_path / 'GT').exit_code == 0
        pair = TestForTheHost.dataset(tmp_path / 'GT', tmp_path / 'LR' / 'X4')[0]
        assert pair['lq'].shape == (3, 6, 9)

    def test_two_files_of_one_stem_are_refused(self, hr, tmp_path):
        cv2.imwrite(str(hr / '0001.bmp'), noise(12, 12, 3))
        with pytest.raises(ValueError, match='would both be written'):
            make_lr(hr, tmp_path / 'LR', hr_out=tmp_path / 'GT')


class TestSubimages:
    def test_positions_cover_a_side_and_end_flush(self):
        assert positions(1020, 480, 240) == [0, 240, 480, 540]  # by hand
        assert positions(960, 480, 240) == [0, 240, 480]
        assert positions(1020, 480, 240, thresh=60) == [0, 240, 480]
        assert positions(480, 480, 240) == [0]

    def test_crops_go_row_by_row_and_are_numbered_from_one(self, hr, tmp_path):
        assert make_subimages(hr, tmp_path / 'sub', crop=24, step=16).exit_code == 0
        img = read_image(hr / '0000.png')  # 48 x 60: rows 0, 16, 24; columns 0, 16, 32, 36
        names = sorted(p.name for p in (tmp_path / 'sub').glob('0000*'))
        assert names == [f'0000_s{i:03d}.png' for i in range(1, 13)]
        np.testing.assert_array_equal(read_image(tmp_path / 'sub' / '0000_s007.png'), img[16:40, 32:56])

    def test_hr_and_lr_cuts_belong_together(self, hr, tmp_path):
        make_lr(hr, tmp_path / 'LR', hr_out=tmp_path / 'HR12', filename_tmpl='{}x{scale}')
        make_subimages(tmp_path / 'HR12', tmp_path / 'HRsub', crop=24, step=12)
        counts = {len(list((tmp_path / 'HRsub').glob('*.png')))}
        for scale in (2, 3, 4):
            make_subimages(tmp_path / 'LR' / f'X{scale}', tmp_path / f'X{scale}sub', scale=scale, crop=24, step=12)
            counts.add(len(list((tmp_path / f'X{scale}sub').glob('*.png'))))
            report = verify(tmp_path / 'HRsub', tmp_path / f'X{scale}sub', scale=scale, border=2)
            assert report.exit_code == 0, report.failed
        assert counts == {12 + 10 + 12}  # 48x60: 3x4, 36x72: 2x5, 60x48: 4x3

    def test_a_too_small_image_is_named_and_the_others_are_cut(self, hr, tmp_path):
        summary = make_subimages(hr, tmp_path / 'sub', crop=48, step=24)
        assert list(summary.failed) == [str(hr / '0001.png')]
        assert 'at least the crop size 48, got 36' in summary.failed[str(hr / '0001.png')]
        assert summary.done == 2

    def test_a_crop_that_the_scale_does_not_divide_is_refused(self, hr, tmp_path):
        with pytest.raises(ValueError, match='multiples of the scale 3'):
            make_subimages(hr, tmp_path / 'sub', scale=3, crop=32, step=16)


class TestForTheHost:
    @pytest.fixture
    def pair(self, hr, tmp_path):
        make_lr(hr, tmp_path / 'LR', scales=(4,), modulus=12, hr_out=tmp_path / 'GT')
        return tmp_path / 'GT', tmp_path / 'LR' / 'X4'

    @staticmethod
    def dataset(gt, lq, backend='disk', **options):
        from basicsr.data import build_dataset

        return build_dataset(
            {
                'name': 'test',
                'type': 'PairedImageDataset',
                'dataroot_gt': str(gt),
                'dataroot_lq': str(lq),
                'io_backend': {'type': backend},
                'scale': 4,
                'phase': 'val',
                **options,
            }
        )

    def check(self, dataset, gt, lq):
        assert len(dataset) == 3
        for i in range(3):
            item = dataset[i]
            name = Path(item['gt_path']).stem
            for key, folder in (('gt', gt), ('lq', lq)):
                img = read_image(folder / f'{name}.png')[:, :, ::-1].transpose(2, 0, 1)
                np.testing.assert_array_equal(item[key].numpy(), img.astype(np.float32) / 255)

    def test_folders(self, pair):
        self.check(self.dataset(*pair), *pair)

    def test_meta_info(self, pair, tmp_path):
        assert make_meta_info(pair[0], tmp_path / 'meta.txt').exit_code == 0
        assert (tmp_path / 'meta.txt').read_text() == '0000.png (48,60,3)\n0001.png (36,72,3)\n0002.png (60,48,3)\n'
        self.check(self.dataset(*pair, meta_info_file=str(tmp_path / 'meta.txt')), *pair)

    @pytest.mark.parametrize('name', ['img (3)', ' a', 'a\nb', 'a\x85b', 'a\udcff'])
    def test_meta_info_refuses_names_that_the_host_would_not_read_back(self, pair, tmp_path, name):
        try:
            (pair[0] / '0001.png').rename(pair[0] / f'{name}.png')
        except (OSError, UnicodeEncodeError) as error:
            pytest.skip(f'a file system without such names: {error}')
        before = tree(tmp_path)
        with pytest.raises(ValueError, match='its name must be one word in UTF-8, as BasicSR reads up to'):
            make_meta_info(pair[0], tmp_path / 'meta.txt')
        assert tree(tmp_path) == before

    def test_names_with_letters_of_any_language_are_read_back(self, pair, tmp_path):
        for folder in pair:
            (folder / '0001.png').rename(folder / 'Übung\u00a0(3)\u4e00.png')
        make_meta_info(pair[0], tmp_path / 'meta.txt')
        self.check(self.dataset(*pair, meta_info_file=str(tmp_path / 'meta.txt')), *pair)

    def test_names_with_spaces_are_read_back_from_an_lmdb(self, pair, tmp_path):
        for folder in pair:
            (folder / '0001.png').rename(folder / 'img (3).png')
            make_lmdb(folder, tmp_path / f'{folder.name}.lmdb')
        self.check(self.dataset(tmp_path / 'GT.lmdb', tmp_path / 'X4.lmdb', 'lmdb'), *pair)

    def test_line_ends_in_names_are_refused_for_lmdb(self, pair, tmp_path):
        (pair[0] / '0001.png').rename(pair[0] / 'a\rb.png')
        with pytest.raises(ValueError, match='its name must be ASCII without dots or line ends'):
            make_lmdb(pair[0], tmp_path / 'GT.lmdb')

    def test_every_form_has_the_order_of_the_folder(self, tmp_path):
        for name in ('img', 'img-2', 'img 3', 'img3', 'b'):
            write_png(tmp_path / 'HR' / f'{name}.png', noise(8, 8, 3))
        make_lmdb(tmp_path / 'HR', tmp_path / 'HR.lmdb')
        make_pack(tmp_path / 'HR', tmp_path / 'HR.pack')
        make_pack(tmp_path / 'HR.lmdb', tmp_path / 'lmdb.pack')
        expected = [file.stem for file in sorted((tmp_path / 'HR').iterdir())]
        assert expected == ['b', 'img 3', 'img-2', 'img', 'img3']
        pairs = list_pairs('x', dict.fromkeys(('dataroot_gt', 'dataroot_lq'), str(tmp_path / 'HR')))
        assert [Path(pair.gt).stem for pair in pairs] == expected
        meta = (tmp_path / 'HR.lmdb' / 'meta_info.txt').read_text().splitlines()
        assert [line.split('.png')[0] for line in meta] == expected
        assert Pack(tmp_path / 'HR.pack').names == Pack(tmp_path / 'lmdb.pack').names == expected
        assert make_lmdb(tmp_path / 'HR', tmp_path / 'HR.lmdb').skipped == 5
        assert make_pack(tmp_path / 'HR', tmp_path / 'HR.pack').skipped == 5

    def test_lmdb(self, pair, tmp_path):
        gt, lq = tmp_path / 'GT.lmdb', tmp_path / 'X4.lmdb'
        assert make_lmdb(pair[0], gt).exit_code == make_lmdb(pair[1], lq).exit_code == 0
        self.check(self.dataset(gt, lq, 'lmdb'), *pair)

    def test_the_lmdb_holds_what_the_hosts_own_maker_writes(self, pair, tmp_path):
        from basicsr.utils.lmdb_util import make_lmdb_from_imgs

        names = sorted(p.name for p in pair[0].glob('*.png'))
        make_lmdb_from_imgs(str(pair[0]), str(tmp_path / 'host.lmdb'), names, [n[:-4] for n in names], map_size=2**20)
        make_lmdb(pair[0], tmp_path / 'ours.lmdb')
        assert sorted(p.name for p in (tmp_path / 'ours.lmdb').iterdir()) == ['data.mdb', 'lock.mdb', 'meta_info.txt']
        contents = []
        for name in ('host.lmdb', 'ours.lmdb'):
            with lmdb.open(str(tmp_path / name)) as env, env.begin() as transaction:
                contents.append(dict(transaction.cursor()))
        assert contents[0] == contents[1]
        assert len(contents[0]) == 3
        assert (tmp_path / 'host.lmdb' / 'meta_info.txt').read_bytes() == (
            tmp_path / 'ours.lmdb' / 'meta_info.txt'
        ).read_bytes()

    def test_dots_in_names_are_refused_for_lmdb(self, tmp_path):
        write_png(tmp_path / 'HR' / 'a.b.png', noise(9, 9, 3))
        with pytest.raises(ValueError, match=r'a\.b\.png: its name must be ASCII without dots'):
            make_lmdb(tmp_path / 'HR', tmp_path / 'a.lmdb')

    def test_the_lmdb_is_made_again_when_an_image_changed(self, pair, tmp_path):
        out = tmp_path / 'GT.lmdb'
        make_lmdb(pair[0], out)
        assert make_lmdb(pair[0], out).skipped == 3
        write_png(pair[0] / '0001.png', noise(24, 24, 3, seed=9))
        os.utime(out / 'data.mdb', (1, 1))
        assert make_lmdb(pair[0], out).done == 3
        assert verify(pair[0], out).exit_code == 0
        assert not list(tmp_path.glob('.*'))

    def test_lmdb_shards_encode_and_a_last_run_assembles(self, pair, tmp_path):
        make_lmdb(pair[0], tmp_path / 'whole.lmdb')
        first = make_lmdb(pair[0], tmp_path / 'GT.lmdb', schedule=Schedule(shard=(1, 2)))
        assert not (tmp_path / 'GT.lmdb').exists()
        assert 'other shards' in first.lines()[0]
        make_lmdb(pair[0], tmp_path / 'GT.lmdb', schedule=Schedule(shard=(2, 2)))
        assert tree(tmp_path / 'GT.lmdb') == tree(tmp_path / 'whole.lmdb')


class TestAtOnce:
    """Any number of runs may write one output; it ends whole, and nothing else stays."""

    @pytest.mark.parametrize('make', [make_lmdb, make_pack])
    def test_of_one_command(self, hr, tmp_path, make):
        suffix = {make_lmdb: 'lmdb', make_pack: 'pack'}[make]
        make(hr, tmp_path / f'whole.{suffix}')
        out = tmp_path / f'out.{suffix}'
        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(make, hr, out) for _ in range(8)]
        assert [future.result().failed for future in futures] == [{}] * 8
        found, expected = (
            tree(tmp_path / f'{name}.{suffix}') or (tmp_path / f'{name}.{suffix}').read_bytes()
            for name in ('out', 'whole')
        )
        assert found == expected
        assert make(hr, out).skipped == 3
        assert not list(tmp_path.glob('.*'))

    def test_of_other_settings(self, hr, tmp_path):
        with ThreadPoolExecutor(2) as threads:
            futures = [threads.submit(make_lmdb, hr, tmp_path / 'a.lmdb', compression=level) for level in (1, 9)]
        for future in futures:
            assert future.exception() is None or isinstance(future.exception(), WriteError)
        assert verify(hr, tmp_path / 'a.lmdb').exit_code == 0
        assert make_lmdb(hr, tmp_path / 'a.lmdb', compression=9).exit_code == 0
        assert not list(tmp_path.glob('.*'))


class TestVerify:
    @pytest.fixture
    def pair(self, hr, tmp_path):
        make_lr(hr, tmp_path / 'LR', hr_out=tmp_path / 'GT')
        return tmp_path / 'GT', tmp_path / 'LR' / 'X2'

    def only_failure(self, pair, **options):
        failed = verify(*pair, scale=2, **options).failed
        assert len(failed) == 1, failed
        return next(iter(failed.items()))

    def test_a_good_set_is_good_in_every_form(self, pair, tmp_path):
        make_lmdb(pair[0], tmp_path / 'GT.lmdb')
        make_pack(pair[1], tmp_path / 'X2.pack')
        for gt, lq in (pair, (tmp_path / 'GT.lmdb', pair[1]), (pair[0], tmp_path / 'X2.pack')):
            summary = verify(gt, lq, scale=2)
            assert summary.exit_code == 0, summary.failed
            assert list(summary.results.values()) == [0.0] * 3

    def test_one_changed_value_is_found_and_counted(self, pair):
        img = read_image(pair[1] / '0001.png')
        img[3, 4, 1] ^= 1
        write_png(pair[1] / '0001.png', img)
        name, reason = self.only_failure(pair)
        assert name.endswith('GT/0001.png')
        assert f'{1 / img.size:.4%} of the values of {pair[1] / "0001.png"} differ' in reason
        assert verify(*pair, scale=2, tolerance=1.5 / img.size).exit_code == 0
        assert verify(*pair, scale=2, bicubic=False).exit_code == 0

    def test_changes_along_the_border_give_a_hint(self, pair):
        img = read_image(pair[1] / '0001.png')
        img[0, 4, 1] ^= 1
        write_png(pair[1] / '0001.png', img)
        assert 'give --border 2' in self.only_failure(pair)[1]
        assert verify(*pair, scale=2, border=2).exit_code == 0

    def test_missing_partners_are_named(self, pair):
        (pair[1] / '0000.png').unlink()
        assert self.only_failure(pair) == (str(pair[0] / '0000.png'), f"has no LR image '0000' in {pair[1]}")
        (pair[0] / '0000.png').rename(pair[0] / 'other.png')
        (pair[0] / 'other.png').unlink()
        write_png(pair[1] / 'alone.png', noise(9, 9, 3))
        assert self.only_failure(pair) == (str(pair[1] / 'alone.png'), f'has no HR image in {pair[0]}')

    def test_suffixes_that_the_host_does_not_pair_are_named(self, pair):
        cv2.imwrite(str(pair[0] / '0001.bmp'), read_image(pair[0] / '0001.png'))
        (pair[0] / '0001.png').unlink()
        name, reason = self.only_failure(pair)
        assert name == str(pair[0] / '0001.bmp')
        assert f'has another suffix than its LR image {pair[1] / "0001.png"}' in reason

    def test_a_border_that_leaves_nothing_is_an_error(self, pair):
        write_png(pair[1] / '0000.png', noise(24, 30, 3, seed=7))
        for border in (12, 500):
            failed = verify(*pair, scale=2, border=border).failed
            assert f'a border of {border} leaves nothing of the 24x30 pixels' in failed[str(pair[0] / '0000.png')]
        assert len(failed) == 3
        assert 'differ from the bicubic' in self.only_failure(pair, border=5)[1]
        assert verify(*pair, scale=2, border=500, bicubic=False).exit_code == 0  # nothing is compared

    def test_the_hint_of_a_border_needs_something_inside(self, tmp_path):
        write_png(tmp_path / 'GT' / 'a.png', noise(8, 8, 3))
        write_png(tmp_path / 'X2' / 'a.png', noise(4, 4, 3, seed=1))
        reason = self.only_failure((tmp_path / 'GT', tmp_path / 'X2'))[1]
        assert 'differ from the bicubic' in reason
        assert '--border' not in reason

    def test_wrong_size_depth_and_broken_files_are_named(self, pair):
        write_png(pair[1] / '0000.png', noise(24, 29, 3))
        assert f'(60x48) must be 2 times the size of {pair[1] / "0000.png"} (29x24)' in self.only_failure(pair)[1]
        write_png(pair[1] / '0000.png', noise(24, 30))
        assert 'is uint8 with 3 channels, but' in self.only_failure(pair)[1]
        (pair[1] / '0000.png').write_bytes((pair[1] / '0001.png').read_bytes()[:40])
        assert 'X2/0000.png cannot be' in self.only_failure(pair)[1]


class TestPack:
    def test_pixels_and_names_come_back(self, hr, tmp_path):
        write_png(hr / 'gray.png', noise(10, 7))
        assert make_pack(hr, tmp_path / 'HR.pack').done == 4
        pack = Pack(tmp_path / 'HR.pack')
        assert pack.names == ['0000', '0001', '0002', 'gray']
        for i, name in enumerate(pack.names):
            img = read_image(hr / f'{name}.png')
            expected = img[None] if img.ndim == 2 else img[:, :, ::-1].transpose(2, 0, 1)
            np.testing.assert_array_equal(pack.image(i), expected)
        np.testing.assert_array_equal(pack.crop(1, 5, 7, 20, 30), pack.image(1)[:, 5:25, 7:37])
        assert list(pack.damaged()) == []

    def test_the_header_is_the_same_on_every_machine(self, tmp_path):
        write_png(tmp_path / 'HR' / 'a.png', noise(5, 6))
        make_pack(tmp_path / 'HR', tmp_path / 'HR.pack')
        data = (tmp_path / 'HR.pack').read_bytes()
        # by hand: magic; version 1, records of 24; one image; index behind 64 + 64; names 24 later; one letter
        assert data[:48] == b'EFFSRPAK' + b''.join(
            n.to_bytes(size, 'little') for n, size in [(1, 4), (24, 4), (1, 8), (128, 8), (152, 8), (153, 8)]
        )
        assert data[128:144] == b''.join(n.to_bytes(size, 'little') for n, size in [(64, 8), (5, 4), (6, 4)])

    def test_a_truncated_pack_is_refused(self, hr, tmp_path):
        make_pack(hr, tmp_path / 'HR.pack')
        data = (tmp_path / 'HR.pack').read_bytes()
        (tmp_path / 'cut.pack').write_bytes(data[:-10])
        with pytest.raises(PackError, match=f'holds {len(data) - 10} bytes where its header says {len(data)}'):
            Pack(tmp_path / 'cut.pack')

    def test_foreign_newer_and_damaged_packs_are_refused(self, hr, tmp_path):
        make_pack(hr, tmp_path / 'HR.pack')
        data = bytearray((tmp_path / 'HR.pack').read_bytes())
        path = tmp_path / 'other.pack'
        for change, words in [
            (b'PK\3\4' + data[4:], 'is not a pack'),
            (b'', 'is not a pack'),
            (data[:8] + b'\2' + data[9:], 'has pack version 2'),
            (data[:-1] + b'?', 'index does not match its checksum'),
            (data[:24] + b'\xff' + data[25:], 'contradicts itself|does not match'),
        ]:
            path.write_bytes(change)
            with pytest.raises(PackError, match=words):
                Pack(path)
        with pytest.raises(FileNotFoundError, match='no such pack'):
            Pack(tmp_path / 'absent.pack')

    def test_damaged_pixels_are_found(self, hr, tmp_path):
        make_pack(hr, tmp_path / 'HR.pack')
        data = bytearray((tmp_path / 'HR.pack').read_bytes())
        data[64 + 48 * 60 * 3 + 100] ^= 1  # inside the second image
        (tmp_path / 'HR.pack').write_bytes(data)
        assert list(Pack(tmp_path / 'HR.pack').damaged()) == ['0001']
        assert f'{tmp_path / "HR.pack"}:0001' in verify(tmp_path / 'HR.pack').failed

    def test_an_interrupted_run_goes_on_and_trusts_nothing_cut_off(self, hr, tmp_path):
        make_pack(hr, tmp_path / 'whole.pack')
        png = (hr / '0002.png').read_bytes()
        (hr / '0002.png').write_bytes(b'')
        assert make_pack(hr, tmp_path / 'HR.pack').failed  # its header cannot be read: nothing is begun
        assert not list(tmp_path.glob('.*'))
        (hr / '0002.png').write_bytes(png[:60] + bytes(40) + png[100:])  # the header can, the pixels cannot
        assert list(make_pack(hr, tmp_path / 'HR.pack').failed) == [str(hr / '0002.png')]
        assert not (tmp_path / 'HR.pack').exists()
        (hr / '0002.png').write_bytes(png)
        (staged,) = tmp_path.glob('.HR.pack.*/0.planes')
        staged.write_bytes(staged.read_bytes()[:-1])  # as after a loss of power
        with pytest.raises(WriteError, match='cut off'):
            make_pack(hr, tmp_path / 'HR.pack')
        summary = make_pack(hr, tmp_path / 'HR.pack')
        assert (summary.done, summary.skipped) == (1, 2)
        assert (tmp_path / 'HR.pack').read_bytes() == (tmp_path / 'whole.pack').read_bytes()
        assert not list(tmp_path.glob('.*'))

    def test_an_unfinished_pack_of_other_images_is_not_continued(self, hr, tmp_path):
        png = (hr / '0002.png').read_bytes()
        (hr / '0002.png').write_bytes(png[:60])
        make_pack(hr, tmp_path / 'HR.pack')
        (hr / '0002.png').unlink()
        (hr / '0000.png').unlink()  # the journal speaks of positions that are gone
        assert make_pack(hr, tmp_path / 'HR.pack').done == 1
        assert verify(hr, tmp_path / 'HR.pack').exit_code == 0

    def test_an_interrupted_run_reads_again_what_changed_meanwhile(self, hr, tmp_path):
        png = (hr / '0002.png').read_bytes()
        (hr / '0002.png').write_bytes(png[:60] + bytes(40) + png[100:])
        assert make_pack(hr, tmp_path / 'HR.pack').done == 2
        (hr / '0002.png').write_bytes(png)
        write_png(hr / '0000.png', noise(48, 60, 3, seed=9))
        summary = make_pack(hr, tmp_path / 'HR.pack')
        assert (summary.done, summary.skipped) == (2, 1)
        assert verify(hr, tmp_path / 'HR.pack').exit_code == 0

    def test_what_a_pack_cannot_hold_is_refused_by_name(self, hr, tmp_path):
        write_png(hr / 'alpha.png', noise(9, 9, 4))
        failed = make_pack(hr, tmp_path / 'HR.pack').failed
        assert list(failed) == [str(hr / 'alpha.png')]
        assert '4 channels' in failed[str(hr / 'alpha.png')]
        write_png(hr / 'alpha.png', noise(9, 9, 3, dtype=np.uint16))
        assert '8 bit images, got uint16' in make_pack(hr, tmp_path / 'HR.pack').failed[str(hr / 'alpha.png')]

    @pytest.mark.parametrize('name', ['a\nb', 'a\udcff'])
    def test_a_name_that_a_pack_cannot_hold_is_told_before_the_pixels_are_stored(self, hr, tmp_path, name):
        try:
            (hr / '0001.png').rename(hr / f'{name}.png')
        except (OSError, UnicodeEncodeError) as error:
            pytest.skip(f'a file system without such names: {error}')
        summary = make_pack(hr, tmp_path / 'HR.pack')
        assert list(summary.failed) == [str(hr / f'{name}.png')]
        assert 'its name must be one line in UTF-8' in summary.failed[str(hr / f'{name}.png')]
        assert summary.notes == ['pack: nothing was written']
        assert sorted(p.name for p in tmp_path.iterdir()) == ['HR']

    def test_a_pack_in_the_order_of_earlier_versions_opens(self, tmp_path):
        images = {'img': noise(6, 7, 3), 'img-2': noise(5, 9, 3, seed=1)}
        records = packs.layout([img.shape for img in images.values()])
        records['crc32'] = [zlib.crc32(packs.to_planes(img)) for img in images.values()]
        tail = records.tobytes() + '\n'.join(images).encode()
        index = packs.end_of_images(records)
        sizes = (1, 24, 2, index, index + 48, index + len(tail), zlib.crc32(tail))
        header = struct.pack('<8sIIQQQQI12x', b'EFFSRPAK', *sizes)
        planes = [packs.to_planes(img).tobytes() for img in images.values()]
        pixels = planes[0].ljust(128, b'\0') + planes[1].ljust(192, b'\0')
        (tmp_path / 'old.pack').write_bytes(header + pixels + tail)
        pack = Pack(tmp_path / 'old.pack')
        assert pack.names == ['img', 'img-2']
        assert list(pack.damaged()) == []
        for i, img in enumerate(images.values()):
            np.testing.assert_array_equal(pack.image(i), img[:, :, ::-1].transpose(2, 0, 1))

    def test_shards_are_packs_of_their_own(self, hr, tmp_path):
        make_pack(hr, tmp_path / 'HR.pack', schedule=Schedule(shard=(1, 2)))
        make_pack(hr, tmp_path / 'HR.pack', schedule=Schedule(shard=(2, 2)))
        assert Pack(tmp_path / 'HR-1-of-2.pack').names == ['0000', '0002']
        assert Pack(tmp_path / 'HR-2-of-2.pack').names == ['0001']

    def test_memory_does_not_grow_with_what_was_read(self, tmp_path, monkeypatch):
        if not Path('/proc/self/smaps_rollup').exists():
            pytest.skip('needs /proc/self/smaps_rollup (Linux)')
        monkeypatch.setattr(packs, 'DROP_AFTER', 4 * 2**20)
        write_png(tmp_path / 'HR' / 'a.png', np.full((4000, 4000), 7, np.uint8))
        make_pack(tmp_path / 'HR', tmp_path / 'HR.pack')
        pack = Pack(tmp_path / 'HR.pack')

        def resident():
            return int(Path('/proc/self/smaps_rollup').read_text().split('Rss:')[1].split()[0])

        before, most = resident(), 0
        for top in range(0, 4000, 250):
            pack.crop(0, top, 0, 250, 4000).sum()
            most = max(most, resident())
        assert most - before < 10_000  # kB; the image has 16,000


class TestOriginals:
    """No command may write where its own input lies."""

    @pytest.mark.parametrize('way', ['plain', 'dots', 'symlink', 'folder_tmpl', 'linked images'])
    def test_lr_does_not_write_over_its_sources(self, tmp_path, way):
        hr, out, options = tmp_path / 'HR', tmp_path / 'LR', {'scales': (4,)}
        write_png(hr / 'a.png', noise(25, 26, 3))
        if way == 'folder_tmpl':
            options |= {'folder_tmpl': 'HR', 'modulus': 1, 'scales': (1,)}
            out = tmp_path
        elif way == 'linked images':
            (tmp_path / 'links').mkdir()
            (tmp_path / 'links' / 'b.png').symlink_to(hr / 'a.png')
            (tmp_path / 'links' / 'a.png').symlink_to(hr / 'a.png')
            options['hr_out'], hr = hr, tmp_path / 'links'
        else:
            (tmp_path / 'link').symlink_to(hr)
            options['hr_out'] = {'plain': hr, 'dots': tmp_path / 'LR' / '..' / 'HR', 'symlink': tmp_path / 'link'}[way]
        before = tree(tmp_path)
        with pytest.raises(ValueError, match='would be written over'):
            make_lr(hr, out, overwrite=True, **options)
        assert tree(tmp_path) == before

    def test_lr_keeps_its_own_folders_apart(self, hr, tmp_path):
        (tmp_path / 'X4').mkdir()
        (tmp_path / 'link').symlink_to(tmp_path / 'X4')
        with pytest.raises(ValueError, match='are one folder'):
            make_lr(hr, tmp_path, scales=(4,), hr_out=tmp_path / 'link', filename_tmpl='{}x4')
        assert not (tmp_path / 'X4' / '.prepared.json').exists()

    def test_subimages_do_not_go_where_the_images_are(self, hr, tmp_path):
        (tmp_path / 'link').symlink_to(hr)
        before = tree(tmp_path)
        for out in (hr, hr / '..' / 'HR', tmp_path / 'link'):
            with pytest.raises(ValueError, match='would be written over'):
                make_subimages(hr, out, crop=24, step=12)
        assert tree(tmp_path) == before

    def test_an_lmdb_does_not_replace_a_folder_of_images(self, hr, tmp_path):
        source = hr.rename(tmp_path / 'HR.lmdb')
        before = tree(tmp_path)
        with pytest.raises(ValueError, match=r"HR\.lmdb: holds '0000\.png'"):
            make_lmdb(source, source)
        (tmp_path / 'other.lmdb').mkdir()
        (tmp_path / 'other.lmdb' / 'thesis.txt').write_text('mine')
        with pytest.raises(ValueError, match=r"other\.lmdb: holds 'thesis\.txt'"):
            make_lmdb(source, tmp_path / 'other.lmdb', overwrite=True)
        assert set(tree(tmp_path)) == {*before, 'other.lmdb/thesis.txt'}

    def test_a_pack_is_not_packed_again(self, hr, tmp_path):
        make_pack(hr, tmp_path / 'HR.pack')
        before = tree(tmp_path)
        with pytest.raises(ValueError, match=r'HR\.pack: is a pack already'):
            make_pack(tmp_path / 'HR.pack', tmp_path / 'HR.pack', overwrite=True)
        assert tree(tmp_path) == before

    def test_reports_and_lists_are_no_images(self, hr, tmp_path):
        before = tree(tmp_path)
        with pytest.raises(ValueError, match=r'0000\.png: is the name of an image'):
            make_meta_info(hr, hr / '0000.png')
        with pytest.raises(ValueError, match='is a folder'):
            make_meta_info(hr, tmp_path)
        result = TestCommandLine.run('verify', hr, '-j', 0, '--report', hr / '0000.png')
        assert result.exit_code != 0
        assert 'is the name of an image' in result.output
        assert tree(tmp_path) == before


class TestOverwrite:
    """An interrupted --overwrite must not leave a mixed data set that passes as finished."""

    @pytest.fixture
    def remade(self, hr, tmp_path):
        def lr(name, modulus, **options):
            return make_lr(hr, tmp_path / name, scales=(4,), modulus=modulus, hr_out=tmp_path / name / 'HR', **options)

        lr('LR', 4)
        lr('fresh', 24)
        return lr, tree(tmp_path / 'fresh')

    def test_an_interrupted_run_goes_on_without_the_word(self, hr, remade, tmp_path):
        lr, fresh = remade
        with pytest.raises(ValueError, match='made with modulus=4, now asked for modulus=24'):
            lr('LR', 24, schedule=Schedule(dry_run=True))
        assert lr('LR', 24, overwrite=True, schedule=Schedule(dry_run=True)).planned == 3
        png = (hr / '0001.png').read_bytes()
        (hr / '0001.png').write_bytes(b'')
        assert lr('LR', 24, overwrite=True).done == 2
        assert not (tmp_path / 'LR' / 'HR' / '0001.png').exists()
        (hr / '0001.png').write_bytes(png)
        os.utime(hr / '0001.png', (1, 1))
        assert lr('LR', 24).done == 1
        assert tree(tmp_path / 'LR') == fresh
        assert lr('LR', 24, overwrite=True).done == 3

    def test_one_shard_does_not_remove_the_files_of_all(self, remade, tmp_path):
        before = tree(tmp_path)
        with pytest.raises(ValueError, match='without --shard'):
            remade[0]('LR', 24, overwrite=True, schedule=Schedule(shard=(1, 2)))
        assert tree(tmp_path) == before

    def test_names_that_would_stay_beside_the_new_ones_are_refused(self, remade, hr, tmp_path):
        with pytest.raises(ValueError, match=r"made with filename_tmpl='{}', now asked for filename_tmpl='{}x4'"):
            remade[0]('LR', 4, filename_tmpl='{}x4', overwrite=True)
        make_subimages(hr, tmp_path / 'sub', crop=24, step=12)
        with pytest.raises(ValueError, match='made with scale=1, now asked for scale=4'):
            make_subimages(hr, tmp_path / 'sub', crop=24, step=12, scale=4, overwrite=True)

    @pytest.mark.parametrize('note', [b'', b'7', b'[1]', b'\xff'])
    def test_a_damaged_note_is_one_sentence(self, remade, tmp_path, note):
        (tmp_path / 'LR' / 'X4' / '.prepared.json').write_bytes(note)
        with pytest.raises(ValueError, match=r'prepared\.json: is damaged'):
            remade[0]('LR', 4)

    def test_sub_images_of_an_earlier_cut_go_and_others_stay(self, hr, tmp_path):
        out = tmp_path / 'sub'
        make_subimages(hr, tmp_path / 'fresh', crop=36, step=24)
        make_subimages(hr, out, crop=24, step=12)
        mine = ('0000_s01.png', '0000_s0999.png', '0000_sketch.png', 'other_s999.png', '0000_s999.jpg')
        for name in mine:
            (out / name).write_text('mine')
        make_subimages(hr, out, crop=36, step=24, overwrite=True)
        assert tree(out) == tree(tmp_path / 'fresh') | dict.fromkeys(mine, b'mine')
        write_png(hr / '0000.png', noise(36, 36, 3))
        assert make_subimages(hr, out, crop=36, step=24).done == 1
        assert [p.name for p in out.glob('0000_s00*')] == ['0000_s001.png']
        (hr / '0000.png').write_bytes(b'')
        assert len(make_subimages(hr, out, crop=36, step=24).failed) == 1
        assert (out / '0000_s001.png').exists()


class TestSample:
    def test_pairs_are_exact_and_the_held_out_are_not_trained_on(self, tmp_path):
        assert write_sample(tmp_path).done == 9
        for split, names in PHOTOGRAPHS.items():
            stems = sorted(Path(name).stem for name in names)
            for scale in (2, 3, 4):
                folder = tmp_path / split / 'LR_bicubic' / f'X{scale}'
                assert sorted(p.stem for p in folder.glob('*.png')) == stems
            summary = verify(tmp_path / split / 'HR', tmp_path / split / 'LR_bicubic' / 'X4', scale=4)
            assert summary.exit_code == 0, summary.failed
        assert not {*PHOTOGRAPHS['train']} & {*PHOTOGRAPHS['val']}

    def test_a_second_run_mends_and_keeps(self, tmp_path):
        write_sample(tmp_path, scales=(4,))
        before = tree(tmp_path)
        lost = tmp_path / 'val' / 'LR_bicubic' / 'X4' / 'chelsea.png'
        lost.unlink()
        again = write_sample(tmp_path, scales=(4,))
        assert (again.done, again.skipped) == (1, 8)
        assert tree(tmp_path) == before

    def test_packs_hold_the_same_photographs(self, tmp_path):
        write_sample(tmp_path, scales=(4,), pack=True)
        train = tmp_path / 'train'
        assert verify(train / 'HR.pack', train / 'LR_bicubic' / 'X4.pack', scale=4).done == 7
        assert verify(train / 'HR', train / 'HR.pack').exit_code == 0

    def test_a_dry_run_writes_nothing(self, tmp_path):
        assert write_sample(tmp_path / 's', pack=True, schedule=Schedule(dry_run=True)).planned == 9
        assert not (tmp_path / 's').exists()
        write_sample(tmp_path / 's', scales=(4,))
        (tmp_path / 's' / 'val' / 'HR' / 'chelsea.png').unlink()
        before = tree(tmp_path)
        for overwrite, planned in ((False, 1), (True, 9)):
            dry = write_sample(tmp_path / 's', scales=(4,), overwrite=overwrite, schedule=Schedule(dry_run=True))
            assert dry.planned == planned
        assert tree(tmp_path) == before

    def test_a_scale_that_does_not_fit_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match='must divide 12'):
            write_sample(tmp_path, scales=(5,))


class TestCommandLine:
    @staticmethod
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    def test_the_chain_from_photographs_to_packs(self, tmp_path):
        write_sample(tmp_path / 's', scales=(4,))
        hr, lr = tmp_path / 's' / 'val' / 'HR', tmp_path / 's' / 'val' / 'LR_bicubic' / 'X4'
        for words in (
            ('lr', hr, tmp_path / 'lr', '--scales', '2,4'),
            ('subimages', hr, tmp_path / 'sub', '--crop', 240, '--step', 120),
            ('subimages', lr, tmp_path / 'sub4', '--scale', 4, '--crop', 240, '--step', 120),
            ('meta-info', tmp_path / 'sub', tmp_path / 'meta.txt'),
            ('lmdb', tmp_path / 'sub', tmp_path / 'sub.lmdb'),
            ('pack', tmp_path / 'sub.lmdb', tmp_path / 'sub.pack'),
            ('verify', tmp_path / 'sub.pack', tmp_path / 'sub4', '--scale', 4, '--border', 2),
        ):
            extra = () if words[0] == 'meta-info' else ('-j', 0)
            result = self.run(*words, *extra)
            assert result.exit_code == 0, result.output
            assert '0 failed' in result.output
        assert len((tmp_path / 'meta.txt').read_text().splitlines()) == len(Pack(tmp_path / 'sub.pack'))

    def test_failures_end_in_exit_code_1_and_a_report(self, hr, tmp_path):
        result = self.run('verify', hr, hr, '--scale', 2, '-j', 0, '--report', tmp_path / 'report.json')
        assert result.exit_code == 1
        assert '3 failed' in result.output
        assert len(json.loads((tmp_path / 'report.json').read_text())['failed']) == 3

    @pytest.mark.parametrize(
        ('words', 'message'),
        [
            (('lr', 'absent', 'out'), 'absent: no such folder'),
            (('lr', 'absent', 'out', '--scales', 'two'), '--scales must be integers'),
            (('subimages', 'absent', 'out', '--shard', '5/4'), '--shard must be i/n'),
            (('download', 'DIV3K'), 'is not in the table'),
            (('pack', 'absent', 'out.bin'), 'must end in .pack'),
            (('lr', 'HR', 'out', '--filename-tmpl', '{1}'), 'lr: --filename-tmpl must hold {} for the HR stem'),
            (('lr', 'HR', 'out', '--filename-tmpl', '{name}'), "may hold {scale}, got '{name}'"),
            (('lr', 'HR', 'out', '--filename-tmpl', '{'), "may hold {scale}, got '{'"),
            (('lr', 'HR', 'out', '--filename-tmpl', 'x'), 'lr: --filename-tmpl must hold {} for the HR stem'),
            (('lr', 'HR', 'out', '--filename-tmpl', '../{}'), 'must give a plain file name'),
            (('lr', 'HR', 'out', '--filename-tmpl', '{0.a}'), "may hold {scale}, got '{0.a}'"),
            (('lr', 'HR', 'out', '--filename-tmpl', '{:d}'), "may hold {scale}, got '{:d}'"),
            (('lr', 'HR', 'out', '--folder-tmpl', '{}'), "lr: --folder-tmpl must hold {scale}, got '{}'"),
            (('lr', 'HR', 'out', '--folder-tmpl', '{x'), "lr: --folder-tmpl must hold {scale}, got '{x'"),
            (('lr', 'HR', 'out', '--folder-tmpl', 'LR'), "lr: --folder-tmpl must hold {scale}, got 'LR'"),
            (('lr', 'HR', 'out', '--folder-tmpl', '../X{scale}'), 'must stay below the folder'),
            (('lr', 'HR', 'out', '--scales', '2,2'), 'scales must be different, got 2, 2'),
            (('verify', 'HR', 'HR', '--filename-tmpl', '{1}'), 'verify: --filename-tmpl must hold {} for the HR stem'),
            (('download', 'LSDIR', '--archives', 'nope'), 'download: --archives nope: no such folder'),
            (('download', 'DIV2K', '--sources', 'nope'), 'nope: no such file'),
            (('download', '--sources', 'nope'), 'nope: no such file'),
        ],
    )
    def test_wrong_words_end_in_one_sentence(self, words, message, hr, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = self.run(*words)
        assert result.exit_code == 2
        assert message in result.output
        assert result.output.count('\n') == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ['HR']

    def test_an_error_of_the_system_is_shown_without_its_number(self, hr, tmp_path):
        (tmp_path / 'out').write_text('a file')
        result = self.run('subimages', hr, tmp_path / 'out' / 'sub', '--crop', 24, '--step', 12, '-j', 0)
        assert result.exit_code == 2
        assert str(tmp_path / 'out' / 'sub') in result.output
        assert 'Not a directory' in result.output
        assert 'Errno' not in result.output

    @pytest.mark.parametrize(
        ('name', 'encoding', 'shown'),
        [
            ('a\udcff', 'utf-8', r'a\udcff'),
            ('a\nb', 'utf-8', r'a\nb'),
            ('a\x1b[31m', 'utf-8', r'a\x1b[31m'),
            ('Übung', 'utf-8', 'Übung'),
            ('Übung', 'ascii', r'\xdcbung'),
        ],
    )
    def test_names_that_are_no_text_are_shown_nevertheless(self, hr, tmp_path, name, encoding, shown):
        """Started as a process: the runner of the tests takes any letter."""
        try:
            (hr / f'{name}.png').write_bytes(b'no image')
        except (OSError, UnicodeEncodeError) as error:
            pytest.skip(f'a file system without such names: {error}')
        words = (('verify', hr, '-j', '0'), ('meta-info', hr, tmp_path / 'm.txt'), ('lmdb', hr, tmp_path / 'm.lmdb'))
        script = 'from datasets_prep.cli import app\n' + '\n'.join(
            f'app({[str(word) for word in command]!r}, standalone_mode=False)' for command in words
        )
        env = {**os.environ, 'PYTHONIOENCODING': encoding}
        done = subprocess.run([sys.executable, '-c', script], capture_output=True, env=env)
        said = (done.stdout + done.stderr).decode(encoding)
        assert 'Traceback' not in said
        assert f'failed: {hr}/{shown}.png: cannot be read' in said
        assert said.count(f'{hr}/{shown}.png: ') == 3

    def test_verify_knows_the_templates_of_lr(self, hr, tmp_path):
        words = ('--filename-tmpl', '{}x{scale}', '-j', 0)
        assert self.run('lr', hr, tmp_path, '--scales', 2, '--hr-out', tmp_path / 'GT', *words).exit_code == 0
        result = self.run('verify', tmp_path / 'GT', tmp_path / 'X2', '--scale', 2, *words)
        assert result.exit_code == 0, result.output

    def test_every_option_of_the_table_is_shown(self):
        result = self.run('download')
        assert result.exit_code == 0
        for name in ('DIV2K', 'Flickr2K', 'DF2K', 'LSDIR', 'Set5', 'Set14', 'B100', 'Urban100', 'Manga109'):
            assert name in result.output
        assert 'checksums known: 10 of 10 archives' in result.output  # DIV2K 8, Flickr2K, EDSR's benchmark

    def test_the_start_is_light(self):
        script = "import sys, datasets_prep.cli; print({'torch', 'cv2', 'numpy', 'basicsr'} & {*sys.modules})"
        done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == 'set()'
