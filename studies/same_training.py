"""The authors' own training against ours: one state, the same batches and losses, step by step.

    python -m studies.same_training ../shared/reference/golden/curves

trains ours beside curves that were recorded with the authors' classes in float64 (Adam, lr 2e-4, betas 0.9 and 0.99,
batch i % 12), and once more in float32 through BasicSR's models; it writes ``same_training.json`` and the figure of
``docs/results.md``. Forward, gradients and optimizer steps must all agree for the curves to stay together: the smallest
error in one gradient parts them within a few steps.

    python -m studies.same_training --theirs hasn_arch.py:HASN --theirs-options '{"upscale": 4}' --ours HASN

does the same with a class of your own copy of the authors' code. That file is executed, as importing it does, and only
because it is named here: read it first. Both networks begin with its seeded initial state, so the names of its
parameters must be ours.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from basicsr.models import build_model
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from basicsr_effsr._registration import lookup
from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from basicsr_effsr.losses.kl_loss import PixelKLLoss
from basicsr_effsr.utils.errors import needs
from basicsr_effsr.utils.report import PAGE, strict_json, write_figure
from datasets_prep.files import read_image
from datasets_prep.sample import photograph_folder

HERE = Path(__file__).parent
RATE, BETAS = 2e-4, (0.9, 0.99)
FLOOR = 1e-8  # the authors', under the logarithm of KL
CURVES: dict[str, tuple[str, float]] = {  # file: (network, weight of the KL divergence beside L1)
    'hasn_x4_l1': ('HASN', 0.0),
    'hasn_x4_l1_kl': ('HASN', 1.0),
    'agdn_x4_l1': ('AGDN', 0.0),
}
PARTED = {torch.float64: 1e-6, torch.float32: 1e-2}  # of a loss: above rounding, below what other gradients make


@dataclass(frozen=True)
class Batches:
    """LR and HR patches, (K, N, 3, H, W) and (K, N, 3, rH, rW), uint8; step i takes batch i % K."""

    lq: Tensor
    gt: Tensor

    def pair(self, i: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The batch of a step, in [0, 1]."""
        k = i % len(self.lq)
        return self.lq[k].to(dtype) / 255, self.gt[k].to(dtype) / 255


def of_photographs(scale: int, count: int = 12, size: int = 2, side: int = 24) -> Batches:
    """Patches of ``side`` LR pixels from two photographs of scikit-image, the same whenever they are asked for."""
    draw, pairs = np.random.default_rng(0), []
    images = [mod_crop(read_image(photograph_folder() / name), scale) for name in ('astronaut.png', 'coffee.png')]
    small = [imresize(image, scale=Fraction(1, scale)) for image in images]
    for _ in range(count * size):
        n = draw.integers(len(images))
        y, x = (draw.integers(length - side + 1) for length in small[n].shape[:2])
        for image, factor in ((small[n], 1), (images[n], scale)):
            patch = image[y * factor : (y + side) * factor, x * factor : (x + side) * factor, ::-1]
            pairs.append(torch.from_numpy(patch.copy()).permute(2, 0, 1))
    lq, gt = (torch.stack(pairs[k::2]).unflatten(0, (count, size)) for k in (0, 1))
    return Batches(lq, gt)


def train(net: nn.Module, batches: Batches, iterations: int, kl_weight: float = 0.0) -> Tensor:
    """Trains ``net`` in its own precision; the losses before each step, (iterations, 2): L1 and weighted KL."""
    dtype = next(net.parameters()).dtype
    optimizer = torch.optim.Adam(net.train().parameters(), lr=RATE, betas=BETAS)
    divergence = PixelKLLoss(eps=FLOOR)
    curve = []
    for i in range(iterations):
        lq, gt = batches.pair(i, dtype)
        optimizer.zero_grad()
        output = net(lq)
        terms = torch.stack([l1_loss(output, gt), kl_weight * divergence(output, gt)])
        terms.sum().backward()
        optimizer.step()
        curve.append(terms.detach())
    return torch.stack(curve)


