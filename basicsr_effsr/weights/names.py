"""The names of parameters: without what programs put in front of them, and as a network calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

AVERAGED = ('generator_ema.', 'net_g_ema.', 'model_ema.', 'ema_model.', 'ema.')
WRAPPERS = (*AVERAGED, 'module.', 'net_g.', 'netG.', 'model.', 'net.', 'generator.')  # in front of names, by programs
MAX_DEPTH = 8  # of wrappers in wrappers
COMPILED = '_orig_mod.'  # torch.compile puts it in front of whatever was compiled, a part of a network too
COMPUTED = ('rel_pos_indices', 'relative_position_index', 'attn_mask', 'total_ops', 'total_params')


def views(state: Mapping[str, Tensor], depth: int = MAX_DEPTH) -> Iterator[dict[str, Tensor]]:
    """The state dict below every chain of wrappers, itself last.

    Moving averages come first, then the longest chain with most of the names.
    """
    plain = {name.replace(COMPILED, ''): tensor for name, tensor in state.items()}
    inner = [(p, {n.removeprefix(p): t for n, t in plain.items() if n.startswith(p)}) for p in WRAPPERS if depth]
    for _, inside in sorted(inner, key=lambda found: (found[0] not in AVERAGED, -len(found[1]))):
        if inside:
            yield from views(inside, depth - 1)
    yield plain


def renamed_by(renames: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> new name, for those that begin as ``renames`` says and whose new name is free."""
    found = {}
    for name in state:
        for old, ours in renames.items():
            if name.startswith(old) and ours + name.removeprefix(old) not in state:
                found[name] = ours + name.removeprefix(old)
    return found


def named_for(net: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """A state dict under the names of a network.

    A network whose own names begin as a wrapper does keeps them. What it computes itself (position indices, masks,
    counts of profilers) is left out, and names that its class states in ``renames`` become its own.

    Returns:
        state, old name -> new name, names left out.
    """
    own = net.state_dict().keys()
    view = max(views(state), key=lambda view: len(own & view.keys()))
    dropped = [name for name in view if name not in own and name.endswith(COMPUTED)]
    renamed = renamed_by(getattr(net, 'renames', {}), {n: t for n, t in view.items() if n not in own})
    return {renamed.get(n, n): t for n, t in view.items() if n not in dropped}, renamed, dropped
