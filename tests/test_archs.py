"""Every contract for every registered network; the table is ``nets.py``."""

from __future__ import annotations

import copy
import inspect
import io
from functools import partial

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from nets import ABLATIONS, CASES, Case, needs_programs
from torch import Tensor, nn

from basicsr_effsr.imaging.tiling import tiled_forward
from basicsr_effsr.utils.training import blocks_of, checkpoint_activations
from benchmarks.plain import PLAIN, plain

ALL = CASES | ABLATIONS
every_net = pytest.mark.parametrize('case', ALL.values(), ids=list(ALL))
every_own_net = pytest.mark.parametrize('case', CASES.values(), ids=list(CASES))  # an ablation traces as its network


def build(case: Case, **changes) -> nn.Module:
    option = case.option(**changes)
    return ARCH_REGISTRY.get(option.pop('type'))(**option)


def image(batch: int, size: tuple[int, int], channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, channels, *size, dtype=dtype)


def test_every_registered_network_of_ours_has_a_case():
    ours = {net.__name__ for _, net in ARCH_REGISTRY if net.__module__.startswith('basicsr_effsr.archs')}
    assert ours == {case.type for case in ALL.values()}


@every_net
def test_output_is_the_upscaled_image(case):
    for upscale in case.scales:
        net = build(case, upscale=upscale)
        height, width = case.size
        for mode in (True, False):
            out = net.train(mode)(image(2, case.size))
            assert out.shape == (2, 3, upscale * height, upscale * width)
        assert net.upscale == upscale


@every_net
def test_smallest_image_works_and_a_smaller_one_is_refused(case):
    net = build(case).eval()
    side = net.min_size
    assert net(image(1, (side, side + 3))).shape[-2:] == (net.upscale * side, net.upscale * (side + 3))
    if side > 1:
        with pytest.raises(ValueError, match=rf'{case.type}: .*\b{side}\b'):
            net(image(1, (side - 1, side + 3)))


@every_net
def test_wrong_channels_are_refused(case):
    with pytest.raises(ValueError, match=rf'{case.type}: .*\(N, 3, H, W\)'):
        build(case)(image(1, case.size, channels=4))


@every_net
def test_gradient_reaches_every_parameter(case):
    """In at least one of a few initialisations: a single one may leave a ReLU dead."""
    idle = None
    for seed in range(4):
        torch.manual_seed(seed)
        net = build(case).train()
        net(image(2, case.size)).square().mean().backward()
        quiet = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
        idle = quiet if idle is None else idle & quiet
    idle = {name for name in idle if not name.endswith(tuple(case.inert))}
    assert not idle, f'no gradient reaches {sorted(idle)}'


@every_net
def test_images_of_a_batch_do_not_mix(case):
    net = build(case).double().eval()
    batch = image(3, case.size, dtype=torch.float64)
    together = net(batch)
    for i in range(3):
        torch.testing.assert_close(net(batch[i : i + 1]), together[i : i + 1], rtol=1e-9, atol=1e-11)


