"""Intermediate features: read by name, without touching the network that makes them; bridges between two nets'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from basicsr_effsr.utils.errors import near


class FeatureTap:
    """Keeps the latest output of the named submodules of ``net`` until it is taken.

    Args:
        net: the bare network, not a DDP wrapper.
        names: dotted names as in ``net.named_modules()``.

    Raises:
        KeyError: a name does not exist; the message gives the nearest and lists the existing ones.
    """

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        modules = dict(net.named_modules())
        self._kept: dict[str, Tensor] = {}
        self._owner = type(net).__name__
        self._recording = False
        for name in names:
            if not name or name not in modules:
                raise KeyError(f'{type(net).__name__} has no submodule {name!r}; {near(name, filter(None, modules))}')
            modules[name].register_forward_hook(self._keep_as(name))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Outputs are kept only within this scope, so that validation leaves nothing behind."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def take(self, name: str) -> Tensor:
        """Hands the output over and forgets it, so that no stale map is ever read or kept alive.

        Raises:
            KeyError: the submodule did not run since the last time.
        """
        if name not in self._kept:
            raise KeyError(f'{self._owner} has a submodule {name!r} that gave nothing; name one that its forward calls')
        return self._kept.pop(name)

    def _keep_as(self, name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if self._recording:
                if not isinstance(output, Tensor):
                    raise TypeError(
                        f'{self._owner} has a submodule {name!r} that gives a {type(output).__name__}; features must '
                        'be one tensor, name a submodule inside or behind it'
                    )
                self._kept[name] = output

        return hook


def as_map(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (N, H*W, C) in raster order, as transformers make them, -> (N, C, H, W); maps stay what they are."""
    if features.ndim == 3 and features.shape[1] == grid[0] * grid[1]:
        return features.transpose(1, 2).unflatten(2, grid)
    return features


def semi_orthogonal_conv1x1(c_in: int, c_out: int) -> nn.Conv2d:
    """A 1 x 1 convolution without bias whose matrix starts with orthonormal columns (rows if ``c_out < c_in``).

    With ``c_out >= c_in`` it keeps every length and angle, so affinities after it are those before it, and training
    starts at plain FAKD (DPARN, Eq. 7: the convolution that widens the student's features).
    (N, c_in, H, W) -> (N, c_out, H, W), float32 on the CPU.
    """
    conv = nn.Conv2d(c_in, c_out, 1, bias=False)
    nn.init.orthogonal_(conv.weight)
    return conv
