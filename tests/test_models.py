"""The model classes: equal to the host's where nothing is asked for, and each extra by its definition."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from nets import CASES
from runs import TINY_HASN, parsed
from torch import nn
from torch.nn import functional as F

from basicsr_effsr.archs.dparn_arch import DPARN
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.feature_tap import FeatureTap, as_map
from basicsr_effsr.utils.training import random_states, restore_random_states

VALIDATION = SimpleNamespace(dataset=SimpleNamespace(opt={'name': 'val'}))  # a loader of which only the name is read


class BatchNormSR(nn.Module):
    """A student with buffers, random numbers and named features."""

    upscale = 2

    def __init__(self, *, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.dropout = nn.Dropout(dropout)
        self.tail = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.tail(self.dropout(self.body(self.head(x))))


class PairLoss(nn.Module):
    """Content and style as a pair, either may be None: what the host's PerceptualLoss returns."""

    def __init__(self, *, content: bool = True, style: bool = True) -> None:
        super().__init__()
        self.content, self.style = content, style

    def forward(self, pred, target):
        error = pred - target
        return error.square().mean() if self.content else None, error.abs().max() if self.style else None


class ShiftedLoss(nn.Module):
    """L1 plus a constant, so that value and gradient can differ in being finite."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, pred, target):
        return (pred - target).abs().mean() + self.shift


class FusesItself(nn.Module):
    """Another's network: ``fuse()`` changes it."""

    upscale = 2

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 1)

    def fuse(self):
        with torch.no_grad():
            self.one.weight[:, :, 1:2, 1:2] += self.two.weight
            self.one.bias += self.two.bias
        del self.two
        return self

    def forward(self, x):
        return F.pixel_shuffle(self.one(x) + self.two(x) if hasattr(self, 'two') else self.one(x), 2)


@pytest.fixture(autouse=True)
def _registered():
    if 'FusesItself' not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(FusesItself)
    if 'PairLoss' not in LOSS_REGISTRY:
        LOSS_REGISTRY.register(PairLoss)
    if 'BatchNormSR' not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(BatchNormSR)
    logging.getLogger('basicsr').setLevel(logging.ERROR)


@pytest.fixture
def opt(tmp_path):
    return parsed(tmp_path, {**TINY_HASN, 'upscale': 2}, {'gt_size': 36})


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """What the log was warned of."""
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger('basicsr'), 'warning', said.append)
    return said


def batches(count: int, size: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            'lq': torch.rand(size, 3, 18, 18, generator=generator),
            'gt': torch.rand(size, 3, 36, 36, generator=generator),
        }
        for _ in range(count)
    ]


def trained(opt, data, seed: int = 0):
    torch.manual_seed(seed)
    model = build_model(copy.deepcopy(opt))
    for i, batch in enumerate(data, 1):
        model.update_learning_rate(i)
        model.feed_data(batch)
        model.optimize_parameters(i)
    return model


def resumed(opt, state):
    opt = copy.deepcopy(opt)
    opt['path']['resume_state'] = str(state)
    model = build_model(opt)
    model.resume_training(torch.load(state, weights_only=True))
    return model


def moved(model, batch) -> float:
    """Length of the step that one iteration makes in the space of all trained parameters."""
    params = [p for group in model.optimizer_g.param_groups for p in group['params']]
    before = [p.detach().clone() for p in params]
    model.feed_data(batch)
    model.optimize_parameters(1)
    return sum((p - b).square().sum() for p, b in zip(params, before, strict=True)).sqrt().item()


def in_channels_last(net: nn.Module) -> bool:
    """Every kernel that is more than 1 x 1 over more than one channel, where the layouts differ."""
    kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def change(opt, **train):
    opt['train'].update(train)
    return opt


class TestEverythingOff:
    def test_twenty_iterations_are_bit_identical_to_the_host(self, opt):
        ours = trained(opt, batches(20))
        theirs = trained({**opt, 'model_type': 'SRModel'}, batches(20))
        assert equal(ours.net_g, theirs.net_g)
        assert equal(ours.net_g_ema, theirs.net_g_ema)
        assert ours.get_current_log() == theirs.get_current_log()
        assert ours.get_current_learning_rate() == theirs.get_current_learning_rate() == [5e-4]

    def test_files_are_the_hosts(self, opt, tmp_path):
        for kind in ('EffSRModel', 'SRModel'):
            model = trained({**opt, 'model_type': kind}, batches(2))
            model.save(0, 2)
            stored = torch.load(tmp_path / 'models' / 'net_g_2.pth', weights_only=True)
            state = torch.load(tmp_path / 'states' / '2.state', weights_only=True)
            assert list(stored) == ['params', 'params_ema']
            assert list(state) == ['epoch', 'iter', 'optimizers', 'schedulers']
            if kind == 'EffSRModel':
                ours, our_state = stored, state
        assert all(torch.equal(ours[k][n], stored[k][n]) for k in stored for n in stored[k])
        assert str(our_state) == str(state)


