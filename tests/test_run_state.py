"""A state knows what wrote it: what a resume takes over, keeps or refuses; docs/training.md has the table."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path

import basicsr.train as host_loop
import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from runs import TINY_HASN, parsed, short_run, write

from basicsr_effsr.host import dry_run
from basicsr_effsr.host.loop import load_resume_state
from basicsr_effsr.models.run_state import RunState, read_side_file, recipe, side_file
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.stored import CheckpointError

NETWORK = {**TINY_HASN, 'num_block': 2, 'upscale': 2}
COSINE = {'type': 'CosineAnnealingRestartLR', 'periods': [100], 'restart_weights': [1]}


@pytest.fixture
def opt(tmp_path) -> dict:
    logging.getLogger('basicsr').setLevel(logging.ERROR)
    data = {'name': 'a', 'type': 'EffSRPairedDataset', 'gt_size': 36, 'dataroot_gt': 'HR', 'num_worker_per_gpu': 0}
    return parsed(tmp_path, NETWORK, data)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What the log was warned of."""
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger('basicsr'), 'warning', lines.append)
    return lines


def iterate(model, count: int, first: int = 1):
    for i in range(first, first + count):
        model.update_learning_rate(i)
        model.feed_data({'lq': torch.rand(2, 3, 18, 18), 'gt': torch.rand(2, 3, 36, 36)})
        model.optimize_parameters(i)
    return model


def with_option(opt: dict, place: str, value) -> dict:
    """A copy with another value at a dotted place; None takes the key out."""
    opt = copy.deepcopy(opt)
    section, _, key = place.rpartition('.')
    target = opt
    for part in filter(None, section.split('.')):
        target = target.setdefault(part, {})
    if value is None:
        del target[key]
    else:
        target[key] = value
    return opt


def saved(opt: dict) -> Path:
    """The state of two iterations."""
    iterate(build_model(copy.deepcopy(opt)), 2).save(0, 2)
    return Path(opt['path']['training_states']) / '2.state'


def resumed(opt: dict, state: Path):
    opt = copy.deepcopy(opt)
    opt['path']['resume_state'] = str(state)
    model = build_model(opt)
    model.resume_training(torch.load(state, weights_only=True))
    return model


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        ('network_g', {**NETWORK, 'num_block': 3}),
        ('network_g.num_feat', 16),
        ('network_g.type', 'IMDN'),
        ('train.optim_g.type', 'AdamW'),
        ('train.scheduler.type', 'CosineAnnealingRestartLR'),
        ('scale', 3),
        ('model_type', 'OtherModel'),
    ],
)
def test_another_run_is_refused_by_the_name_of_the_option(opt, place, value):
    run = RunState(made_with=recipe(opt))
    with pytest.raises(UserError, match=place):
        run.compare(recipe(with_option(opt, place, value)))


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        ('train.pixel_opt.loss_weight', 2.0),
        ('train.losses', {'l_two': {'type': 'MSELoss'}}),
        ('train.ema_decay', 0),
        ('train.ema_decay', None),
        ('train.grad_clip', 1.0),
        ('train.amp', 'bf16'),
        ('train.amp', 'fp16'),
        ('train.accumulate', 2),
        ('train.total_iter', 200),
        ('train.warmup_iter', 10),
        ('datasets.train.gt_size', 48),
        ('datasets.train.dataroot_gt', 'elsewhere'),
    ],
)
def test_what_is_taken_over_is_said_and_done(opt, said, place, value):
    state = saved(opt)
    changed = with_option(opt, place, value)
    model = resumed(changed, state)
    assert len(said) == 1
    assert said[0].startswith(place)
    iterate(model, 1, 3).save(0, 4)
    said.clear()
    resumed(changed, state.with_name('4.state'))
    assert not said, 'the next resume is of the run as it is now'


