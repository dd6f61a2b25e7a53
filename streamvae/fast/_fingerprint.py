"""What a recorded chunk depends on besides its inputs: whether a graph is still the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as _calls

#: torch's switches that decide which kernels run, under their old names and their new ones. Reading
#: the old ones raises where somebody has set the new ones, and some are newer than others.
_SWITCHES: tuple[Callable[[], object], ...] = (
    lambda: torch.backends.cudnn.enabled,
    lambda: torch.backends.cudnn.benchmark,
    lambda: torch.backends.cudnn.deterministic,
    lambda: torch.backends.cudnn.allow_tf32,
    torch.get_float32_matmul_precision,
    lambda: torch.backends.fp32_precision,  # type: ignore[attr-defined]
    lambda: torch.backends.cudnn.fp32_precision,
    lambda: torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    lambda: torch.backends.cuda.matmul.fp32_precision,
    lambda: torch.backends.cuda.matmul.allow_tf32,
    lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    lambda: torch.backends.cuda.matmul.allow_fp16_accumulation,
    torch.are_deterministic_algorithms_enabled,
    torch.backends.cuda.preferred_blas_library,
    torch.backends.cuda.cudnn_sdp_enabled,
    torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.math_sdp_enabled,
    torch.backends.cuda.mem_efficient_sdp_enabled,
    lambda: torch.is_autocast_enabled("cuda"),
    lambda: torch.get_autocast_dtype("cuda"),
    torch.is_autocast_cache_enabled,
    lambda: len(_calls._global_forward_hooks) + len(_calls._global_forward_pre_hooks),
)


class Fingerprint(NamedTuple):
    """Equal ones have the same kernels over the same memory.

    Attributes:
        weights: Of the autoencoder: code, modes, and where which weights are.
        call: Of the chunk, and of torch's switches.
    """

    weights: tuple[object, ...]
    call: tuple[object, ...]


def fingerprint(module: nn.Module, chunk: torch.Tensor) -> Fingerprint:
    """Take the fingerprint of decoding ``chunk``; about a millisecond.

    Args:
        module: What decodes it: the autoencoder's decoder.
        chunk: Latents (B, C, t, h, w), t as many as are decoded at once.
    """
    return Fingerprint(
        weights_of(module),
        (tuple(chunk.shape), chunk.dtype, chunk.device, *map(_setting, _SWITCHES)),
    )


def weights_of(module: nn.Module) -> tuple[object, ...]:
    """What of ``module`` its kernels depend on, the values of its weights aside.

    Of each part its class and what that runs, its own ``forward``, its mode and hooks; of each
    parameter and buffer place, shape, strides, dtype, device and class.
    """
    found: list[object] = []
    for part in module.modules():
        kind, own = type(part), vars(part)
        found += (
            kind,
            kind.forward,
            kind.__call__,
            id(own.get("forward")),
            part.training,
            getattr(part, "_compiled_call_impl", None) is None,
            *map(len, (part._forward_hooks, part._forward_pre_hooks)),
        )
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                found += (name, None if tensor is None else _place(tensor))
    return tuple(found)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        place = id(tensor)
    return (type(tensor), place, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _setting(read: Callable[[], object]) -> object:
    try:
        return read()
    except (RuntimeError, AttributeError):
        return None
