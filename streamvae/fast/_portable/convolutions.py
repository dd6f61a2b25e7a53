"""Convolutions over frames that are channels last, by cuDNN or oneDNN, without their bias."""

from __future__ import annotations

import torch
from torch.nn import functional

from streamvae.fast._wan.weights import phase_weights

from .obstacles import has_onednn

_HALVES = {torch.bfloat16, torch.float16}


def convolve(frames: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve frames in space, padded with zeros, and in time, not padded.

    Args:
        frames: (frames, height, width, channels), contiguous.
        weight: As `prepare` gives it.

    Returns:
        (frames - taps in time + 1, height, width, out), contiguous.
    """
    if weight.dim() == 2:
        return functional.linear(frames, weight)
    padding = [weight.shape[-2] // 2, weight.shape[-1] // 2]
    if weight.dim() == 4:
        sums = _convolve(frames.permute(0, 3, 1, 2), weight, padding)
        return sums.permute(0, 2, 3, 1).contiguous()
    # In this order: a batch of one gets the stride that channels last ask for.
    sums = _convolve(frames[None].permute(0, 4, 1, 2, 3), weight, [0, *padding])
    return sums.permute(0, 2, 3, 4, 1)[0].contiguous()


def _convolve(x: torch.Tensor, weight: torch.Tensor, padding: list[int]) -> torch.Tensor:
    spatial = len(padding)
    once = [1] * spatial
    if _has_cudnn(x):
        # cuDNN's own choice for three dimensions is up to twice as slow as the one that it finds
        # by trying. Pictures come in many sizes, each of which would be tried.
        benchmark = spatial == 3 or torch.backends.cudnn.benchmark
        deterministic = (
            torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
        )
        tf32 = True  # has nothing to do with halves
        return torch.cudnn_convolution(
            x, weight, padding, once, once, 1, benchmark, deterministic, tf32
        )
    if x.device.type == "cpu" and x.dtype == torch.float32 and has_onednn():
        # torch itself takes a slower way for one clip of three dimensions: up to six times.
        return torch.mkldnn_convolution(x, weight, None, padding, once, once, 1)
    if spatial == 2:
        return functional.conv2d(x, weight, padding=padding)
    return functional.conv3d(x, weight, padding=padding)


def _has_cudnn(x: torch.Tensor) -> bool:
    halves = x.is_cuda and x.dtype in _HALVES
    return halves and torch.version.hip is None and torch.backends.cudnn.enabled


def prepare(weight: torch.Tensor) -> torch.Tensor:
    """Lay out weights as `convolve` takes them.

    Args:
        weight: (out, in, y, x), or (out, in, taps in time, y, x).

    Returns:
        A copy, channels last; 1x1 as a matrix, one tap in time as none.
    """
    weight = weight.detach()
    if weight.dim() == 5 and weight.shape[2] == 1:
        weight = weight[:, :, 0]
    if weight.shape[2:] == (1, 1):
        return weight.flatten(1).contiguous().clone()
    last = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    return weight.clone(memory_format=last)


def prepare_upsampling(weight: torch.Tensor) -> torch.Tensor:
    """Turn 3x3 after nearest 2x upsampling into one 3x3 of four times the channels before it.

    Each of the four pixels of a square has a 2x2 convolution of its own (`phase_weights`), here
    filled up with zeros: one call of more products is faster than four of fewer.

    Args:
        weight: (out, in, 3, 3).

    Returns:
        (4 * out, in, 3, 3), channels last, for sums of the kind `UPSAMPLE`; rounded once.
    """
    phases = phase_weights(weight.detach())
    out, inputs = weight.shape[:2]
    filled = phases.new_zeros(4, out, inputs, 3, 3)
    for phase in range(4):
        y, x = divmod(phase, 2)
        filled[phase, :, :, y : y + 2, x : x + 2] = phases[phase]
    return prepare(filled.flatten(0, 1).to(weight.dtype))


def prepare_taps(weight: torch.Tensor) -> torch.Tensor:
    """Lay out a 3x3 of few output channels as a matrix of products with every tap.

    Args:
        weight: (out, in, taps in time, 3, 3).

    Returns:
        (rows, in), rows filled up with zeros to a multiple of 8.
    """
    rows = weight.detach().permute(2, 3, 4, 0, 1).flatten(0, 3)
    filled = rows.new_zeros(-(-rows.shape[0] // 8) * 8, rows.shape[1])
    filled[: rows.shape[0]] = rows
    return filled


def tap_products(frames: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply each pixel with every tap: planes of `interface.PointwiseOps.add_taps`."""
    count, height, width, channels = frames.shape
    pixels = frames.reshape(count, height * width, channels).transpose(1, 2)
    return torch.unflatten(torch.matmul(matrix, pixels), 2, (height, width))