@pytest.mark.parametrize(
    ('place', 'value', 'kept'),
    [
        ('train.optim_g.lr', 5e-4, lambda model: model.optimizer_g.param_groups[0]['initial_lr'] == 1e-3),
        ('train.optim_g.betas', [0.5, 0.9], lambda model: model.optimizer_g.param_groups[0]['betas'][0] == 0.9),
        ('train.optim_g.weight_decay', 0.1, lambda model: model.optimizer_g.param_groups[0]['weight_decay'] == 0),
        ('train.scheduler.milestones', [50], lambda model: list(model.schedulers[0].milestones) == [3]),
        ('train.scheduler.gamma', 0.1, lambda model: model.schedulers[0].gamma == 0.5),
    ],
)  # fmt: skip
def test_what_is_kept_from_the_state_is_said_and_done(opt, said, place, value, kept):
    state = saved(opt)
    model = resumed(with_option(opt, place, value), state)
    assert [line.split(':')[0] for line in said] == [place]
    assert kept(model)


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        ('train.optim_g', {'type': 'SGD', 'lr': 0.1}),
        ('train.optim_g', {'type': 'Adamax', 'lr': 0.1}),
        ('train.optim_g', {'type': 'RMSprop', 'lr': 0.1}),
        ('train.scheduler', COSINE),
        ('network_g', {**NETWORK, 'num_block': 3}),
        ('network_g', {**NETWORK, 'num_feat': 16}),
    ],
)
@pytest.mark.parametrize('wrote', ['we', 'SRModel'])
def test_a_state_that_does_not_fit_is_refused_whoever_wrote_it(opt, place, value, wrote):
    state = saved(opt)
    if wrote == 'SRModel':  # which writes no side file
        side_file(state).unlink()
    with pytest.raises(UserError, match='network_g|train.optim_g' if place == 'network_g' else place):
        resumed(with_option(opt, place, value), state)


@pytest.mark.parametrize('kind', ['optimizers', 'schedulers'])
def test_another_number_of_optimizers_is_refused(opt, kind):
    state = saved(opt)
    stored = torch.load(state, weights_only=True)
    stored[kind] *= 2
    torch.save(stored, state)
    with pytest.raises(UserError, match='model_type'):
        resumed(opt, state)


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        ('network_g.num_in_ch', 3),
        ('train.scheduler.type', 'MultiStepRestartLR'),
        ('train.perceptual_opt', {}),
        ('datasets.train.num_worker_per_gpu', 4),
        ('datasets.train.name', 'b'),
        ('val.val_freq', 1),
    ],
)
def test_what_makes_no_difference_is_none(opt, place, value):
    run = RunState(made_with=recipe(opt))
    assert run.compare(recipe(with_option(opt, place, value))) == []


def test_nothing_is_loaded_from_a_state_that_is_refused(opt):
    state = saved(opt)
    model = build_model(with_option(opt, 'train.optim_g', {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}))
    before = copy.deepcopy(model.optimizer_g.state_dict())
    side_file(state).unlink()
    with pytest.raises(UserError):
        model.resume_training(torch.load(state, weights_only=True))
    assert model.optimizer_g.state_dict() == before


def test_trying_a_state_changes_nothing(opt):
    """The step that shows whether an optimizer can go on is done on copies."""
    state = saved(opt)
    model = resumed(opt, state)
    stored = torch.load(state, weights_only=True)['optimizers'][0]
    assert str(model.optimizer_g.state_dict()) == str(stored)
    assert all(p.grad is None for p in model.net_g.parameters())


class TestDistillation:
    @pytest.fixture
    def distilled(self, opt, tmp_path):
        teacher = {**TINY_HASN, 'upscale': 2}
        torch.save({'params': build_network(teacher).state_dict()}, tmp_path / 'teacher.pth')
        opt['path']['pretrain_network_t'] = str(tmp_path / 'teacher.pth')
        del opt['train']['pixel_opt']
        opt['train']['distill'] = {
            'gamma': 1.0,
            'feature_pairs': {'block_1': 'block_1'},
            'feature_loss': {'type': 'FAKDLoss', 'adapter': 'conv1x1'},
        }
        return opt | {'model_type': 'DistillationModel', 'network_t': teacher}

    def test_weights_of_terms_are_taken_over(self, distilled, said):
        state = saved(distilled)
        resumed(with_option(distilled, 'train.distill.gamma', 2.0), state)
        assert [line.split(':')[0] for line in said] == ['train.distill.gamma']

    @pytest.mark.parametrize(
        ('place', 'value'),
        [
            ('train.distill.feature_pairs', {'block_2': 'block_1'}),
            ('train.distill.feature_loss.adapter', 'none'),
        ],
    )
    def test_other_adapters_are_refused(self, distilled, place, value):
        state = saved(distilled)
        with pytest.raises(UserError, match=r'train\.distill'):
            resumed(with_option(distilled, place, value), state)

    def test_another_teacher_is_taken_over(self, distilled, tmp_path, said):
        state = saved(distilled)
        other = tmp_path / 'other.pth'
        other.write_bytes((tmp_path / 'teacher.pth').read_bytes())
        changed = with_option(distilled, 'path.pretrain_network_t', str(other))
        changed['path']['resume_state'] = str(state)
        resumed(changed, state)
        assert [line.split(':')[0] for line in said] == ['path.pretrain_network_t']


