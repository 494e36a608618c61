"""Our networks for spandrel, the loader behind chaiNNer and ComfyUI: network and options from the weights alone.

Call ``install()`` once, then ``spandrel.ModelLoader`` loads their checkpoints like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ['architectures', 'install']

TAGS: dict[tuple[str, Any, Any], str] = {('AGDN', 24, 4): 'S', ('ASID', 48, 8): 'D8'}


def _spandrel() -> Any:
    try:
        import spandrel
    except ImportError as error:
        raise ImportError('the spandrel bridge needs spandrel: pip install basicsr_effsr[spandrel]') from error
    return spandrel


def _build(option: dict[str, Any]) -> nn.Module:
    from basicsr.utils.registry import ARCH_REGISTRY

    from basicsr_effsr._registration import ALIAS_SUFFIX, register

    register('arch')
    options = dict(option)
    return ARCH_REGISTRY.get(options.pop('type') + ALIAS_SUFFIX)(**options)


def _on_meta(option: dict[str, Any]) -> nn.Module:
    import torch

    with torch.device('meta'):
        return _build(option)


def architectures() -> list[Any]:
    """One ``spandrel.Architecture`` per network; their ids are the networks' names behind ``effsr_``.

    Raises:
        ImportError: spandrel is not installed.
    """
    spandrel = _spandrel()
    from basicsr_effsr.weights.identify import NETWORKS, identify, looks_like

    def make(network: str) -> Any:
        class Ours(spandrel.Architecture):  # type: ignore[name-defined]
            """``network`` as spandrel sees it."""

            def __init__(self) -> None:
                super().__init__(id=f'effsr_{network}', name=network, detect=lambda state: looks_like(network, state))

            def load(self, state_dict: Any) -> Any:
                option = identify(state_dict, _on_meta)
                if option is None:
                    raise ValueError(f'{network}: the weights have its names, but fit none of its forms')
                net = _build(option)
                tag = TAGS.get((network, option.get('num_feat'), option.get('num_block')))
                tags = [tag] if tag else []
                tags += [f'{option[k]}{short}' for k, short in (('num_feat', 'nf'), ('num_block', 'nb')) if k in option]
                tags += ['deployed'] if option.get('deploy') else []
                return spandrel.ImageModelDescriptor(
                    net,
                    state_dict,
                    architecture=self,
                    purpose='SR',
                    tags=tags,
                    supports_half=True,
                    supports_bfloat16=True,
                    scale=option['upscale'],
                    input_channels=option['num_in_ch'],
                    output_channels=option['num_out_ch'],
                    size_requirements=spandrel.SizeRequirements(minimum=getattr(net, 'min_size', 1)),
                )

        return Ours()

    return [make(network) for network in NETWORKS]


def install() -> list[Any]:
    """Adds our networks to ``spandrel.MAIN_REGISTRY``; safe to call again.

    Returns:
        what was added now.

    Raises:
        ImportError: spandrel is not installed.
    """
    spandrel = _spandrel()
    known = {support.architecture.id for support in spandrel.MAIN_REGISTRY.architectures('insertion')}
    before = tuple(sorted(known))  # ours ask for more names than any that may also fit, so they come first
    new = [
        spandrel.ArchSupport.from_architecture(architecture, before)
        for architecture in architectures()
        if architecture.id not in known
    ]
    if new:
        spandrel.MAIN_REGISTRY.add(*new)
    return [support.architecture for support in new]
