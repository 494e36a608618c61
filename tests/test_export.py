"""An export is what PyTorch computes, loaded back and compared, or there is no file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from nets import CASES, needs_programs
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.utils.stored import read_metadata
from basicsr_effsr.weights import export as tool
from basicsr_effsr.weights.build import build
from basicsr_effsr.weights.checkpoint import read_state_dict
from basicsr_effsr.weights.export import ENDINGS, HARD, TENSORRT, ExportError, Form, export

for extra in ('onnx', 'onnxruntime', 'onnxscript', 'safetensors'):
    pytest.importorskip(extra, reason='needs the extra: export')

TINY = {'type': 'IMDN', 'upscale': 2, 'num_feat': 8, 'num_block': 1}
LEAST = {
    'DPARNTeacher': {'num_block': 1},
    'AGDN': {'num_block': 1},
    'ASID': {'num_block': 1},
    'EFRDN': {'share': (0,)},
    'EFRDNAblation': {'share': (0,)},
}
SIZES = ((40, 24), (19, 47))


def tiny(name='IMDN', **changes):
    option = {**TINY} if name == 'IMDN' else CASES[name].option(**LEAST.get(name, {}))
    return build({**option, **changes}, None)


def picture(size, channels=3):
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(sum(size)))


def differences(net, call, sizes=SIZES):
    with torch.no_grad():
        return [(call(picture(size)).float() - net(picture(size))).abs().max().item() for size in sizes]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@needs_programs
@pytest.mark.parametrize(('name', 'scale'), [('IMDN', 2), ('HASN', 4)])
def test_onnx_takes_any_size_and_equals_pytorch(name, scale, tmp_path):
    net = tiny(name, upscale=scale)
    report = export(net, Form.onnx, tmp_path / 'net.onnx', metadata={'network': name})
    assert report.largest < 1e-5
    assert report.smallest == net.min_size
    run = tool.run_onnx((tmp_path / 'net.onnx').read_bytes())
    assert max(differences(net, run)) < 1e-5
    assert left(tmp_path) == ['net.onnx']


@needs_programs
@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'changes'), [*((name, {}) for name in CASES if name not in ('IMDN', 'HASN')), ('AGDN', {'tlc': 0})]
)
def test_onnx_of_every_network(name, changes, tmp_path):
    """Sizes that fill windows, strips and padding on both axes, on one and on none; operators and dimensions."""
    net = tiny(name, upscale=3, **changes)
    report = export(net, Form.onnx, tmp_path / 'net.onnx', metadata={})
    assert report.tensorrt == (['Col2Im'] if name == 'EFRDNAblation' else [])  # its folding that no division follows
    assert report.dimensions <= (8 if name == 'DPARNTeacher' else 5)  # TensorRT takes 8, Core ML 5
    run = tool.run_onnx((tmp_path / 'net.onnx').read_bytes())
    assert max(differences(net, run, (*SIZES, (24, 61), (40, 48), (33, 30)))) < 1e-4


@needs_programs
@pytest.mark.slow
@pytest.mark.parametrize('name', ['ASID', 'EFRDN'])
def test_programs_of_networks_that_cut_windows_take_whole_windows_and_others(name, tmp_path):
    net = tiny(name)
    report = export(net, Form.export, tmp_path / 'net.pt2', metadata={})
    assert report.smallest <= {'ASID': 17, 'EFRDN': 21}[name]  # maps of one pixel are another program
    run = tool.run_export((tmp_path / 'net.pt2').read_bytes())
    assert max(differences(net, run, ((40, 24), (21, 47), (24, 32), (33, 40)))) < 1e-5


@pytest.mark.parametrize(
    'form', [pytest.param(Form.export, marks=needs_programs), Form.torchscript, Form.safetensors, Form.pth]
)
@pytest.mark.parametrize('dtype', ['fp32', 'fp16'])
def test_other_forms_equal_pytorch(form, dtype, tmp_path):
    net = tiny()
    file = tmp_path / f'net{ENDINGS[form][0]}'
    report = export(net, form, file, metadata={'network': 'IMDN'}, dtype=dtype)
    assert report.largest <= (0 if dtype == 'fp32' else 2e-3)
    assert [c.lr_size for c in report.compared if c.image == 'picture'] == [(24, 32), (37, 29)]
    assert {c.image for c in report.compared} == {'picture', *(HARD if dtype == 'fp16' else ())}
    if form in (Form.export, Form.torchscript):
        run = tool.run_export(file.read_bytes()) if form is Form.export else tool.run_torchscript(file.read_bytes())
        call = run if dtype == 'fp32' else lambda image: run(image.half())
        assert max(differences(net, call)) <= (1e-6 if dtype == 'fp32' else 2e-3)
    else:
        state = read_state_dict(file)
        assert {t.dtype for t in state.values()} == {torch.float32 if dtype == 'fp32' else torch.float16}
        again = build_network(TINY)
        again.load_state_dict(state, strict=True)
        assert max(differences(net, again.eval())) <= (0 if dtype == 'fp32' else 2e-3)
    assert left(tmp_path) == [file.name]


@needs_programs
def test_halved_onnx_is_half_the_size_and_near(tmp_path):
    net = tiny(num_feat=32)
    whole = export(net, Form.onnx, tmp_path / 'a.onnx', metadata={})
    half = export(net, Form.onnx, tmp_path / 'b.onnx', metadata={}, dtype='fp16')
    assert half.bytes < 0.65 * whole.bytes
    assert max(differences(net, tool.run_onnx((tmp_path / 'b.onnx').read_bytes()))) < 5e-3
    import onnx

    weights = onnx.load(tmp_path / 'b.onnx').graph.initializer
    assert {w.data_type for w in weights if len(w.dims) == 4} == {onnx.TensorProto.FLOAT16}


@needs_programs
def test_gray_images_are_exported_with_one_channel(tmp_path):
    net = tiny(num_in_ch=1, num_out_ch=1)
    export(net, Form.onnx, tmp_path / 'net.onnx', metadata={}, channels=1)
    image = picture((21, 30), 1)
    torch.testing.assert_close(
        tool.run_onnx((tmp_path / 'net.onnx').read_bytes())(image), net(image), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    'form', [pytest.param(f, marks=needs_programs) if f in (Form.onnx, Form.export) else f for f in Form]
)
def test_an_export_that_gives_something_else_leaves_no_file(form, tmp_path, monkeypatch):
    net = tiny()

    def broken(writer):
        def write(given, *arguments, **options):
            other = tiny()
            other.load_state_dict(given.state_dict())
            with torch.no_grad():
                other.LR_conv.bias += 0.01
            return writer(other, *arguments, **options)

        return write

    for name, writer in tool.WRITERS.items():
        monkeypatch.setitem(tool.WRITERS, name, broken(writer))
    file = tmp_path / f'net{ENDINGS[form][0]}'
    file.write_bytes(b'earlier')
    with pytest.raises(ExportError, match='differs from PyTorch'):
        export(net, form, file, metadata={})
    assert (left(tmp_path), file.read_bytes()) == ([file.name], b'earlier')


@pytest.mark.parametrize('form', [Form.onnx, Form.export])
def test_forms_that_this_torch_cannot_write_are_refused_in_words(form, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.export.Dim, 'DYNAMIC', raising=False)
    with pytest.raises(ExportError, match=r'torch 2\.6'):
        export(tiny(), form, tmp_path / f'net{ENDINGS[form][0]}', metadata={})
    assert left(tmp_path) == []


def test_a_size_frozen_into_the_graph_is_found(tmp_path):
    class Frozen(type(tiny())):
        def forward(self, x):
            return super().forward(x)[:, :, : 2 * int(x.shape[2]), : 2 * int(x.shape[3])]

    net = tiny()
    net.__class__ = Frozen
    with pytest.raises(ExportError, match=r'the exported network .* (37x29|24x32)'):
        export(net, Form.torchscript, tmp_path / 'net.ts', metadata={})
    assert left(tmp_path) == []


def test_not_a_number_does_not_pass(tmp_path):
    net = tiny()
    with torch.no_grad():
        net.LR_conv.bias[0] = torch.nan
    with pytest.raises(ExportError, match='differs from PyTorch'):
        export(net, Form.safetensors, tmp_path / 'net.safetensors', metadata={})
    assert left(tmp_path) == []


def test_windows_are_traced_at_any_size(tmp_path):
    """AGDN's, at sides below, at and above ``tlc``, which the trace was not recorded at."""
    net = tiny('AGDN', tlc=18)
    export(net, Form.torchscript, tmp_path / 'net.ts', metadata={})
    traced = tool.run_torchscript((tmp_path / 'net.ts').read_bytes())
    whole = tiny('AGDN', tlc=0)
    whole.load_state_dict(net.state_dict())
    for size in ((15, 16), (18, 18), (18, 41), (37, 17), (55, 38)):
        image = tool.sample(net, size, 3)
        with torch.no_grad():
            torch.testing.assert_close(traced(image), net(image), rtol=0, atol=1e-6)
            assert torch.allclose(whole(image), net(image), rtol=0, atol=1e-7) == (max(size) <= 18)