class TestExtras:
    def test_two_losses_by_name_add_up(self, opt):
        del opt['train']['pixel_opt']
        change(opt, losses={'l_one': {'type': 'L1Loss', 'loss_weight': 0.25}, 'l_two': {'type': 'MSELoss'}})
        model = trained(opt, [])
        (batch,) = batches(1)
        out = model.net_g(batch['lq'])
        terms = model.loss_terms(batch['lq'], batch['gt'])
        assert terms['l_one'].item() == pytest.approx(0.25 * (out - batch['gt']).abs().mean().item())
        assert terms['l_two'].item() == pytest.approx((out - batch['gt']).square().mean().item())

    def test_no_loss_is_refused(self, opt):
        del opt['train']['pixel_opt']
        with pytest.raises(ValueError, match=r'train\.losses'):
            trained(opt, [])

    @pytest.mark.parametrize('name', ['l_pix', 'l_percep', 'l_style', 'l_hr', 'l_teacher', 'l_feat'])
    def test_a_loss_under_a_name_that_is_taken_is_refused(self, opt, tmp_path, name):
        if name in ('l_hr', 'l_teacher', 'l_feat'):
            opt = TestDistillation().option(opt, tmp_path)
        elif name == 'l_percep':
            opt['train']['perceptual_opt'] = {'type': 'PairLoss'}
        with pytest.raises(ValueError, match=rf'Model: train\.losses\.{name}: '):
            trained(change(opt, losses={name: {'type': 'MSELoss'}}), [])

    @pytest.mark.parametrize('name', ['l_a.b', 'type', 'items', '', 1, 'lrs', 'training'])
    def test_a_name_that_no_loss_can_have_is_refused_in_a_sentence(self, opt, name):
        with pytest.raises(ValueError, match=rf'EffSRModel: train\.losses\.{name}: '):
            trained(change(opt, losses={name: {'type': 'MSELoss'}}), [])

    @pytest.mark.parametrize('decay', [0, 0.9])
    def test_a_network_whose_fuse_changes_it_is_validated_as_it_is(self, opt, monkeypatch, decay):
        opt['network_g'] = {'type': 'FusesItself'}
        model = trained(change(opt, ema_decay=decay), batches(1))
        before = copy.deepcopy(model)
        monkeypatch.setattr(SRModel, 'validation', lambda self, *_: self.test())
        model.validation(VALIDATION, 1, None)
        assert equal(model.net_g, before.net_g)
        assert not decay or equal(model.net_g_ema, before.net_g_ema)
        model.optimize_parameters(2)

    @pytest.mark.parametrize('key', ['state_dict', 'params-ema', 'model', 'params', None])
    def test_the_average_starts_where_the_network_starts(self, opt, tmp_path, key):
        """From any layout, where it holds no average."""
        torch.manual_seed(5)
        state = build_network(opt['network_g']).state_dict()
        torch.save({key: state} if key else state, tmp_path / 'start.pth')
        opt['path'] |= {'pretrain_network_g': str(tmp_path / 'start.pth'), 'param_key_g': key}
        model = trained(opt, [])
        assert equal(model.net_g, model.net_g_ema)
        assert torch.equal(model.net_g_ema.state_dict()[next(iter(state))], state[next(iter(state))])

    def test_an_average_of_the_file_is_taken(self, opt, tmp_path):
        one, other = (build_network(opt['network_g']).state_dict() for _ in range(2))
        torch.save({'params': one, 'params_ema': other}, tmp_path / 'start.pth')
        opt['path'] |= {'pretrain_network_g': str(tmp_path / 'start.pth')}
        model, name = trained(opt, []), next(iter(one))
        assert torch.equal(model.net_g.state_dict()[name], one[name])
        assert torch.equal(model.net_g_ema.state_dict()[name], other[name])

    def test_the_hosts_names_are_free_without_the_hosts_keys(self, opt):
        del opt['train']['pixel_opt']
        model = trained(change(opt, losses={'l_pix': {'type': 'MSELoss'}}), batches(1))
        assert list(model.get_current_log()) == ['l_pix']

    def test_content_and_style_of_a_loss_that_gives_a_pair_are_both_trained(self, opt):
        pairs = {'l_a': {'type': 'PairLoss'}, 'l_b': {'type': 'PairLoss', 'content': False}}
        model = trained(change(opt, losses=pairs, perceptual_opt={'type': 'PairLoss', 'style': False}), batches(1))
        (batch,) = batches(1)
        error = (trained(opt, []).net_g(batch['lq']) - batch['gt']).detach()
        expected = {'l_pix': error.abs().mean().item(), 'l_percep': error.square().mean().item()}
        expected |= {'l_a': error.square().mean().item(), 'l_style': 2 * error.abs().max().item()}
        assert model.get_current_log() == pytest.approx(expected)

    def test_unknown_optimizer_names_the_near_ones(self, opt):
        with pytest.raises(ValueError, match=r"optim_g\.type: .*'AdmW'.*'AdamW'"):
            trained(change(opt, optim_g={'type': 'AdmW', 'lr': 0.01}), [])

    def test_every_optimizer_of_torch_runs_or_is_refused_in_a_sentence(self, opt):
        refused = {}
        for kind in dir(torch.optim):
            found = getattr(torch.optim, kind)
            if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
                try:
                    trained(change(opt, optim_g={'type': kind, 'lr': 0.01}), batches(1))
                except (ValueError, RuntimeError) as error:
                    refused[kind] = str(error)
        for unfit in ('LBFGS', 'Optimizer', 'SparseAdam'):  # which needs a closure, is none, needs sparse gradients
            assert refused.pop(unfit).startswith('train.optim_g.type: ')
        assert set(refused) <= {'Muon'}, 'which is for matrices alone'

    def test_a_partial_load_says_what_differs(self, opt, tmp_path, warned):
        state = build_network(opt['network_g']).state_dict()
        name = next(iter(state))
        state['foreign'] = state.pop(name)
        torch.save({'params': state}, tmp_path / 'part.pth')
        opt['path'] |= {'pretrain_network_g': str(tmp_path / 'part.pth'), 'strict_load_g': False}
        opt['train']['ema_decay'] = 0
        trained(opt, [])
        (message,) = warned
        assert message.startswith('HASN ')
        assert f'from {tmp_path}/part.pth [params]' in message
        assert f'1 missing ({name}); 1 unexpected (foreign)' in message

    def test_two_steps_match_two_steps_by_hand(self, opt):
        change(opt, optim_g={'type': 'SGD', 'lr': 0.1}, grad_clip=0.05, ema_decay=0)
        data = batches(2)
        start = trained(opt, [])
        twin = copy.deepcopy(start.net_g)
        model = trained(opt, data)
        sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
        for batch in data:
            sgd.zero_grad()
            (twin(batch['lq']) - batch['gt']).abs().mean().backward()
            norm = torch.sqrt(sum(p.grad.square().sum() for p in twin.parameters()))
            assert norm > 0.05, 'the clip must bite in this test'
            for p in twin.parameters():
                p.grad *= 0.05 / (norm + 1e-6)
            sgd.step()
        torch.testing.assert_close(model.net_g.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-7)

    def test_accumulated_parts_give_the_whole_batch(self, opt):
        change(opt, optim_g={'type': 'SGD', 'lr': 0.1})
        whole = trained(opt, batches(3))
        parts = trained(change(opt, accumulate=2), batches(3))
        torch.testing.assert_close(parts.net_g.state_dict(), whole.net_g.state_dict(), rtol=1e-5, atol=1e-7)
        assert parts.get_current_log()['l_pix'] == pytest.approx(whole.get_current_log()['l_pix'], rel=1e-5)

    def test_parts_that_do_not_divide_the_batch_are_refused(self, opt):
        with pytest.raises(ValueError, match='3 parts do not divide a batch of 4'):
            trained(change(opt, accumulate=3), batches(1))

    def test_bf16_learns_the_same_thing(self, opt):
        full, half = trained(opt, batches(8)), trained(change(opt, amp='bf16'), batches(8))
        assert not equal(full.net_g, half.net_g)
        assert half.get_current_log()['l_pix'] == pytest.approx(full.get_current_log()['l_pix'], rel=0.05)
        assert next(half.net_g.parameters()).dtype == torch.float32

    def test_fp16_scales_the_loss_and_the_scale_is_remembered(self, opt, tmp_path):
        change(opt, amp='fp16')
        model = trained(opt, batches(3))
        assert model.step.scaler.get_scale() == 2.0**16
        assert all(p.isfinite().all() for p in model.net_g.parameters())
        model.step.scaler.update(8.0)
        model.save(0, 3)
        twin = resumed(opt, tmp_path / 'states' / '3.state')
        twin.feed_data(batches(1)[0])
        twin.optimize_parameters(4)
        assert twin.step.scaler.get_scale() == 8.0

    def test_channels_last_and_compile_compute_the_same(self, opt):
        plain = trained(opt, batches(3))
        other = trained(change(opt, channels_last=True, compile={'backend': 'aot_eager'}), batches(3))
        torch.testing.assert_close(other.net_g.state_dict(), plain.net_g.state_dict(), rtol=1e-3, atol=1e-5)
        assert other.lq.is_contiguous(memory_format=torch.channels_last)
        assert in_channels_last(other.net_g)
        assert not in_channels_last(plain.net_g)

    @pytest.mark.parametrize(
        'more', [{}, {'amp': 'bf16', 'accumulate': 2, 'channels_last': True}], ids=['alone', 'more']
    )
    def test_activation_checkpointing_trains_the_same(self, opt, more):
        usual = trained(change(opt, **more), batches(3))
        model = trained(change(opt, use_checkpoint=True), batches(3))
        assert equal(model.net_g, usual.net_g)
        assert equal(model.net_g_ema, usual.net_g_ema)
        model.test()

    def test_nonfinite_iterations_are_skipped_and_the_nth_in_a_row_stops_the_run(self, opt):
        change(opt, max_nonfinite=3)
        good, bad = batches(1)[0], batches(1)[0]
        bad['lq'] = torch.full_like(bad['lq'], float('nan'))
        model = trained(opt, [good])
        before = copy.deepcopy(model.net_g.state_dict())
        for i in (2, 3):
            model.feed_data(bad)
            model.optimize_parameters(i)
        assert all(torch.equal(before[k], v) for k, v in model.net_g.state_dict().items())
        model.feed_data(good)
        model.optimize_parameters(4)
        assert not all(torch.equal(before[k], v) for k, v in model.net_g.state_dict().items())
        model.feed_data(bad)
        model.optimize_parameters(5)
        model.optimize_parameters(6)
        with pytest.raises(FloatingPointError, match=r'iteration 7: l_pix .* 3 times in a row'):
            model.optimize_parameters(7)

    def test_what_is_skipped_leaves_no_trace_in_batch_norms(self, opt):
        opt['network_g'] = {'type': 'BatchNormSR'}
        model = trained(change(opt, max_nonfinite=2), batches(1))
        before = copy.deepcopy(model.net_g.state_dict())
        model.feed_data({'lq': torch.full((4, 3, 18, 18), float('inf')), 'gt': torch.zeros(4, 3, 36, 36)})
        model.optimize_parameters(2)
        assert all(torch.equal(before[name], value) for name, value in model.net_g.state_dict().items())

    @pytest.mark.parametrize('what', ['l_pix', 'the gradient'])
    def test_loss_and_gradient_are_looked_at_each(self, opt, warned, what):
        """A gradient can be infinite under a finite loss (a root at 0), and the other way round."""
        model = trained(change(opt, max_nonfinite=2), [])
        before = copy.deepcopy(model.net_g.state_dict())
        if what == 'l_pix':
            model.losses['l_pix'] = ShiftedLoss(float('inf'))
        else:
            next(model.net_g.parameters()).register_hook(lambda grad: grad * float('nan'))
        model.feed_data(batches(1)[0])
        model.optimize_parameters(1)
        assert [line.split(';')[0] for line in warned] == [f'iteration 1: {what} not finite']
        assert all(torch.equal(before[name], value) for name, value in model.net_g.state_dict().items())

    def test_an_overflow_of_fp16_halves_the_scale_and_is_no_failure(self, opt, warned):
        model = trained(change(opt, amp='fp16', max_nonfinite=1), batches(1))
        before = copy.deepcopy(model.net_g.state_dict())
        model.step.scaler.update(2.0**60)
        model.feed_data(batches(1)[0])
        for i in (1, 2, 3):
            model.optimize_parameters(i)
        assert model.step.scaler.get_scale() == 2.0**57
        assert all(torch.equal(before[name], value) for name, value in model.net_g.state_dict().items())
        assert not warned
        model.losses['l_pix'] = ShiftedLoss(float('nan'))
        with pytest.raises(FloatingPointError, match=r'iteration 4: l_pix not finite, 1 times in a row'):
            model.optimize_parameters(4)

    def test_an_overflow_without_a_scale_counts(self, opt):
        model = trained(change(opt, amp='fp16', max_nonfinite=2), batches(1))
        next(model.net_g.parameters()).register_hook(lambda grad: grad * float('inf'))
        model.step.scaler.update(2.0)
        model.feed_data(batches(1)[0])
        for i in (1, 2):
            model.optimize_parameters(i)
            assert model.step.scaler.get_scale() == 1.0
        with pytest.raises(FloatingPointError, match=r'iteration 3: the gradient not finite, 2 times in a row'):
            model.optimize_parameters(3)

    @pytest.mark.parametrize('amp', [None, 'bf16', 'fp16'])
    def test_the_clip_bounds_the_step_in_every_precision(self, opt, amp):
        """The step of SGD is as long as the clipped gradient, whatever the loss was scaled by."""
        change(opt, optim_g={'type': 'SGD', 'lr': 0.1}, grad_clip=0.05, amp=amp)
        assert moved(trained(opt, []), batches(1)[0]) == pytest.approx(0.1 * 0.05, rel=1e-2)

    @pytest.mark.parametrize('amp', ['bf16', 'fp16'])
    def test_losses_are_computed_in_float32(self, opt, amp):
        model = trained(change(opt, amp=amp), [])
        (batch,) = batches(1)
        assert model.forward_student(batch['lq']).dtype == torch.float32
        assert model.loss_terms(batch['lq'], batch['gt'])['l_pix'].dtype == torch.float32

    @pytest.mark.parametrize('name', ['HASN', 'AGDN', 'ASID', 'DPARN', 'EFRDN'])
    def test_channels_last_and_bf16_work_together_for_every_network(self, opt, name):
        opt['network_g'] = {**CASES[name].option(), 'upscale': 2}
        plain = trained(opt, batches(1, size=2))
        fast = trained(change(opt, channels_last=True, amp='bf16'), batches(1, size=2))
        assert fast.output.dtype is torch.float32
        bits = 2**-8 * plain.output.abs().max()  # of which bf16 loses one in each of some layers
        assert 0 < (fast.output - plain.output).abs().max() < 16 * bits
        assert moved(fast, batches(1, size=2)[0]) > 0

    def test_compile_compiles_the_training_and_leaves_validation_alone(self, opt):
        graphs = []

        def backend(graph, _inputs):
            graphs.append(graph)
            return graph.forward

        model = trained(change(opt, compile={'backend': backend}), batches(1))
        found = len(graphs)
        assert found
        model.test()
        assert len(graphs) == found

    @pytest.mark.parametrize('is_train', [True, False])
    @pytest.mark.parametrize(
        ('tile', 'where'),
        [
            ({'overlap': 8}, 'tile.size'),
            ({'size': 8}, 'tile.size'),
            ({'size': 64, 'overlap': 8, 'blend': 'halo'}, 'tile.overlap'),
        ],
    )
    def test_impossible_tiles_are_refused_at_the_start(self, opt, tile, where, is_train):
        opt['val']['tile'] = tile
        opt['is_train'] = is_train
        if not is_train:
            del opt['train']
        with pytest.raises(ValueError, match=rf'EffSRModel: val\.{where}: '):
            trained(opt, [])

    @pytest.mark.parametrize(
        'tile', [{'size': 15}, {'size': 64, 'overlap': 63}, {'size': 4, 'overlap': 14, 'blend': 'halo'}, None]
    )
    def test_possible_tiles_run(self, opt, tile):
        opt['val']['tile'] = tile
        model = trained(opt, batches(1))
        model.test()
        assert model.output.shape == (4, 3, 36, 36)

    def test_bytes_are_converted_on_the_device(self, opt):
        model = trained(opt, [])
        model.feed_data({'lq': torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)})
        torch.testing.assert_close(model.lq, torch.tensor([[[[0.0, 0.2, 1.0]]]]))

    @pytest.mark.parametrize(('key', 'near'), [('grad_clipp', 'grad_clip'), ('ema_deacy', 'ema_decay')])
    def test_a_key_nobody_reads_is_an_error(self, opt, key, near):
        with pytest.raises(ValueError, match=f"train.{key}: .*'{near}'"):
            trained(change(opt, **{key: 1}), [])

    @pytest.mark.parametrize(
        'option',
        [
            {'amp': 'fp8'},
            {'max_nonfinite': True},
            {'grad_clip': float('nan')},
            {'ema_decay': 1},
        ],
    )
    def test_impossible_values_are_refused(self, opt, option):
        with pytest.raises(ValueError, match=f'EffSRModel: train.{next(iter(option))}: '):
            trained(change(opt, **option), [])


