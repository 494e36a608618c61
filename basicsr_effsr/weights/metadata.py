"""What a file says of itself beside its parameters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr._version import __version__
from basicsr_effsr.weights.build import scale_of

if TYPE_CHECKING:
    from torch import nn


def metadata_of(network: dict[str, Any], net: nn.Module, weights: Path | None, dtype: str) -> dict[str, str]:
    """Network, options, scale, form and the hash of the source, as strings."""
    facts = {
        'network': str(network['type']),
        'options': json.dumps({k: v for k, v in network.items() if k != 'type'}, sort_keys=True),
        'scale': str(scale_of(net, network)),
        'fused': str(bool(getattr(net, 'deploy', False))).lower(),
        'dtype': dtype,
        'range': 'RGB in [0, 1]',
        'made by': f'basicsr_effsr {__version__}',
    }
    if weights is not None:
        facts |= {'source': weights.name, 'source sha256': hashlib.sha256(weights.read_bytes()).hexdigest()}
    return facts
