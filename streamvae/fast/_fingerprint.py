"""What a recorded chunk depends on besides its inputs: whether a graph is still the right one."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import nn

#: torch's switches that decide which kernels run, under old names and new. Reading the old ones
#: raises where somebody has set the new ones, and some are newer than others.
_SWITCHES = {
    "": "are_deterministic_algorithms_enabled get_float32_matmul_precision",
    "backends.": "fp32_precision",
    "backends.cudnn.": "enabled benchmark deterministic allow_tf32 fp32_precision "
    "conv.fp32_precision",
    "backends.cuda.": "preferred_blas_library cudnn_sdp_enabled flash_sdp_enabled math_sdp_enabled "
    "mem_efficient_sdp_enabled",
    "backends.cuda.matmul.": "fp32_precision allow_tf32 allow_fp16_accumulation "
    "allow_bf16_reduced_precision_reduction allow_fp16_reduced_precision_reduction",
}


class Fingerprint(NamedTuple):
    """Equal ones have the same kernels over the same memory.

    Attributes:
        weights: Of what decodes: code, modes, and where which weights are.
        call: Of the chunk, of autocast, and of torch's switches.
    """

    weights: tuple[object, ...]
    call: tuple[object, ...]


def fingerprint(module: nn.Module, chunk: torch.Tensor) -> Fingerprint:
    """Take the fingerprint of decoding ``chunk`` (B, C, t, h, w); half a millisecond for Wan's."""
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    call = (chunk.shape, chunk.dtype, chunk.device, *autocast, *_switches())
    return Fingerprint(weights_of(module), call)


def weights_of(module: nn.Module) -> tuple[object, ...]:
    """What of ``module`` its kernels depend on, the values of its weights aside.

    Of each part its class and what that runs, its own ``forward``, its mode and hooks; of each
    parameter and buffer place, shape, strides, dtype, device and class.
    """
    found: list[object] = []
    for part in module.modules():
        kind, own = type(part), vars(part)
        hooks = len(part._forward_hooks), len(part._forward_pre_hooks)
        code = kind.forward, kind.__call__, id(own.get("forward")), own.get("_compiled_call_impl")
        found += (kind, *code, part.training, *hooks)
        for tensors in (part._parameters, part._buffers):
            found += ((name, _place(tensor)) for name, tensor in tensors.items())
    return tuple(found)


def _place(tensor: torch.Tensor | None) -> tuple[object, ...] | None:
    if tensor is None:
        return None
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        place = id(tensor)
    return type(tensor), place, tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _switches() -> Iterator[object]:
    for prefix, names in _SWITCHES.items():
        for name in names.split():
            try:
                value = attrgetter(prefix + name)(torch)
                yield value() if callable(value) else value
            except (RuntimeError, AttributeError):
                yield None
