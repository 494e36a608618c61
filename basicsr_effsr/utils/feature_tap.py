"""Reading intermediate features by name, without touching the network that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from torch import Tensor, nn


class FeatureTap:
    """Keeps the latest output of the named submodules of ``net`` until it is taken.

    Args:
        net: the bare network, not a DDP wrapper.
        names: dotted names as in ``net.named_modules()``.

    Raises:
        KeyError: a name does not exist; the message lists the nearest and the top-level ones.
    """

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        modules = dict(net.named_modules())
        self._kept: dict[str, Tensor] = {}
        self._handles = []
        for name in names:
            if not name or name not in modules:
                near = get_close_matches(name, modules, 3)
                raise KeyError(
                    f'{type(net).__name__} has no submodule {name!r}; near it are {near}, its children are '
                    f'{[n for n, _ in net.named_children()]}'
                )
            self._handles.append(modules[name].register_forward_hook(self._keep_as(name)))

    def take(self, name: str) -> Tensor:
        """Hands the output over and forgets it, so that no stale map is ever read or kept alive."""
        return self._kept.pop(name)

    def remove(self) -> None:
        """Takes the hooks away again."""
        for handle in self._handles:
            handle.remove()
        self._kept.clear()

    def _keep_as(self, name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._kept[name] = output

        return hook
