"""Our networks for spandrel, the loader behind chaiNNer and ComfyUI: network and options from the weights alone.

Call ``install()`` once, then ``spandrel.ModelLoader`` loads their checkpoints like any other.
"""

from __future__ import annotations

from typing import Any

__all__ = ['architectures', 'install']


def architectures() -> list[Any]:
    """One ``spandrel.Architecture`` per network; their ids are the networks' names behind ``effsr_``.

    Raises:
        ImportError: spandrel is not installed.
    """
    try:
        import spandrel
    except ImportError as error:
        raise ImportError('the spandrel bridge needs spandrel: pip install basicsr_effsr[spandrel]') from error

    from basicsr_effsr.weights.build import build, scale_of
    from basicsr_effsr.weights.checkpoint import named_for, opened
    from basicsr_effsr.weights.recognise import identify, known_networks, likely, variant_of

    def make(network: str, cls: Any) -> Any:
        def detect(stored: Any) -> bool:
            """spandrel opens some layouts before it asks; the others are opened here."""
            found = opened(stored)
            return found is not None and any(
                name == network and not any(mark in state for mark in getattr(cls, 'foreign', ()))
                for name, _, state in likely(found[1])
            )

        class Ours(spandrel.Architecture):
            """``network`` as spandrel sees it."""

            def __init__(self) -> None:
                super().__init__(id=f'effsr_{network}', name=network, detect=detect)

            def load(self, state_dict: Any) -> Any:
                found = opened(state_dict)
                option = identify(found[1]) if found is not None else None
                if found is None or option is None:
                    raise ValueError(f'{network}: the weights have its names, but fit none of its forms')
                net = build(option, fuse=False)
                state, _, _ = named_for(net, found[1])
                variant = variant_of(cls, option)
                tags = [variant.removeprefix(f'{network}-')] if variant else []
                tags += [f'{option[k]}{short}' for k, short in (('num_feat', 'nf'), ('num_block', 'nb')) if k in option]
                tags += ['fused'] if option.get('deploy') else []
                return spandrel.ImageModelDescriptor(
                    net,
                    state,
                    architecture=self,
                    purpose='SR',
                    tags=tags,
                    supports_half=getattr(cls, 'supports_half', True),
                    supports_bfloat16=getattr(cls, 'supports_half', True),
                    scale=scale_of(net, option),
                    input_channels=option.get('num_in_ch', 3),
                    output_channels=option.get('num_out_ch', 3),
                    size_requirements=spandrel.SizeRequirements(minimum=getattr(net, 'min_size', 1)),
                )

        return Ours()

    return [make(network, cls) for network, cls in known_networks().items()]


def install() -> list[Any]:
    """Adds our networks to ``spandrel.MAIN_REGISTRY``; safe to call again.

    Returns:
        what was added now.

    Raises:
        ImportError: spandrel is not installed.
    """
    ours = architectures()
    import spandrel

    known = {support.architecture.id for support in spandrel.MAIN_REGISTRY.architectures('insertion')}
    before = tuple(sorted(known))  # ours ask for more names than any that may also fit, so they come first
    new = [
        spandrel.ArchSupport.from_architecture(architecture, before)
        for architecture in ours
        if architecture.id not in known
    ]
    if new:
        spandrel.MAIN_REGISTRY.add(*new)
    return [support.architecture for support in new]
