"""What keeps an autoencoder, its weights or a device from this step: reasons, for people."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.utils import parametrize

from streamvae.codecs import CachedCausal

from .network import UnsupportedError, build
from .recording import RecordingKernels
from .weights import CHUNK

#: What this step is called in ``info.step``.
STEP = "fused kernels"
#: Compute capability of the cards that it runs on.
CAPABILITY = (9, 0)
#: Whose modules are what their weights say; others (LoRA's, quantised ones) hide some of it.
_KNOWN = {"diffusers", "torch"}


def obstacle(codec: CachedCausal) -> str:
    """What of an autoencoder would be lost, when only its decoder's weights are read."""
    hooks = {"_hf_hook", "_diffusers_hook"}
    if any(hooks & vars(part).keys() for part in codec.module.modules()):
        return f"{STEP} would keep weights where a hook moves them away"
    passed_over = next(filter(None, map(_passed_over, codec.vae.decoder.modules())), "")
    if passed_over:
        return f"{STEP} would pass over {passed_over}"
    dtypes = {weight.dtype for weight in codec.vae.decoder.parameters()}
    if len(dtypes) > 1 or not codec.dtype.is_floating_point:
        return f"{STEP} need weights of one dtype, not {', '.join(sorted(map(str, dtypes)))}"
    try:
        build(codec.vae.decoder, RecordingKernels())
    except UnsupportedError as error:
        return f"{STEP} do not know {error}"
    return ""


def _passed_over(part: nn.Module) -> str:
    kind = type(part)
    if kind.__module__.partition(".")[0] not in _KNOWN or hasattr(part, "_orig_mod"):
        return f"{kind.__name__} in the decoder"
    if parametrize.is_parametrized(part):
        return f"the parametrised weights of a {kind.__name__}"
    if part._forward_hooks or part._forward_pre_hooks:
        return f"the hooks of a {kind.__name__}"
    return ""


def missing_support(codec: CachedCausal, device: torch.device) -> str:
    """What keeps the kernels from running on a device, or with these weights."""
    if device.type != "cuda":
        return f"{STEP} need CUDA, this is {device.type}"
    if codec.dtype != torch.bfloat16:
        name = str(codec.dtype).removeprefix("torch.")
        return f"{STEP} compute in bfloat16, the weights are {name}"
    decoder = codec.vae.decoder
    widths = {part.out_channels for part in decoder.modules() if isinstance(part, nn.Conv3d)}
    odd = sorted(width for width in widths - {3} if width % CHUNK)
    if odd:
        return f"{STEP} take channels by {CHUNK}, this decoder has {odd[0]}"
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return f"{STEP} are launched by cuda-bindings, which are not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return f"{STEP} are for compute capability 9.0, this is {capability[0]}.{capability[1]}"
    return ""