def test_a_network_that_cannot_be_traced_is_refused(tmp_path):
    class Counting(type(tiny())):
        def forward(self, x):
            return super().forward(x) * torch.sym_min(x.shape[2], 1)

    net = tiny()
    net.__class__ = Counting
    with pytest.raises(ExportError, match=r'Counting'):
        export(net, Form.torchscript, tmp_path / 'net.ts', metadata={})
    assert left(tmp_path) == []


def test_sizes_reach_beyond_every_window():
    for name in CASES:
        net = tiny(name)
        first, second = tool.sizes_for(net)
        window = max(getattr(net, 'window_size', 1), 1)
        assert min(*first, *second) >= net.min_size
        assert min(tool.trace_size(net)) >= (3 * window if window > 1 else 1)
        assert any(side % 2 for side in second)
        assert any(side % 8 for side in second)
    wide = tiny('AGDN', tlc=48)
    assert min(tool.sizes_for(wide)[1]) > 48 > min(tool.sizes_for(wide)[0])
    assert min(tool.trace_size(wide)) > 48


def test_every_network_has_a_word_on_ncnn():
    verdicts = {name: getattr(ARCH_REGISTRY.get(name), 'ncnn', 'not tried') for name in CASES}
    others = {name for name, verdict in verdicts.items() if not verdict.startswith('runs')}
    assert others == {'DPARNTeacher', 'SPAN_effsr'}