def ours_of(name: str, state: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> nn.Module:
    """Our network of that name with these weights."""
    net = lookup('arch', f'{name}_effsr')[0](**options).to(dtype)
    net.load_state_dict({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()})
    return net


def through_the_host(name: str, stored: Mapping[str, Any], kl_weight: float, iterations: int) -> Tensor:
    """The same in float32 with BasicSR's SRModel, or ours where there are two losses: the sums, (iterations,)."""
    with TemporaryDirectory() as folder:
        weights = Path(folder) / 'state.pth'
        torch.save({'params': dict(stored['state_dict'])}, weights)
        losses = {'l_kl': {'type': 'PixelKLLoss', 'loss_weight': kl_weight, 'eps': FLOOR}}
        model = build_model(
            {
                'name': name,
                'model_type': 'EffSRModel' if kl_weight else 'SRModel',
                'scale': 4,
                'num_gpu': 0,
                'dist': False,
                'rank': 0,
                'world_size': 1,
                'is_train': True,
                'network_g': {'type': f'{name}_effsr', 'upscale': 4},
                'path': {'pretrain_network_g': str(weights), 'strict_load_g': True},
                'train': {
                    'optim_g': {'type': 'Adam', 'lr': RATE, 'betas': list(BETAS)},
                    'scheduler': {'type': 'MultiStepLR', 'milestones': [iterations]},
                    'total_iter': iterations,
                    'pixel_opt': {'type': 'L1Loss'},
                    **({'losses': losses} if kl_weight else {}),
                },
            }
        )
    batches, sums = Batches(stored['lq'], stored['gt']), []
    for i in range(iterations):
        lq, gt = batches.pair(i, torch.float32)
        model.feed_data({'lq': lq, 'gt': gt})
        model.optimize_parameters(i + 1)
        sums.append(sum(value for key, value in model.get_current_log().items() if key.startswith('l_')))
    return torch.tensor(sums, dtype=torch.float64)


def beside_recorded(folder: Path) -> dict[str, Any]:
    """Our curves and the recorded ones of ``folder``."""
    found = {}
    for name, (network, kl_weight) in CURVES.items():
        stored = torch.load(folder / f'{name}.pth', weights_only=True)
        recorded, steps = stored['curve'].sum(1), len(stored['curve'])
        net = ours_of(network, stored['state_dict'], torch.float64, upscale=4)
        curve = train(net, Batches(stored['lq'], stored['gt']), steps, kl_weight)
        with torch.no_grad():
            output = net(stored['lq'][0].double() / 255)
        host = through_the_host(network, stored, kl_weight, steps)
        found[name] = {
            'iterations': steps,
            'loss_first': curve[0].sum().item(),
            'loss_last': curve[-1].sum().item(),
            'largest_difference_of_loss': (curve - stored['curve']).abs().max().item(),
            'largest_difference_of_output': (output - stored['output']).abs().max().item(),
            'largest_difference_of_loss_float32': (host - recorded).abs().max().item(),
            'theirs': [round(value, 7) for value in recorded.tolist()],
            'difference': [float(f'{value:.2e}') for value in (curve.sum(1) - recorded).tolist()],
            'difference_float32': [float(f'{value:.2e}') for value in (host - recorded).tolist()],
        }
        print(name, {key: value for key, value in found[name].items() if not isinstance(value, list)}, flush=True)
    return {'torch': torch.__version__, 'python': platform.python_version(), 'dtype': 'float64', 'curves': found}


def draw(curves: Mapping[str, Any]) -> Any:
    """The figure: the losses, and below them how far ours are from the recorded ones, in both precisions."""
    figure = needs('matplotlib.figure', 'plots').Figure(figsize=(PAGE * 1.3, 4.8), layout='constrained')
    needs('matplotlib.backends.backend_agg', 'plots').FigureCanvasAgg(figure)
    titles = {'hasn_x4_l1': 'HASN x4, L1', 'hasn_x4_l1_kl': 'HASN x4, L1 + KL', 'agdn_x4_l1': 'AGDN x4, L1'}
    axes = figure.subplots(2, len(curves), squeeze=False, sharex='col', sharey='row')
    for (above, below), (name, one) in zip(axes.T, curves.items(), strict=True):
        theirs, steps = np.array(one['theirs']), np.arange(1, one['iterations'] + 1)
        away = {kind: np.array(one[f'difference{kind}']) for kind in ('', '_float32')}
        above.plot(steps, theirs, 'C0', linewidth=4, alpha=0.35, label="authors' class, float64")
        above.plot(steps, theirs + away[''], 'k', linewidth=1, label='ours, float64')
        above.plot(
            steps, theirs + away['_float32'], 'C1', linestyle=(0, (1, 4)), linewidth=2, label='ours, float32, BasicSR'
        )
        above.set(title=titles[name])
        below.semilogy(steps, np.maximum(np.abs(away['']), 1e-18), 'k.', markersize=3)
        below.semilogy(steps, np.maximum(np.abs(away['_float32']), 1e-18), 'C1.', markersize=3)
        below.set(xlabel='iteration', ylim=(5e-19, 1e-2))
        for panel in (above, below):
            panel.grid(alpha=0.3)
    axes[0, 0].set(ylabel='loss')
    axes[1, 0].set(ylabel="difference to the authors'")
    figure.legend(*above.get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False)
    return figure


def class_of(place: str) -> type[nn.Module]:
    """The class that ``FILE:CLASS`` names, by executing the file.

    Raises:
        SystemExit: there is no such file, or it defines no such class.
    """
    name, _, member = place.rpartition(':')
    file = Path(name).resolve()
    spec = spec_from_file_location(f'theirs_{file.stem}', file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise SystemExit(f'--theirs must be FILE.py:CLASS with a file that exists, got {place}')
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(found := getattr(module, member, None), type):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise SystemExit(f'{file.name} has no class {member!r}; it has {", ".join(classes) or "none"}')
    return found


def beside_theirs(theirs: nn.Module, ours: nn.Module, batches: Batches, iterations: int, kl_weight: float) -> dict:
    """Both trained from the state of ``theirs`` in its precision; ``parted`` is the first step whose losses differ.

    Raises:
        RuntimeError: the names or shapes of the parameters are not ours.
    """
    ours.load_state_dict(theirs.state_dict())
    curves = [train(net, batches, iterations, kl_weight).double() for net in (theirs, ours)]
    away = (curves[1] - curves[0]).abs().amax(1)
    with torch.no_grad():
        outputs = [net(batches.pair(0, next(net.parameters()).dtype)[0]) for net in (theirs, ours)]
    apart = (away > PARTED[next(ours.parameters()).dtype]).nonzero()
    return {
        'iterations': iterations,
        'largest_difference_of_loss': away.max().item(),
        'largest_difference_of_output': (outputs[1] - outputs[0]).abs().max().item(),
        'parted': int(apart[0]) if len(apart) else None,
        'theirs': curves[0].sum(1).tolist(),
        'ours': curves[1].sum(1).tolist(),
    }


def options(text: str) -> dict[str, Any]:
    """Options of a constructor, as JSON or YAML, or as the name of such a file."""
    found = yaml.safe_load(Path(text).read_text(encoding='utf-8') if Path(text).is_file() else text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'must be options such as {{"upscale": 4}}, got {text!r}')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', type=Path, help='where the recorded curves lie (*.pth)')
    parser.add_argument('--theirs', metavar='FILE:CLASS', help="the authors' class; the file is executed")
    parser.add_argument('--theirs-options', type=options, default={}, help='of its constructor, JSON, YAML or a file')
    parser.add_argument('--ours', metavar='NAME', help='our network (the name of their class)')
    parser.add_argument('--options', type=options, default={}, help='of its constructor, likewise')
    parser.add_argument('--dtype', choices=['float64', 'float32'], default='float64')
    parser.add_argument('--iterations', type=int, default=300)
    parser.add_argument('--kl', type=float, default=0.0, help='weight of the KL divergence beside L1 (0)')
    parser.add_argument('--out', type=Path, help='JSON to write')
    parser.add_argument('--plot', type=Path, default=HERE.parent / 'docs' / 'images' / 'same_training.svg')
    args = parser.parse_args()
    if (args.folder is None) == (args.theirs is None):
        parser.error('give either the folder of recorded curves or --theirs')
    if args.folder:
        result = beside_recorded(args.folder)
        (args.out or HERE / 'same_training.json').write_text(strict_json(result, indent=None) + '\n', encoding='utf-8')
        write_figure(draw(result['curves']), args.plot)
        return
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    theirs = class_of(args.theirs)(**args.theirs_options).to(dtype)
    network, _ = lookup('arch', f'{args.ours or args.theirs.rpartition(":")[2]}_effsr')
    if network is None:
        parser.error(f'--ours must be a network of this package, got {args.ours}')
    ours = network(**args.options).to(dtype)
    result = beside_theirs(theirs, ours, of_photographs(ours.upscale), args.iterations, args.kl)
    if args.out:
        args.out.write_text(strict_json({'dtype': args.dtype, **result}) + '\n', encoding='utf-8')
    said = 'the same training' if result['parted'] is None else f'other from step {result["parted"]} on'
    loss, output = (result[f'largest_difference_of_{what}'] for what in ('loss', 'output'))
    print(f'{args.iterations} iterations, {args.dtype}: losses differ by {loss:.1e}, outputs by {output:.1e}: {said}')


if __name__ == '__main__':
    main()
