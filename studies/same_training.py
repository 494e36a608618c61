"""The authors' own training against ours: one state, the same batches and losses, float64, step by step.

    python -m studies.same_training ../shared/reference/golden/curves --out studies/same_training.json

The reference curves were recorded with the authors' classes (Adam, lr 2e-4, betas 0.9 and 0.99, batch i % 12). Forward,
gradients and optimizer steps must all agree for the curves to stay together: the smallest error in one gradient parts
them within a few steps.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import l1_loss

from basicsr_effsr.archs.agdn_arch import AGDN
from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.losses.kl_loss import PixelKLLoss

CURVES: dict[str, tuple[type[nn.Module], float]] = {  # file: (network, weight of the KL divergence beside L1)
    'hasn_x4_l1': (HASN, 0.0),
    'hasn_x4_l1_kl': (HASN, 1.0),
    'agdn_x4_l1': (AGDN, 0.0),
}


def train(name: str, stored: dict, iterations: int) -> tuple[torch.Tensor, nn.Module]:
    """Trains our network from the state of the curve ``name``.

    Args:
        name: key of ``CURVES``.
        stored: ``state_dict``, ``lq`` and ``gt`` (12 batches, uint8).
        iterations: how many steps.

    Returns:
        The losses, (iterations, 2): L1 and KL before each step; and the network after the last one. float64.
    """
    net, kl_weight = CURVES[name]
    model = net(upscale=4).double().train()
    model.load_state_dict({key: value.double() for key, value in stored['state_dict'].items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.9, 0.99))
    divergence = PixelKLLoss(eps=1e-8)  # the authors' floor under the logarithm
    curve = []
    for i in range(iterations):
        lq, gt = (stored[key][i % 12].double() / 255 for key in ('lq', 'gt'))
        optimizer.zero_grad()
        output = model(lq)
        terms = torch.stack([l1_loss(output, gt), kl_weight * divergence(output, gt)])
        terms.sum().backward()
        optimizer.step()
        curve.append(terms.detach())
    return torch.stack(curve), model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='where the curves lie (*.pth)')
    parser.add_argument('--out', type=Path, required=True, help='JSON with the differences')
    args = parser.parse_args()
    result: dict = {'torch': torch.__version__, 'python': platform.python_version(), 'dtype': 'float64', 'curves': {}}
    for name in CURVES:
        stored = torch.load(args.folder / f'{name}.pth', weights_only=True)
        curve, model = train(name, stored, len(stored['curve']))
        with torch.no_grad():
            output = model(stored['lq'][0].double() / 255)
        result['curves'][name] = {
            'iterations': len(curve),
            'loss_first': curve[0].sum().item(),
            'loss_last': curve[-1].sum().item(),
            'largest_difference_of_loss': (curve - stored['curve']).abs().max().item(),
            'largest_difference_of_output': (output - stored['output']).abs().max().item(),
        }
        print(name, result['curves'][name], flush=True)
        args.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