@needs_programs
def test_operators_that_tensorrt_may_lack_are_named(tmp_path):
    class Folding(type(tiny())):
        def forward(self, x):
            columns = torch.nn.functional.unfold(x, 3, padding=1)
            return super().forward(torch.nn.functional.fold(columns, x.shape[2:], 3, padding=1) / 9)

    net = tiny()
    assert {'Conv', 'DepthToSpace'} <= TENSORRT
    net.__class__ = Folding
    assert export(net, Form.onnx, tmp_path / 'net.onnx', metadata={}).tensorrt == ['Col2Im']


@pytest.fixture
def weights(tmp_path):
    net = build_network(TINY)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


def run(*arguments):
    return CliRunner().invoke(app, ['export', *map(str, arguments)])


NAMED = ('--arch', 'IMDN', '--scale', '2', '--set', 'num_feat=8', '--set', 'num_block=1')


def test_command_writes_metadata_and_prints_both_sizes(weights):
    result = run(*NAMED, '--weights', weights, '--form', 'safetensors')
    assert result.exit_code == 0, result.output
    assert '24x32: largest difference to PyTorch 0.00e+00' in result.stdout
    assert '37x29: largest difference' in result.stdout
    facts = read_metadata(weights.with_suffix('.safetensors'))
    assert json.loads(facts['options']) == {k: v for k, v in TINY.items() if k != 'type'}
    assert (facts['network'], facts['scale'], facts['fused']) == ('IMDN', '2', 'false')
    assert facts['source sha256'] == hashlib.sha256(weights.read_bytes()).hexdigest()


