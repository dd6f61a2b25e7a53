"""What keeps an autoencoder, its weights or a device from this step: reasons, for people."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from streamvae.codecs import CachedCausal

from .._obstacles import dtype_name, find_obstacle
from .idle import IdleKernels
from .network import UnsupportedError, build
from .weights import CHUNK

#: What this step is called in ``info.step``.
STEP = "fused kernels"
#: Compute capability of the cards that it runs on.
CAPABILITY = (9, 0)


def obstacle(codec: CachedCausal) -> str:
    """What of an autoencoder would be lost, when only its decoder's weights are read."""
    decoder = codec.vae.decoder
    lost = find_obstacle(codec.module, (decoder,))
    if lost:
        return lost
    dtypes = {weight.dtype for weight in decoder.parameters()}
    if len(dtypes) > 1 or not codec.dtype.is_floating_point:
        return f"weights are {' and '.join(sorted(map(dtype_name, dtypes)))}, not of one dtype"
    try:
        build(decoder, IdleKernels())
    except UnsupportedError as error:
        return f"they do not know {error}"
    return ""


def missing_support(codec: CachedCausal, device: torch.device) -> str:
    """What keeps the kernels from running on a device, or with these weights."""
    if device.type != "cuda":
        return f"this is {device.type}, not CUDA"
    if codec.dtype != torch.bfloat16:
        return f"weights are {dtype_name(codec.dtype)}, not bfloat16"
    decoder = codec.vae.decoder
    parts = (part for part in decoder.modules() if part is not decoder.conv_out)
    widths = {part.out_channels for part in parts if isinstance(part, (nn.Conv2d, nn.Conv3d))}
    odd = sorted(width for width in widths if width % CHUNK)
    if odd:
        return f"a convolution has {odd[0]} channels, not a multiple of {CHUNK}"
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed (pip install 'streamvae[fast]')"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return f"compute capability is {capability[0]}.{capability[1]}, not 9.0"
    return ""
