"""Where this step does not pay: reasons, for people."""

from __future__ import annotations

import torch

from .._obstacles import dtype_name

#: What this step is called in ``info.step``.
STEP = "channels last"
#: What it computes in.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def missing_support(dtype: torch.dtype, device: torch.device) -> str:
    """What keeps it from running on a device, or in a dtype; empty if nothing does."""
    if device.type != "cuda":
        return f"this is {device.type}, not CUDA"
    if not torch.backends.cudnn.is_available():
        return "cuDNN is not there"
    if dtype not in _DTYPES:
        return f"weights are {dtype_name(dtype)}, not {', '.join(map(dtype_name, _DTYPES))}"
    return ""