@needs_programs
def test_onnx_and_torchscript_files_carry_the_same_facts(weights):
    import onnx

    for form in ('onnx', 'torchscript', 'export'):
        assert run(*NAMED, '--weights', weights, '--form', form).exit_code == 0
    stored = {entry.key: entry.value for entry in onnx.load(weights.with_suffix('.onnx')).metadata_props}
    script, program = {'metadata.json': ''}, {'metadata.json': ''}
    torch.jit.load(weights.with_suffix('.ts'), _extra_files=script)
    torch.export.load(weights.with_suffix('.pt2'), extra_files=program)
    for facts in (stored, json.loads(script['metadata.json']), json.loads(program['metadata.json'])):
        assert (facts['network'], facts['scale']) == ('IMDN', '2')
        assert facts['source sha256'] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_command_finds_the_network_by_the_weights_alone(weights):
    report = json.loads(run('--weights', weights, '--form', 'pth', '--out', weights.parent / 'b.pth', '--json').stdout)
    assert (report['network'], report['scale'], report['largest']) == ('IMDN', 2, 0)


def test_command_exports_the_fused_form(tmp_path):
    option = {'type': 'DPARN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4}
    torch.save({'params': build_network(option).state_dict()}, tmp_path / 'net.pth')
    for arguments, fused in (((), True), (('--no-fuse',), False)):
        out = tmp_path / f'{fused}.safetensors'
        result = run('--weights', tmp_path / 'net.pth', '--form', 'safetensors', '--out', out, *arguments)
        assert result.exit_code == 0, result.output
        assert read_metadata(out)['fused'] == str(fused).lower()
        assert json.loads(read_metadata(out)['options']).get('deploy', False) == fused
        build_network({**option, 'deploy': fused}).load_state_dict(read_state_dict(out), strict=True)


@needs_programs
def test_command_names_operators_that_engines_may_lack(weights):
    result = run(*NAMED, '--weights', weights)
    assert 'operators: ' in result.stdout
    assert 'TensorRT: takes all' in result.stdout
    assert 'ncnn: runs, by pnnx' in result.stdout


@needs_programs
def test_command_refuses_in_one_sentence_and_writes_nothing(weights):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(weights.parent / 'pwned'),))

    bomb, cut = weights.with_name('bomb.pth'), weights.with_name('cut.pth')
    bomb.write_bytes(pickle.dumps({'params': Bomb()}))
    cut.write_bytes(weights.read_bytes()[:300])
    for arguments in (
        (),
        NAMED,
        (*NAMED, '--weights', 'none.pth'),
        (*NAMED, '--weights', bomb),
        (*NAMED, '--weights', cut),
        ('--weights', cut),
        ('--arch', 'IMDM', '--weights', weights),
        ('--arch', 'IMDN', '--weights', weights),
        ('--arch', 'IMDN', '--set', 'num_feet=8', '--weights', weights),
        ('--arch', 'IMDN', '--set', 'num_feat', '--weights', weights),
        ('-opt', 'none.yml', '--weights', weights),
        (*NAMED, '--weights', weights, '--dtype', 'fp8'),
        (*NAMED, '--weights', weights, '--form', 'pth'),
        (*NAMED, '--weights', weights, '--form', 'onnx', '--out', weights.with_name('net.pt')),
        (*NAMED, '--weights', weights, '--out', weights / 'net.onnx'),
        (*NAMED, '--weights', weights, '--param-key', 'params_g'),
        (*NAMED, '--weights', weights, '--int8'),
        (*NAMED, '--weights', weights, '--calibrate', weights.parent),
        (*NAMED, '--weights', weights, '--int8', '--calibrate', weights.parent / 'none'),
        (*NAMED, '--weights', weights, '--int8', '--calibrate', weights.parent, '--form', 'pth'),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count('\n')) == (2, 1), (arguments, result.output)
    assert left(weights.parent) == ['bomb.pth', 'cut.pth', 'net.pth']


