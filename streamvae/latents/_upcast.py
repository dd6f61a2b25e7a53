"""A private float32 copy of an autoencoder that is made of float16 and would overflow in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from .._errors import UsageError
from ._row import Part

#: What `accelerate` puts on the modules it moves about.
_HOOKED = ("_hf_hook", "_old_forward", "forward")


def upcast(vae: Part) -> Part:
    """Give what the pipeline decodes with: ``vae``, or a copy in float32 if its config asks for it.

    The pipeline takes the user's own module to float32, and (most of them) back; here it stays as
    it is, for whoever uses it meanwhile. The copy has a decoder only, and lives as long as its
    stream: about 200 MB for SDXL. Runs off the loop.

    Raises:
        UsageError: Its weights are not at hand to be copied.
    """
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        return vae
    # Compiling compiles forward; decode is the original's.
    module = cast("nn.Module", getattr(vae, "_orig_mod", vae))
    device = _device(module)
    memo: dict[int, object] = {}
    for name in ("encoder", "quant_conv"):
        memo[id(getattr(module, name, None))] = None
    with torch.no_grad():
        for tensor in _tensors(module):
            memo[id(tensor)] = _wide(tensor, device)
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        memo[id(hook)] = hook  # it knows the pipeline's other models
    private = copy.deepcopy(module, memo)
    for part in private.modules():
        for name in _HOOKED:
            part.__dict__.pop(name, None)
    if device.type == "cuda":
        # Made on this thread's stream, used in another.
        torch.cuda.current_stream(device).synchronize()
    return cast("Part", private)


def _device(module: nn.Module) -> torch.device:
    """Where it decodes.

    Raises:
        UsageError: Its weights come from somewhere else when they are needed.
    """
    parts = list(module.modules())
    elsewhere = any(tensor.is_meta for tensor in _tensors(module))
    if elsewhere or any(hasattr(part, "_diffusers_hook") for part in parts):
        raise UsageError(
            f"expected a {type(module).__name__} whose weights can be copied to float32, as the "
            "pipeline decodes with (force_upcast), got one that is offloaded piece by piece or "
            "cast layer by layer; load it in float32 or bfloat16"
        )
    for part in parts:
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return cast("Any", module).device  # type: ignore[no-any-return]


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from _decoding(module, "parameters")
    yield from _decoding(module, "buffers")


def _decoding(module: nn.Module, kind: str) -> Iterator[torch.Tensor]:
    for name, child in module.named_children():
        if name not in {"encoder", "quant_conv"}:
            yield from getattr(child, kind)()


def _wide(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    wide = tensor.detach().to(device, torch.float32 if tensor.is_floating_point() else None)
    if wide is tensor:
        wide = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(wide, requires_grad=False)
    return wide
