"""The data set of pairs against the host's, draws that can be repeated, and a sampler that starts anywhere."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.registry import DATASET_REGISTRY

from basicsr_effsr.data.course import StagePlan
from basicsr_effsr.data.sampler import PlannedBatches, ResumableSampler, SampleIndex, draw, make_loader
from datasets_prep.lr import make_lr

TRAIN = {'name': 'unit', 'phase': 'train', 'scale': 3, 'gt_size': 24, 'use_hflip': True, 'use_rot': True}


@pytest.fixture
def pairs(tmp_path):
    """Five pairs of noise at x3, LR named with a suffix; HR sides differ and are not square."""
    generator = np.random.default_rng(0)
    for kind in ('HR', 'LR'):
        (tmp_path / kind).mkdir()
    for i, (height, width) in enumerate([(12, 15), (16, 9), (10, 11), (8, 8), (20, 13)]):
        lq = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        gt = generator.integers(0, 256, (3 * height, 3 * width, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'HR' / f'{i:02d}.png'), gt)
        cv2.imwrite(str(tmp_path / 'LR' / f'{i:02d}x3.png'), lq)
    return tmp_path


def build(pairs, kind: str = 'EffSRPairedDataset', **options):
    roots = {'dataroot_gt': str(pairs / 'HR'), 'dataroot_lq': str(pairs / 'LR')}
    if options.get('io_backend') != {'type': 'lmdb'}:
        roots['filename_tmpl'] = '{}x3'
    opt = copy.deepcopy({**TRAIN, **roots, 'io_backend': {'type': 'disk'}, **options})
    return DATASET_REGISTRY.get(kind)(opt)


def lmdb(pairs) -> dict:
    for kind, suffix in (('HR', ''), ('LR', 'x3')):
        files = sorted(f.name for f in (pairs / kind).iterdir())
        keys = [f.removesuffix('.png').removesuffix(suffix) for f in files]
        make_lmdb_from_imgs(str(pairs / kind), str(pairs / f'{kind}.lmdb'), files, keys, multiprocessing_read=False)
    roots = {f'dataroot_{key}': str(pairs / f'{kind}.lmdb') for key, kind in (('gt', 'HR'), ('lq', 'LR'))}
    return {**roots, 'io_backend': {'type': 'lmdb'}}


def close(client) -> None:
    """An LMDB can be open once in a process."""
    for environment in getattr(client.client, '_client', {}).values():
        environment.close()


class TestPairs:
    @pytest.mark.parametrize('source', ['folder', 'meta', 'lmdb'])
    @pytest.mark.parametrize('options', [{}, {'color': 'y'}, {'mean': [0.4, 0.5, 0.6], 'std': [0.2, 0.3, 0.1]}])
    def test_whole_images_are_the_hosts_bit_for_bit(self, pairs, source, options):
        options = {**options, 'phase': 'val'}
        if source == 'meta':
            (pairs / 'meta.txt').write_text('03.png (24,24,3)\n01.png (48,27,3)\n')
            options['meta_info_file'] = str(pairs / 'meta.txt')
        if source == 'lmdb':
            options |= lmdb(pairs)
        ours, theirs = build(pairs, **options), build(pairs, 'PairedImageDataset', **options)
        assert len(ours) == len(theirs) == (2 if source == 'meta' else 5)
        found = []
        for dataset in (theirs, ours):
            found.append({dataset[i]['gt_path']: dataset[i] for i in range(len(dataset))})  # the host does not sort
            if dataset is theirs:
                close(dataset.file_client)
        assert found[0].keys() == found[1].keys()
        for path, one in found[0].items():
            other = found[1][path]
            assert one.keys() == other.keys()
            assert one['lq_path'] == other['lq_path']
            assert torch.equal(one['gt'], other['gt'])
            assert torch.equal(one['lq'], other['lq'])

    def test_patches_are_what_was_drawn_and_lie_on_each_other(self, pairs):
        train, whole = build(pairs), build(pairs, phase='val')
        for position in range(40):
            index = SampleIndex(position % 5, 7, 2, position)
            item, source = train[index], whole[int(index)]
            drawn = draw(index, tuple(source['lq'].shape[1:]), 8, True, True)
            for key, factor in (('lq', 1), ('gt', 3)):
                top, left, side = (factor * value for value in (drawn.top, drawn.left, 8))
                expected = source[key][:, top : top + side, left : left + side]
                expected = expected.flip(2) if drawn.hflip else expected
                expected = expected.flip(1) if drawn.vflip else expected
                expected = expected.transpose(1, 2) if drawn.transpose else expected
                assert torch.equal(item[key], expected)
                assert item[key].is_contiguous()

    @pytest.mark.parametrize('scale', [2, 3, 4, 8])
    @pytest.mark.parametrize('phase', ['train', 'val'])
    def test_lr_images_made_of_hr_images_are_those_of_the_folder(self, tmp_path, scale, phase):
        """Pixel for pixel, also where sides are no multiples of the scale, which ``datasets_prep lr`` crops."""
        generator = np.random.default_rng(scale)
        for i, sides in enumerate([(97, 101), (64, 64), (71, 120)]):
            cv2.imwrite(str(tmp_path / f'{i}.png'), generator.choice([0, 9, 250, 255], (*sides, 3)).astype(np.uint8))
        make_lr(tmp_path, tmp_path / 'made', scales=(scale,), hr_out=tmp_path / 'cropped')
        options = {'phase': phase, 'scale': scale, 'gt_size': 6 * scale, 'uint8': True, 'filename_tmpl': '{}'}
        roots = {'dataroot_gt': str(tmp_path / 'cropped'), 'dataroot_lq': str(tmp_path / 'made' / f'X{scale}')}
        folder = build(tmp_path, **options | roots)
        for root in (tmp_path, tmp_path / 'cropped'):
            made = build(tmp_path, **options | {'dataroot_gt': str(root), 'dataroot_lq': 'bicubic'})
            assert len(made) == len(folder) == 3
            for position in range(90):
                index = SampleIndex(position % 3, 7, 2, position)
                one, other = folder[index], made[index]
                assert torch.equal(one['lq'], other['lq'])
                assert torch.equal(one['gt'], other['gt'])
                assert other['lq_path'] == other['gt_path'] == str(root / f'{position % 3}.png')

    def test_draws_reach_every_place_and_every_symmetry_evenly(self):
        drawn = [draw(SampleIndex(0, 0, 0, i), (10, 9), 8, True, True) for i in range(3000)]
        assert Counter(d.top for d in drawn).keys() == {0, 1, 2}
        assert Counter(d.left for d in drawn).keys() == {0, 1}
        seen = Counter((d.hflip, d.vflip, d.transpose) for d in drawn)
        assert len(seen) == 8
        assert all(300 < count < 450 for count in seen.values())  # 375 expected, 4 sigma = 72

    @pytest.mark.parametrize(
        ('use_hflip', 'use_rot', 'symmetries'), [(False, False, 1), (True, False, 2), (False, True, 4)]
    )
    def test_only_allowed_symmetries(self, use_hflip, use_rot, symmetries):
        drawn = [draw(SampleIndex(0, 0, 0, i), (8, 8), 8, use_hflip, use_rot) for i in range(100)]
        assert len({(d.hflip, d.vflip, d.transpose) for d in drawn}) == symmetries

    def test_draws_depend_on_seed_epoch_and_position_and_on_nothing_else(self):
        def drawn(*where):
            np.random.rand()
            return draw(SampleIndex(0, *where), (1000, 1000), 8, True, True)

        assert drawn(1, 2, 3) == drawn(1, 2, 3)
        assert len({drawn(1, 2, 3), drawn(0, 2, 3), drawn(1, 0, 3), drawn(1, 2, 0), drawn(2, 1, 3)}) == 5

    def test_the_source_is_never_changed(self, pairs, monkeypatch):
        """The host flips in place, which spoils whatever holds decoded images."""
        cache = {}
        decode = cv2.imdecode

        def cached(content, flag):
            return cache.setdefault(content.tobytes(), decode(content, flag))

        monkeypatch.setattr(cv2, 'imdecode', cached)
        train = build(pairs)
        train[SampleIndex(0, 0, 0, 0)]
        before = {key: image.copy() for key, image in cache.items()}
        for position in range(30):
            item = train[SampleIndex(0, 0, 0, position)]
            item['lq'].zero_()
            item['gt'].zero_()
        assert all(np.array_equal(image, before[key]) for key, image in cache.items())

    def test_bytes_are_the_same_picture(self, pairs):
        index = SampleIndex(1, 0, 0, 0)
        item, plain = build(pairs, uint8=True)[index], build(pairs)[index]
        assert item['gt'].dtype == torch.uint8
        assert torch.equal(item['gt'].float() / 255, plain['gt'])

    @pytest.mark.parametrize('backend', ['disk', 'lmdb'])
    def test_it_travels_to_another_process_after_use(self, pairs, backend):
        train = build(pairs, **(lmdb(pairs) if backend == 'lmdb' else {}))
        index = SampleIndex(2, 0, 0, 0)
        first = train[index]
        assert torch.equal(pickle.loads(pickle.dumps(train))[index]['gt'], first['gt'])

    @pytest.mark.parametrize(
        ('fault', 'error', 'words'),
        [
            ('no folder', FileNotFoundError, 'dataroot_lq: the folder .*nowhere does not exist'),
            ('missing', FileNotFoundError, r'dataroot_lq: .*LR/01x3\.png does not exist, .*HR/01\.png'),
            ('surplus', ValueError, r'dataroot_lq: .*77x3\.png'),
            ('empty', ValueError, 'dataroot_gt: .*empty holds no image'),
            ('no meta', FileNotFoundError, r'meta_info_file: .*none\.txt does not exist'),
            ('no lmdb', ValueError, 'dataroot_gt: .*LMDB'),
        ],
    )
    def test_what_is_wrong_is_said_at_the_start(self, pairs, fault, error, words):
        options = {}
        if fault == 'no folder':
            options = {'dataroot_lq': str(pairs / 'nowhere')}
        elif fault == 'missing':
            (pairs / 'LR' / '01x3.png').unlink()
        elif fault == 'surplus':
            cv2.imwrite(str(pairs / 'LR' / '77x3.png'), np.zeros((9, 9, 3), np.uint8))
        elif fault == 'empty':
            (pairs / 'empty').mkdir()
            options = {'dataroot_gt': str(pairs / 'empty')}
        elif fault == 'no meta':
            options = {'meta_info_file': str(pairs / 'none.txt')}
        elif fault == 'no lmdb':
            options = {'io_backend': {'type': 'lmdb'}}
        with pytest.raises(error, match=words):
            build(pairs, **options)

    @pytest.mark.parametrize(
        ('fault', 'options', 'words'),
        [
            ('unreadable', {}, r'LR/01x3\.png '),
            (None, {'scale': 2}, r'HR/01\.png \(27x48\) .*LR/01x3\.png \(9x16\)'),
            (None, {'gt_size': 30}, r'LR/01x3\.png \(9x16\) .*gt_size 30'),
        ],
    )
    def test_what_is_wrong_with_an_image_names_the_image(self, pairs, fault, options, words):
        if fault == 'unreadable':
            (pairs / 'LR' / '01x3.png').write_bytes(b'not a picture')
        with pytest.raises(ValueError, match=words):
            build(pairs, **options)[SampleIndex(1, 0, 0, 0)]


class Length:
    """A data set of numbers; remembers what it was asked for."""

    def __init__(self, length: int) -> None:
        self.length, self.asked = length, []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SampleIndex) -> tuple[int, int, int, int]:
        self.asked.append(index)
        return int(index), index.epoch, index.position, index.gt_size or 0


class TestSampler:
    @pytest.mark.parametrize('world', [1, 2, 3])
    @pytest.mark.parametrize('ratio', [1, 2.5])
    def test_the_order_is_the_hosts(self, world, ratio):
        for rank in range(world):
            ours, theirs = (kind(Length(7), world, rank, ratio) for kind in (ResumableSampler, EnlargedSampler))
            for epoch in (0, 3):
                ours.set_epoch(epoch)
                theirs.set_epoch(epoch)
                assert list(ours) == list(theirs)
                assert len(ours) == len(theirs)

    def test_indices_know_where_they_are_on_any_rank(self):
        ranks = [ResumableSampler(Length(6), 2, rank, 2, seed=9) for rank in (0, 1)]
        for sampler in ranks:
            sampler.set_epoch(4)
        indices = [list(sampler) for sampler in ranks]
        assert sorted(i.position for rank in indices for i in rank) == list(range(12))
        assert {(i.seed, i.epoch) for rank in indices for i in rank} == {(9, 4)}
        again = pickle.loads(pickle.dumps(indices[0][1]))
        assert (again, vars(again)) == (indices[0][1], vars(indices[0][1]))

    def test_an_epoch_can_be_begun_in_its_middle(self):
        def run(resumed, epochs):
            sampler = ResumableSampler(Length(10), 1, 0, 1, seed=1)
            batches = PlannedBatches(sampler, StagePlan(3), resumed)
            seen = []
            for epoch in epochs:
                sampler.set_epoch(epoch)
                seen += [[(int(i), i.epoch, i.position) for i in batch] for batch in batches]
            return seen

        straight = run((0, 0), range(3))
        assert len(straight) == 9, 'the incomplete fourth batch of ten is dropped'
        for done in range(10):
            epoch = min(done // 3, 2)
            assert run((epoch, done), range(epoch, 3)) == straight[done:]

    def test_a_resumed_run_draws_no_other_random_numbers(self):
        sampler = ResumableSampler(Length(4), 1, 0)
        loader = make_loader(Length(4), {'num_worker_per_gpu': 0}, PlannedBatches(sampler, StagePlan(2)))
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        sampler.set_epoch(0)
        next(iter(loader))
        assert torch.equal(torch.rand(1), expected)

    def test_too_small_an_epoch_names_the_ratio_that_helps(self):
        with pytest.raises(ValueError, match=r'\b5\b.*\b16\b.*\b4\b'):
            PlannedBatches(ResumableSampler(Length(5), 1, 0, 1), StagePlan(16))
        PlannedBatches(ResumableSampler(Length(5), 1, 0, 4), StagePlan(16))

    @pytest.mark.parametrize('workers', [0, 2])
    def test_workers_change_nothing(self, pairs, workers):
        def epoch_of(workers, epoch):
            sampler = ResumableSampler(train, 1, 0, 4, seed=3)
            loader = make_loader(train, {'num_worker_per_gpu': workers}, PlannedBatches(sampler, StagePlan(2)))
            sampler.set_epoch(epoch)
            return torch.cat([batch['gt'] for batch in loader])

        train = build(pairs)
        assert torch.equal(epoch_of(workers, 1), epoch_of(0, 1))
        assert not torch.equal(epoch_of(workers, 0), epoch_of(workers, 1))


PROGRESSIVE = {'gt_size': [9, 15, 24], 'iters': [3, 2, 2], 'batch': [4, 2, 1]}


class TestStages:
    def test_size_and_batch_follow_the_iteration_and_nothing_is_decoded_in_vain(self):
        data = Length(9)
        sampler = ResumableSampler(data, 1, 0, 1)
        loader = make_loader(data, {'num_worker_per_gpu': 0}, PlannedBatches(sampler, StagePlan(4, PROGRESSIVE)))
        shapes = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            shapes += [(len(batch[0]), batch[3].tolist()[0]) for batch in loader]
        # nine samples: 4 + 4, then one left that makes no batch of four; 4 + 2 + 2, then one of batch one
        assert shapes == [(4, 9), (4, 9), (4, 9), (2, 15), (2, 15), (1, 24)]
        assert len(data.asked) == sum(size for size, _ in shapes)
        assert all(len({(i.epoch, i.position) for i in data.asked if i.epoch == e}) == n for e, n in ((0, 8), (1, 9)))

    @pytest.mark.parametrize('done', [1, 2, 3, 4, 5])
    def test_a_stage_can_be_begun_in_its_middle(self, done):
        def run(resumed, epochs):
            sampler = ResumableSampler(Length(9), 1, 0, 1)
            batches = PlannedBatches(sampler, StagePlan(4, PROGRESSIVE), resumed)
            seen = []
            for epoch in epochs:
                sampler.set_epoch(epoch)
                seen += [[(int(i), i.position, i.gt_size) for i in batch] for batch in batches]
            return seen

        epoch = 0 if done < 2 else 1
        assert run((epoch, done), range(epoch, 3)) == run((0, 0), range(3))[done:]

    def test_patches_have_the_size_of_the_stage(self, pairs):
        train = build(pairs)
        sampler = ResumableSampler(train, 1, 0, 4)
        loader = make_loader(train, {'num_worker_per_gpu': 2}, PlannedBatches(sampler, StagePlan(4, PROGRESSIVE)))
        shapes = [tuple(batch['gt'].shape[i] for i in (0, 2, 3)) for batch in loader][:8]
        assert shapes == [(4, 9, 9)] * 3 + [(2, 15, 15)] * 2 + [(1, 24, 24)] * 3