@every_net
def test_train_and_eval_agree(case):
    net = build(case).double()
    x = image(2, case.size, dtype=torch.float64)
    train, evaluated = net.train()(x), net.eval()(x)
    if case.eval_differs:
        assert len(case.eval_differs) > 20, 'state the reason in the Case'
    else:
        torch.testing.assert_close(train, evaluated, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('name', PLAIN)
def test_every_faster_path_is_the_plain_form(name):
    """Outputs and all gradients of a batch of patches, and the large image without gradients."""
    net = build(CASES[name]).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    slow = plain(net)
    x = image(2, (27, 31), dtype=torch.float64).requires_grad_()
    for mode in (True, False):
        expected = slow.train(mode)(x)
        weight = torch.rand_like(expected)
        theirs = torch.autograd.grad((expected * weight).sum(), [x, *slow.parameters()])
        out = net.train(mode)(x)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
        ours = torch.autograd.grad((out * weight).sum(), [x, *net.parameters()])
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        large = image(1, (65, 66), dtype=torch.float64)
        torch.testing.assert_close(net(large), slow(large), rtol=1e-9, atol=1e-11)


@every_net
def test_state_dict_makes_the_same_network(case):
    net, twin = build(case).eval(), build(case).eval()
    stored = io.BytesIO()
    torch.save(net.state_dict(), stored)
    stored.seek(0)
    twin.load_state_dict(torch.load(stored, weights_only=True))
    x = image(1, case.size)
    assert torch.equal(net(x), twin(x))


@every_net
def test_the_input_is_untouched_and_forward_keeps_no_state(case):
    net = build(case).eval()
    x = image(1, case.size)
    kept, attributes = x.clone(), {name: set(vars(module)) for name, module in net.named_modules()}
    first = net(x)
    net(image(2, (case.size[0] + 5, case.size[1] + 2)))
    assert torch.equal(x, kept)
    assert torch.equal(net(x), first)
    assert {name: set(vars(module)) for name, module in net.named_modules()} == attributes


@every_net
def test_unknown_and_impossible_options_are_refused(case):
    with pytest.raises(TypeError, match='num_faet'):
        build(case, num_faet=3)
    for impossible in ({'upscale': 7}, *case.refused):
        with pytest.raises(ValueError, match=case.type):
            build(case, **impossible)


@every_net
def test_constructor_is_keyword_only_without_a_sink(case):
    parameters = list(inspect.signature(ARCH_REGISTRY.get(case.type).__init__).parameters.values())[1:]
    assert {p.kind for p in parameters} == {inspect.Parameter.KEYWORD_ONLY}


@every_net
def test_every_option_is_alive(case):
    """Two values of an option give networks that differ in a parameter's shape or in the output."""
    names = set(inspect.signature(ARCH_REGISTRY.get(case.type).__init__).parameters) - {'self', 'upscale'}
    assert names == set(case.live), 'the Case must name two values for each option'

    def look(option, value):
        torch.manual_seed(0)
        net = build(case, **(value if isinstance(value, dict) else {option: value})).eval()
        return net, {name: p.shape for name, p in net.named_parameters()}, value if option == 'num_in_ch' else 3

    @torch.no_grad()
    def run(net, channels):
        torch.manual_seed(1)
        x = image(1, (case.size[0] + 8, case.size[1] + 8), channels)
        return torch.cat((net(x), net.train()(x)))  # some options act in training only

    for option, (one, other) in case.live.items():
        (net, shapes, channels), (other_net, other_shapes, other_channels) = look(option, one), look(option, other)
        if shapes == other_shapes:
            out, other_out = run(net, channels), run(other_net, other_channels)
            assert out.shape != other_out.shape or not torch.equal(out, other_out), option


@every_net
def test_published_size(case):
    assert set(case.params) <= set(case.scales)
    for upscale, expected in case.params.items():
        with torch.device('meta'):
            net = ARCH_REGISTRY.get(case.type)(upscale=upscale)
        assert sum(p.numel() for p in net.parameters()) == expected


def pads_in_half() -> bool:
    """Whether this torch mirrors edges in float16 on a CPU; 2.5 does not."""
    try:
        return nn.ReflectionPad2d(1)(torch.zeros(1, 1, 2, 2, dtype=torch.float16)).dtype is torch.float16
    except RuntimeError:
        return False


@every_net
def test_runs_in_every_precision(case):
    x = image(1, case.size)
    reference = build(case).eval()
    with torch.no_grad():
        expected = reference(x)
        scale = expected.abs().max()
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
            try:
                out = copy.deepcopy(reference).to(dtype)(x.to(dtype))
            except RuntimeError:
                assert dtype is torch.float16
                assert not pads_in_half(), 'a network that this torch could compute'
                continue
            assert out.dtype == dtype
            assert (out.float() - expected).abs().max() <= tolerance * scale, dtype
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert (reference(x).float() - expected).abs().max() <= 0.1 * scale


@every_net
def test_channels_last_computes_the_same(case):
    net = build(case).double().eval()
    x = image(2, case.size, dtype=torch.float64)
    expected = net(x)
    out = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)


@needs_programs
@every_own_net
@pytest.mark.slow
def test_exports_with_dynamic_height_and_width(case):
    if case.not_exported:
        assert len(case.not_exported) > 20, 'state the reason in the Case'
        return
    net = build(case).eval()
    sizes = {2: torch.export.Dim('height', min=24), 3: torch.export.Dim('width', min=24)}
    program = torch.export.export(net, (image(1, (37, 43)),), dynamic_shapes=(sizes,))
    for size in ((37, 43), (24, 61)):
        x = image(1, size)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


@every_own_net
@pytest.mark.slow
def test_compiles_into_the_same_network(case):
    if case.not_compiled:
        assert len(case.not_compiled) > 20, 'state the reason in the Case'
        return
    net = build(case).train()
    x = image(2, case.size)
    compiled = torch.compile(net, backend='aot_eager', dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)