class TestThroughTheHost:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(dry_run, 'dry_step', lambda *_: [])

        def run(opt: dict, *flags: str) -> dict:
            monkeypatch.setattr(sys, 'argv', ['train', '-opt', write(opt, tmp_path / 'short.yml'), *flags])
            names = dict(vars(host_loop))
            try:
                host_loop.train_pipeline(str(tmp_path))
            finally:
                vars(host_loop).update(names)
            return torch.load(tmp_path / 'experiments' / opt['name'] / 'models/net_g_latest.pth', weights_only=True)

        return run

    @pytest.fixture
    def option(self, photos):
        opt = short_run(photos, TINY_HASN, scale=2, iters=5)
        opt['datasets']['train'] |= {'gt_size': 32, 'dataset_enlarge_ratio': 2}  # four iterations an epoch
        opt['logger'] |= {'save_checkpoint_freq': 3, 'use_tb_logger': False}
        return opt

    def test_a_resume_with_another_schedule_is_refused_before_anything_is_built(self, option, run, tmp_path):
        run(copy.deepcopy(option))
        option['train']['scheduler'] = dict(COSINE)
        with pytest.raises(UserError, match=r'train\.scheduler\.type'):
            run(option, '--auto_resume')
        assert [folder.name for folder in (tmp_path / 'experiments').iterdir()] == ['short']

    @pytest.mark.parametrize('model', ['SRModel', 'EffSRModel'])
    def test_the_hosts_model_goes_on_with_a_run_of_its_own_only(self, option, run, model, tmp_path):
        """With our data set and a network that draws nothing, bit for bit, in the middle of an epoch."""
        straight = run({**copy.deepcopy(option), 'name': 'straight', 'model_type': model})
        run({**copy.deepcopy(option), 'model_type': model})
        for left in (tmp_path / 'experiments/short').glob('*/*latest*'):
            left.unlink()
        if model == 'EffSRModel':
            with pytest.raises(UserError, match='model_type'):
                run({**copy.deepcopy(option), 'model_type': 'SRModel'}, '--auto_resume')
        again = run({**copy.deepcopy(option), 'model_type': model}, '--auto_resume')
        assert all(torch.equal(again[k][name], value) for k in straight for name, value in straight[k].items())


@pytest.mark.parametrize(
    'content',
    [
        {'params': {'a': torch.zeros(1)}},
        {'a': torch.zeros(1)},
        [1, 2],
        {'epoch': 0, 'iter': 2, 'optimizers': [1], 'schedulers': []},
        {'epoch': 0, 'iter': None, 'optimizers': [], 'schedulers': []},
        {'epoch': 0, 'iter': 2, 'optimizers': [{}], 'schedulers': [{}]},
        b'',
        b'not a file of torch',
    ],
)
def test_what_is_no_state_is_refused_by_the_name_of_the_file(tmp_path, content):
    file = tmp_path / '2.state'
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    path = {'resume_state': str(file), 'models': str(tmp_path)}
    with pytest.raises(CheckpointError, match=r'path\.resume_state: .*2\.state'):
        load_resume_state({'auto_resume': False, 'manual_seed': 0, 'path': path})


@pytest.mark.parametrize('content', [[1], {'a': 1}, b'cut'])
def test_a_side_file_that_is_none_is_refused_by_its_name(tmp_path, content):
    file = side_file(tmp_path / '2.state')
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r'2\.effsr'):
        read_side_file(file)


def test_a_rank_that_is_new_takes_what_all_ranks_share(tmp_path):
    state = tmp_path / '2.state'
    RunState(seed=7, scaler={'scale': 2.0}, random={'torch': torch.zeros(1)}).save(state)
    found = RunState.load(state, rank=1)
    assert (found.seed, found.scaler, found.random, found.known) == (7, {'scale': 2.0}, {}, False)


def test_the_log_of_the_options_names_a_run_in_a_line():
    run = RunState(seed=7, random={'python': list(range(625))}, resumed={'optimizers': [1]}, file=Path('4.state'))
    assert 'seed=7' in repr(run)
    assert '4.state' in repr(run)
    assert len(repr(run)) < 100
