"""Where this step does not pay: reasons, for people."""

from __future__ import annotations

import torch

from .._obstacles import dtype_name

#: What this step is called in ``info.step``.
STEP = "channels last"
#: What it computes in.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def missing_support(dtype: torch.dtype, device: torch.device) -> str:
    """What keeps it from running on a device, or from paying there; empty if nothing does."""
    # On a CPU it is faster for small decoders, and 2.2 times as far from float64 as diffusers' own
    # is, where 1.02 times is accepted (`streamvae verify --mode fast`, the embedded VAE).
    if device.type != "cuda":
        return f"this is {device.type}, not CUDA"
    if not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        return "cuDNN is not there"
    if dtype not in _DTYPES:
        return f"weights are {dtype_name(dtype)}, not {', '.join(map(dtype_name, _DTYPES))}"
    return ""


def has_onednn() -> bool:
    """Whether torch was built with oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