class TestAverage:
    def test_parameters_follow_the_formula_and_buffers_the_network(self, opt):
        """The host leaves the statistics of batch norms at their initial values."""
        opt['network_g'] = {'type': 'BatchNormSR'}
        model = trained(opt, [])
        expected = {k: v.clone() for k, v in model.net_g.named_parameters()}
        for i, batch in enumerate(batches(3), 1):
            model.feed_data(batch)
            model.optimize_parameters(i)
            for name, p in model.net_g.named_parameters():
                expected[name] = expected[name] * 0.9 + p.detach() * (1 - 0.9)
        for name, p in model.net_g_ema.named_parameters():
            torch.testing.assert_close(p, expected[name])
        buffers = dict(model.net_g.named_buffers())
        assert buffers['body.1.running_mean'].any()
        assert all(torch.equal(b, buffers[name]) for name, b in model.net_g_ema.named_buffers())


class TestInference:
    def model(self, opt, data=(), **val):
        opt['val'].update(val)
        model = trained(opt, data)
        model.feed_data({'lq': batches(1)[0]['lq'][:1]})
        return model

    def test_self_ensemble_and_tiles_are_the_functions_of_those_names(self, opt):
        from basicsr_effsr.imaging.tiling import self_ensemble, tiled_forward

        model = self.model(opt, self_ensemble=True, tile={'size': 16, 'overlap': 4, 'blend': 'feather'})
        model.test()

        def tiled(x):
            return tiled_forward(model.net_g_ema, x, upscale=2, tile=16, overlap=4, blend='feather')

        with torch.no_grad():
            assert torch.equal(model.output, self_ensemble(tiled, model.lq))

    def test_what_val_engine_names_computes_a_validation(self, opt, monkeypatch):
        from basicsr_effsr.models import validation
        from basicsr_effsr.weights.engines import Computer

        asked = []

        def engine_for(net, name, **how):
            asked.append((name, net.training, how['keep']))
            return Computer(name, lambda lq: lq.new_full((1, 3, 2, 2), 0.25))

        model = self.model(opt, engine='onnxruntime')
        monkeypatch.setattr(validation, 'engine_for', engine_for)
        monkeypatch.setattr(SRModel, 'validation', lambda self, *_: self.test())
        model.validation(VALIDATION, 1, None)
        assert asked == [('onnxruntime', False, False)]
        assert (model.output == 0.25).all()
        model.opt['val']['engine'] = 'auto'  # while training each validation has new weights
        model.validation(VALIDATION, 1, None)
        assert model.output.unique().numel() > 1

    def test_validation_runs_the_fused_network_and_the_checkpoint_stays_in_training_form(self, opt, monkeypatch):
        opt['network_g'] = {'type': 'DPARN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}
        model = self.model(change(opt, optim_g={'type': 'Adam', 'lr': 1e-2}), batches(3))
        ran, forward = [], DPARN.forward
        monkeypatch.setattr(DPARN, 'forward', lambda net, x: (ran.append(net.deploy), forward(net, x))[1])
        monkeypatch.setattr(SRModel, 'validation', lambda self, *_: self.test())
        before = torch.get_rng_state()
        model.validation(VALIDATION, 1, None)
        assert torch.equal(torch.get_rng_state(), before), 'a run that is resumed before it must draw the same'
        assert ran == [True]
        with torch.no_grad():
            torch.testing.assert_close(model.output, model.net_g_ema(model.lq), rtol=0, atol=2e-5)
            assert (model.output - model.net_g.eval()(model.lq)).abs().max() > 1e-2, 'the average is what is validated'
        assert not model.net_g_ema.deploy
        opt['val']['fuse'] = False
        model, ran[:] = self.model(opt), []
        model.validation(VALIDATION, 1, None)
        assert ran == [False]

    @pytest.mark.parametrize('off', [0, ...])
    def test_testing_leaves_the_training_mode(self, opt, off):
        opt['train'].pop('ema_decay')
        opt['train'] |= {} if off is ... else {'ema_decay': off}
        model = self.model(opt)
        model.test()
        assert model.net_g.training
        assert not model.output.requires_grad


PAIRS = {'body.0': 'block_1', 'body.1': 'block_1.ln'}


class TestDistillation:
    def option(self, opt, tmp_path, **distill):
        torch.manual_seed(5)
        opt['network_t'] = dict(opt['network_g'])
        opt['network_g'] = {'type': 'BatchNormSR'}
        torch.save({'params': build_network(opt['network_t']).state_dict()}, tmp_path / 'teacher.pth')
        opt['path']['pretrain_network_t'] = str(tmp_path / 'teacher.pth')
        opt['model_type'] = 'DistillationModel'
        del opt['train']['pixel_opt']
        given = {'alpha': 0.3, 'beta': 0.6, 'gamma': 2.0, 'feature_pairs': dict(PAIRS)}
        given['feature_loss'] = {'type': 'FAKDLoss', 'adapter': 'none'}
        opt['train']['distill'] = {**given, **distill}
        return opt

    def test_terms_by_definition(self, opt, tmp_path):
        model = trained(self.option(opt, tmp_path), [])
        (batch,) = batches(1)
        terms = model.loss_terms(batch['lq'], batch['gt'])
        seen_s, seen_t = FeatureTap(model.net_g, PAIRS), FeatureTap(model.net_t, PAIRS.values())
        with seen_s.recording(), seen_t.recording(), torch.no_grad():
            out, taught = model.net_g(batch['lq']), model.net_t(batch['lq'])
        affinity = 0.0
        for name_s, name_t in PAIRS.items():
            s, t = (F.normalize(f.flatten(2), dim=1) for f in (seen_s.take(name_s), seen_t.take(name_t)))
            affinity += (s.mT @ s - t.mT @ t).abs().mean()
        assert terms['l_teacher'].item() == pytest.approx(0.3 * F.l1_loss(out, taught).item(), rel=1e-4)
        assert terms['l_hr'].item() == pytest.approx(0.6 * F.l1_loss(out, batch['gt']).item(), rel=1e-4)
        assert terms['l_feat'].item() == pytest.approx(2.0 * affinity.item(), rel=1e-4)

    def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(self, opt, tmp_path):
        opt = self.option(opt, tmp_path, feature_pairs={'block_1': 'block_1'})
        opt['network_g'] = opt['network_t']
        opt['path']['pretrain_network_g'] = opt['path']['pretrain_network_t']
        model = trained(opt, [])
        (batch,) = batches(1)
        terms = model.loss_terms(batch['lq'], batch['gt'])
        assert terms['l_teacher'].item() == pytest.approx(0, abs=1e-6)
        assert terms['l_feat'].item() == pytest.approx(0, abs=1e-6)

    def test_features_inside_blocks_that_are_computed_twice(self, opt, tmp_path):
        opt = self.option(opt, tmp_path, feature_pairs={'block_1': 'block_1', 'block_1.ln': 'block_1'})
        opt['network_g'] = dict(opt['network_t'])
        usual = trained(opt, batches(3))
        model = trained(change(opt, use_checkpoint=True), batches(3))
        assert usual.get_current_log()['l_feat'] == model.get_current_log()['l_feat'] > 0
        assert equal(model.net_g, usual.net_g)

    def test_the_teacher_is_frozen_and_in_no_checkpoint(self, opt, tmp_path):
        opt = self.option(opt, tmp_path, feature_loss={'type': 'FAKDLoss', 'adapter': 'conv1x1'})
        before = torch.load(tmp_path / 'teacher.pth', weights_only=True)['params']
        model = trained(opt, batches(3))
        model.save(0, 3)
        assert all(torch.equal(before[k], v) for k, v in model.net_t.state_dict().items())
        assert not model.net_t.training
        assert not any(p.requires_grad for p in model.net_t.parameters())
        assert {f.name for f in (tmp_path / 'models').iterdir()} == {'net_g_3.pth', 'net_a_3.pth'}
        stored = torch.load(tmp_path / 'models' / 'net_g_3.pth', weights_only=True)
        assert stored['params'].keys() == BatchNormSR().state_dict().keys()

    def test_adapters_start_at_plain_fakd_and_train(self, opt, tmp_path):
        opt = self.option(opt, tmp_path, feature_pairs={'body.0': 'block_1'})
        (batch,) = batches(1)
        plain = trained(opt, []).loss_terms(batch['lq'], batch['gt'])['l_feat'].item()
        opt['train']['distill']['feature_loss'] = {'type': 'FAKDLoss', 'adapter': 'conv1x1'}
        model = trained(opt, [])
        start = model.adapters[0].weight.clone()
        assert start.shape == (8, 4, 1, 1)
        assert model.loss_terms(batch['lq'], batch['gt'])['l_feat'].item() == pytest.approx(plain, rel=1e-5)
        model.feed_data(batch)
        model.optimize_parameters(1)
        assert not torch.equal(model.adapters[0].weight, start)

    @pytest.mark.parametrize('weights', [{'alpha': 0, 'beta': 0, 'gamma': 0}, {'alpha': 0, 'beta': 0}])
    def test_nothing_to_train_on_is_refused(self, opt, tmp_path, weights):
        opt = self.option(opt, tmp_path)
        opt['train']['distill'] = weights
        with pytest.raises(ValueError, match=r'DistillationModel: train\.distill: '):
            trained(opt, [])
        model = trained(change(opt, losses={'l_one': {'type': 'L1Loss'}}), batches(1))
        assert list(model.get_current_log()) == ['l_one']

    def test_a_loss_that_cannot_compare_a_pair_is_refused_at_the_start(self, opt, tmp_path):
        opt = self.option(opt, tmp_path, feature_pairs={'body.0': 'block_1'}, feature_loss={'type': 'L1Loss'})
        shapes = r'body\.0 with block_1, which have the shapes \(1, 4, 32, 32\) and \(1, 8, 32, 32\); set .*adapter'
        with pytest.raises(ValueError, match=f'DistillationModel: L1Loss must be able to compare {shapes}'):
            trained(opt, [])
        opt['network_g']['width'] = 1  # which torch would stretch to 8
        with pytest.raises(ValueError, match=r'must be able to compare .* \(1, 1, 32, 32\) and \(1, 8, 32, 32\)'):
            trained(opt, [])
        opt['train']['distill']['adapter'] = 'conv1x1'
        assert trained(opt, batches(1)).get_current_log()['l_feat'] > 0

    @pytest.mark.parametrize(
        ('ours', 'theirs', 'built'),
        [
            (None, None, 1),
            ('none', None, 0),
            (None, 'none', 0),
            ('none', 'none', 0),
            ('conv1x1', None, 1),
            (None, 'conv1x1', 1),
        ],
    )
    def test_the_adapter_is_built_as_asked_in_either_place(self, opt, tmp_path, ours, theirs, built):
        loss = {'type': 'FAKDLoss'} | ({'adapter': theirs} if theirs else {})
        opt = self.option(opt, tmp_path, feature_pairs={'body.0': 'block_1'}, feature_loss=loss, adapter=ours)
        assert len(trained(opt, []).adapters) == built

    def test_two_places_that_contradict_each_other_are_refused(self, opt, tmp_path):
        loss = {'type': 'FAKDLoss', 'adapter': 'conv1x1'}
        with pytest.raises(ValueError, match=r'DistillationModel: train\.distill\.adapter: '):
            trained(self.option(opt, tmp_path, feature_loss=loss, adapter='none'), [])

    def test_the_teacher_is_in_channels_last_too(self, opt, tmp_path):
        opt = self.option(opt, tmp_path)
        assert in_channels_last(trained(change(opt, channels_last=True), []).net_t)
        assert not in_channels_last(trained(change(opt, channels_last=False), []).net_t)

    def test_the_clip_bounds_student_and_adapters_together(self, opt, tmp_path):
        opt = self.option(opt, tmp_path, gamma=50.0, feature_loss={'type': 'FAKDLoss', 'adapter': 'conv1x1'})
        model = trained(change(opt, optim_g={'type': 'SGD', 'lr': 0.1}, grad_clip=0.05), [])
        start = copy.deepcopy(model.adapters)
        assert moved(model, batches(1)[0]) == pytest.approx(0.1 * 0.05, rel=1e-3)
        assert not equal(model.adapters, start)

    def test_the_teacher_may_run_in_half_precision(self, opt, tmp_path):
        opt = self.option(opt, tmp_path)
        (batch,) = batches(1)
        full = trained(opt, [])._ask_teacher(batch['lq'])[0]
        opt['train']['distill']['teacher_dtype'] = 'bf16'
        half = trained(opt, [])._ask_teacher(batch['lq'])[0]
        assert half.dtype == torch.float32
        assert 0 < (half - full).abs().max() < 0.1

    @pytest.mark.parametrize(
        ('pairs', 'words'),
        [
            ({'bdy.0': 'block_1'}, r"BatchNormSR has no submodule 'bdy.0'.*'body.0'"),
            ({'body.0': 'layers.0'}, r"HASN has no submodule 'layers.0'.*block_1"),
        ],
    )
    def test_unknown_features_fail_at_the_start_with_names(self, opt, tmp_path, pairs, words):
        with pytest.raises(KeyError, match=words):
            trained(self.option(opt, tmp_path, feature_pairs=pairs), [])

    def test_a_compiled_student_is_tapped_too(self, opt, tmp_path):
        opt = self.option(opt, tmp_path)
        (batch,) = batches(1)
        plain = trained(opt, []).loss_terms(batch['lq'], batch['gt'])
        opt['train']['compile'] = {'backend': 'aot_eager'}
        compiled = trained(opt, []).loss_terms(batch['lq'], batch['gt'])
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6)

    def test_tokens_and_padded_maps_come_on_the_grid_of_the_image(self, opt, tmp_path):
        """A teacher of 8 x 8 windows pads 18 x 18 to 24 x 24; a distance of maps needs them cropped."""
        opt['network_t'] = {'type': 'DPARNTeacher', 'num_feat': 8, 'num_block': 1, 'num_heads': 2, 'num_grow_ch': 4}
        opt['network_t'] |= {'window_size': 8, 'upscale': 2}
        teacher = build_network(opt['network_t'])
        torch.save({'params': teacher.state_dict()}, tmp_path / 'teacher.pth')
        opt['path']['pretrain_network_t'] = str(tmp_path / 'teacher.pth')
        opt['model_type'] = 'DistillationModel'
        opt['train']['distill'] = {'feature_pairs': {'block_1': 'layers.0'}, 'feature_loss': {'type': 'MSELoss'}}
        opt['train']['distill'] |= {'gamma': 1.0, 'adapter': 'none'}
        model = trained(opt, [])
        (batch,) = batches(1)
        _, (features,) = model._ask_teacher(batch['lq'])
        tap = FeatureTap(teacher.eval(), ['layers.0'])
        with tap.recording(), torch.no_grad():
            teacher(batch['lq'])
        assert torch.equal(features, tap.take('layers.0')[..., :18, :18])
        assert model.loss_terms(batch['lq'], batch['gt'])['l_feat'] > 0
        tokens = torch.arange(2 * 6 * 3).view(2, 6, 3)
        assert torch.equal(as_map(tokens, (2, 3))[1, 2], tokens[1, :, 2].view(2, 3))

    def test_a_teacher_without_weights_is_refused(self, opt, tmp_path):
        opt = self.option(opt, tmp_path)
        opt['path']['pretrain_network_t'] = None
        with pytest.raises(ValueError, match=r'path\.pretrain_network_t: '):
            trained(opt, [])

    def test_a_misspelt_key_is_refused(self, opt, tmp_path):
        with pytest.raises(ValueError, match=r"train\.distill\.gama: .*'gamma'"):
            trained(self.option(opt, tmp_path, gama=1), [])