@needs_programs
def test_int8_is_scored_beside_float32_and_keeps_its_ends_where_they_cost_most(weights, photos, monkeypatch):
    import onnx

    from basicsr_effsr.tools import export as command

    told = {}
    for drop in (100, -100):  # dB that it may cost: everything is taken; nothing is
        monkeypatch.setattr(command, 'DROP', drop)
        out = weights.with_name(f'{drop}.onnx')
        line = ('--weights', weights, '--int8', '--calibrate', photos / 'X2', '--data', photos, '--json', '--out', out)
        done = run(*line)
        assert done.exit_code == 0, done.output
        told[drop] = json.loads(done.stdout)
        assert abs(told[drop]['psnr'] - told[drop]['psnr_fp32']) < 1
        model = onnx.load(out)
        taken = [node.name for node in model.graph.node if node.op_type == 'Conv']
        inputs = {node.output[0] for node in model.graph.node if node.op_type == 'DequantizeLinear'}
        floats = [node.name for node in model.graph.node if node.op_type == 'Conv' and node.input[1] not in inputs]
        assert floats == told[drop]['kept'] == ([] if drop > 0 else [taken[0], taken[-1]])
        assert {entry.key: entry.value for entry in model.metadata_props}['dtype'] == 'int8'
    assert left(weights.parent) == ['-100.onnx', '100.onnx', 'net.pth']


@needs_programs
@pytest.mark.slow
def test_equal_exports_of_two_processes_are_equal_bytes(weights):
    """Two processes, because TorchScript numbers the classes that one process has traced."""
    script = f"""
import sys
from pathlib import Path
from basicsr_effsr.weights.export import ENDINGS, Form, export
from basicsr_effsr.weights.recognise import recognise
for form in Form:
    metadata = {{key: str(i) for i, key in enumerate('abcdefgh')}}
    export(recognise(Path({str(weights)!r})).net, form, Path(sys.argv[1] + ENDINGS[form][0]), metadata=metadata)
"""
    for seed, name in enumerate(('a', 'another name')):  # hashes of strings differ between processes
        environment = {**os.environ, 'PYTHONHASHSEED': str(seed + 1)}
        lower = '\n' * seed + script
        subprocess.run([sys.executable, '-c', lower, str(weights.parent / name)], check=True, env=environment)
    for form, (ending, *_) in ENDINGS.items():
        one, other = (weights.parent / f'{name}{ending}' for name in ('a', 'another name'))
        assert one.read_bytes() == other.read_bytes(), form
        for package in (tool, torch):
            assert os.path.dirname(package.__file__).encode() not in one.read_bytes(), 'no path of this machine'


@pytest.mark.filterwarnings('error::FutureWarning')
def test_torchscript_is_written_without_a_warning(tmp_path):
    export(tiny(), Form.torchscript, tmp_path / 'net.ts', metadata={})
    assert left(tmp_path) == ['net.ts']


@needs_programs
def test_networks_of_the_host_have_their_scale(tmp_path):
    option = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    net = build_network({'type': 'EDSR', **option})
    torch.save({'params': net.state_dict()}, tmp_path / 'edsr.pth')
    settings = [word for key, value in option.items() for word in ('--set', f'{key}={value}')]
    out = tmp_path / 'edsr.onnx'
    result = run('--arch', 'EDSR', *settings, '--random', '--out', out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f'{out}: EDSR x2, onnx')


def test_command_ends_with_1_if_the_export_differs(weights):
    result = run(*NAMED, '--weights', weights, '--dtype', 'fp16', '--form', 'pth', '--tolerance', '1e-7')
    assert (result.exit_code, result.stderr.count('\n')) == (1, 1)
    assert left(weights.parent) == ['net.pth']