@every_net
@pytest.mark.parametrize('amp', [False, True], ids=['fp32', 'bf16'])
def test_activation_checkpointing_changes_no_gradient(case, amp):
    """Nor random numbers, batch norms or names; every block is computed once more, in training alone."""
    option = {'drop_path_rate': 0.5} if 'drop_path_rate' in case.tiny else {}
    plain_net = build(case, **option).train()
    net, calls = copy.deepcopy(plain_net), []

    def counted(calls, forward, *args):
        calls.append(1)
        return forward(*args)

    for block in blocks_of(net).values():
        block.forward = partial(counted, calls, block.forward)
    checkpoint_activations(net)
    x, found = image(2, case.size), []
    for form in (plain_net, net):
        torch.manual_seed(3)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            out = form(x)
        once = len(calls)
        out.float().square().mean().backward()
        found.append([out, *(p.grad for p in form.parameters()), *form.buffers(), torch.rand(3)])
    assert len(calls) == 2 * once > 0
    for theirs, ours in zip(*found, strict=True):
        assert (ours is theirs is None) or torch.equal(ours, theirs)
    assert list(net.state_dict()) == list(plain_net.state_dict())
    twin = copy.deepcopy(net).eval()
    assert torch.equal(twin(x), plain_net.eval()(x))
    assert all(block.forward.args[0] is block for block in blocks_of(twin).values())


@every_net
def test_stated_halo_makes_tiles_exact(case):
    """And one pixel less does not; a net that sees the whole image states none."""
    options, halo = case.convolutional or ({}, None)
    assert getattr(build(case), 'halo', None) == (None if options else halo)
    if halo is None:
        return
    net = build(case, **options).double().eval()
    assert net.halo == halo
    x = image(1, (2 * halo + 9, 2 * halo + 14), dtype=torch.float64)
    with torch.no_grad():
        whole = net(x)
        exact, short = (
            tiled_forward(net, x, upscale=net.upscale, tile=6, overlap=width, blend='halo')
            for width in (halo, halo - 1)
        )
    torch.testing.assert_close(exact, whole, rtol=0, atol=1e-13)
    assert (short - whole).abs().max() > 1e-11


@every_net
def test_runs_without_torch_compiler(case, monkeypatch):
    """Forks that take an architecture file may have a PyTorch before 2.1."""
    net = build(case).eval()
    x = image(1, case.size)
    expected = net(x)
    monkeypatch.delattr(torch, 'compiler')
    assert torch.equal(net(x), expected)


@every_net
def test_fused_form_is_the_same_function(case):
    net = build(case).double()
    assert hasattr(net, 'fuse') == case.has_fuse
    if not case.has_fuse:
        return
    net.train()(image(2, case.size, dtype=torch.float64))  # gives batch norms statistics of their own
    net.eval()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    fused = net.fuse()
    x = image(2, case.size, dtype=torch.float64)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items()), 'fuse() must work on a copy'
    inference = build(case, deploy=True).double().eval()
    inference.load_state_dict(fused.state_dict())
    assert torch.equal(inference(x), fused(x))
    assert net.fuse(inplace=True) is net
    assert torch.equal(net(x), fused(x))


@pytest.mark.parametrize('name', sorted(CASES.keys() - {'DPARN', 'DPARNTeacher'}))  # which merge some in any case
def test_whoever_looks_at_its_layers_sees_all_of_them(name):
    """Counters of others hang hooks on layers; large images pass through fewer of them where nobody looks."""
    net = build(CASES[name]).eval()
    layers = {key for key, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    called, image = set(), torch.rand(1, 3, 72, 72)
    with torch.no_grad():
        alone = net(image)
        for key in layers:
            net.get_submodule(key).register_forward_hook(lambda *_, key=key: called.add(key))
        seen = net(image)
    assert called == layers
    torch.testing.assert_close(alone, seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', CASES)
def test_large_images_in_mixed_precision(name):
    net, image = build(CASES[name]).eval(), torch.rand(1, 3, 72, 72)
    with torch.no_grad():
        plain = net(image)
        with torch.autocast('cpu', torch.bfloat16):
            mixed = net(image)
    assert (mixed - plain).abs().max() < 0.02 * plain.abs().max()


@pytest.mark.parametrize('name', sorted(CASES.keys() - {'AGDN'}))  # whose windows no trace takes
def test_a_trace_takes_the_precision_of_the_network(name):
    net, image = build(CASES[name]).double().eval(), torch.rand(1, 3, 40, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(net, image)(image), net(image), rtol=0, atol=1e-8)
