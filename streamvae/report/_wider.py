"""The decode that errors are measured against: a copy of the weights, in a wider dtype."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..abc import Codec
from ..codecs import ModuleCodec, codec_for

T = TypeVar("T")

#: The dtype that each is held against.
WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
}


def obstacle(codec: Codec) -> str:
    """Why no copy of the weights in another dtype decodes as they do; empty if one does."""
    if not isinstance(codec, ModuleCodec):
        return f"{codec.family} is a codec without an autoencoder"
    module = codec.module
    # Weights that are elsewhere, hooks, and methods bound to the original do not survive a copy.
    hooks = {"_hf_hook", "_diffusers_hook"}
    if any(hooks & vars(part).keys() for part in module.modules()):
        return "its weights are moved or cast by hooks"
    if "decode" in vars(module):
        return "its decode is patched"
    if codec.device.type not in {"cpu", "cuda"}:
        return f"{codec.device.type} may not know such a dtype"
    for weight in module.parameters():
        if type(weight) not in {nn.Parameter, torch.Tensor}:
            return f"it has weights of the class {type(weight).__name__}"
    return ""


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of what torch has computed from weights (``weight_norm``)."""
    tensors = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor)
    ]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in tensors})


def widened(codec: ModuleCodec, device: torch.device, dtype: torch.dtype) -> Codec:
    """The codec that the family has for a copy of the weights.

    Args:
        codec: Any over an autoencoder, one's own too: what that one does is not copied.
        device: Where the copy goes.
        dtype: Of the copy.
    """
    module = copied(codec.module)
    # Not by diffusers' own, which warns of layers to be kept in float32 where there are none.
    nn.Module.to(module, device, dtype)
    return codec_for(module, codec._made_of[1])


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Have float32 computed as such: no autocast on ``device``, no TF32 in the whole process.

    What was set is put back.

    Args:
        device: Where is computed.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        matmul = _told(torch.get_float32_matmul_precision)
        if matmul not in {None, "highest"}:
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, str(matmul))
        stack.enter_context(_cudnn_without_tf32())
        for part in _parts():
            before = part.fp32_precision
            if before not in {"none", "ieee"}:
                part.fp32_precision = "ieee"
                stack.callback(setattr, part, "fp32_precision", before)
        yield


def _parts() -> tuple[Any, ...]:
    """What torch has a precision of float32 for since 2.9, the general ones first."""
    backends = cast("Any", torch.backends)
    if not hasattr(backends.cudnn, "conv"):
        return ()
    cudnn, onednn, matmul = backends.cudnn, backends.mkldnn, backends.cuda.matmul
    # Parts say what they inherit: after the general ones only those of their own are left to set.
    return backends, cudnn, onednn, cudnn.conv, cudnn.rnn, matmul, onednn.conv, onednn.matmul


@contextlib.contextmanager
def _cudnn_without_tf32() -> Iterator[None]:
    """By the older switch, which is on by default."""
    cudnn = cast("Any", torch.backends.cudnn)
    before = _told(lambda: cudnn.allow_tf32)
    if before:
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if before:
            cudnn.allow_tf32 = True


def _told(getter: Callable[[], T]) -> T | None:
    """What an older switch says; None where the newer ones were used, of which it cannot tell."""
    try:
        return getter()
    except RuntimeError:
        return None