class TestNotFinite:
    def test_ten_in_a_row_end_a_run_unless_it_is_switched_off(self, opt):
        bad = {key: value * float('nan') for key, value in batches(1)[0].items()}
        model = trained(opt, batches(1) + [bad] * 9)
        model.feed_data(bad)
        with pytest.raises(FloatingPointError, match='iteration 11: l_pix'):
            model.optimize_parameters(11)
        assert all(p.isfinite().all() for p in model.net_g.parameters())
        assert not trained(change(opt, max_nonfinite=0), [bad] * 11).step.nonfinite

    @pytest.mark.parametrize('where', ['net_g', 'net_g_ema'])
    def test_such_weights_are_not_saved_over_good_ones(self, opt, tmp_path, where):
        model = trained(change(opt, max_nonfinite=0), batches(1))
        model.save(0, 1)
        before = {file: file.read_bytes() for file in tmp_path.rglob('*.*')}
        with torch.no_grad():
            next(getattr(model, where).parameters())[0] = float('inf')
        with pytest.raises(FloatingPointError, match='net_g'):
            model.save(0, 1)
        assert {file: file.read_bytes() for file in tmp_path.rglob('*.*')} == before


class TestResume:
    @pytest.mark.parametrize('kind', ['EffSRModel', 'DistillationModel'])
    def test_saved_and_resumed_is_bit_identical_dropout_included(self, opt, tmp_path, kind):
        if kind == 'DistillationModel':
            loss = {'type': 'FAKDLoss', 'adapter': 'conv1x1'}
            opt = TestDistillation().option(opt, tmp_path, feature_loss=loss)
        opt['network_g'] = {'type': 'BatchNormSR', 'dropout': 0.3}
        data = batches(6)
        straight = trained(opt, data)
        first = trained(opt, data[:3])
        first.save(0, 3)
        torch.rand(17)  # whatever the process does in between
        again = copy.deepcopy(opt)
        again['path']['pretrain_network_g'] = str(tmp_path / 'models' / 'net_g_3.pth')
        torch.manual_seed(99)
        second = resumed(again, tmp_path / 'states' / '3.state')
        for i, batch in enumerate(data[3:], 4):
            second.update_learning_rate(i)
            second.feed_data(batch)
            second.optimize_parameters(i)
        assert equal(second.net_g, straight.net_g)
        assert equal(second.net_g_ema, straight.net_g_ema)
        if kind == 'DistillationModel':
            assert equal(second.adapters, straight.adapters)

    def test_failures_in_a_row_are_remembered(self, opt, tmp_path):
        model = trained(change(opt, max_nonfinite=2), [])
        bad = {key: value * float('nan') for key, value in batches(1)[0].items()}
        model.feed_data(bad)
        model.optimize_parameters(1)
        model.save(0, 1)
        twin = resumed(opt, tmp_path / 'states' / '1.state')
        twin.feed_data(bad)
        with pytest.raises(FloatingPointError, match='iteration 2: l_pix not finite, 2 times in a row'):
            twin.optimize_parameters(2)

    @pytest.mark.parametrize('place', ['statistics', 'average', 'optimizer'])
    def test_what_nobody_could_read_is_not_saved(self, opt, tmp_path, place):
        opt['network_g'] = {'type': 'BatchNormSR'}
        model = trained(opt, batches(1))
        model.save(0, 1)
        before = {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
        name, tensor = {
            'statistics': ('running_var', model.net_g.body[1].running_var),
            'average': ('params_ema', model.net_g_ema.body[1].weight.data),
            'optimizer': ('exp_avg', model.optimizer_g.state[model.net_g.body[0].weight]['exp_avg']),
        }[place]
        tensor.view(-1)[0] = float('inf')
        with pytest.raises(FloatingPointError, match=f'infinite or NaN in .*{name}'):
            model.save(0, 2)
        assert {file: file.read_bytes() for file in before} == before
        assert not (tmp_path / 'states' / '2.state').exists()

    def test_best_scores_are_remembered(self, opt, tmp_path):
        model = trained(opt, batches(1))
        model.best_metric_results = {'Set5': {'psnr': {'better': 'higher', 'val': 31.0, 'iter': 1}}}
        model.save(0, 1)
        twin = resumed(opt, tmp_path / 'states' / '1.state')
        assert twin.best_metric_results == model.best_metric_results

    def test_a_run_that_ends_early_is_an_error_but_saves(self, opt, tmp_path):
        model = trained(opt, batches(2))
        with pytest.raises(
            UserError, match=r'training ended after 2 of 100 iterations, .* raise dataset_enlarge_ratio'
        ):
            model.save(-1, -1)
        assert (tmp_path / 'models' / 'net_g_latest.pth').is_file()

    def test_random_states_come_back(self):
        import random

        import numpy as np

        state = random_states()
        drawn = (random.random(), np.random.rand(), torch.rand(1).item())
        restore_random_states(state)
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


class TestFeatureTap:
    def test_a_feature_is_handed_over_once(self):
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        tap = FeatureTap(net, ['0'])
        with tap.recording():
            net(torch.ones(1, 3, 2, 2))
        assert tap.take('0').shape == (1, 2, 2, 2)
        with pytest.raises(KeyError, match="Sequential has a submodule '0' that gave nothing; name one"):
            tap.take('0')

    def test_a_feature_is_one_tensor(self):
        net = nn.Sequential(nn.LSTM(3, 2))
        tap = FeatureTap(net, ['0'])
        net(torch.ones(1, 1, 3))
        with tap.recording(), pytest.raises(TypeError, match="submodule '0' that gives a tuple; features must be one"):
            net(torch.ones(1, 1, 3))
