"""The pixel conventions: the one place that turns what a decoder gives into what people keep.

Decoders give pixels in [-1, 1] in the weights' dtype, channels first. People keep uint8, channels
last. The rule between them is the one of diffusers' PIL path
(``diffusers.image_processor.VaeImageProcessor``): denormalise *in the tensor's dtype*, clamp,
only then go to float32, scale by 255 and round half to even. Doing float32 first changes 23 % of
the bytes of a bfloat16 picture.
"""

from __future__ import annotations

from typing import Literal

import torch

#: What a decoder makes: pictures in time, single pictures, or samples of sound.
Kind = Literal["video", "image", "sound"]

#: What reaches the consumer: quantised pixels, the decoder's own values, or those on the device.
Output = Literal["uint8", "float32", "device"]


def channels_last(decoded: torch.Tensor, kind: Kind) -> torch.Tensor:
    """View a decoder's output as consumers see it.

    Args:
        decoded: video (B, C, T, H, W), image (B, C, H, W) or sound (B, C, S).
        kind: Which of the three it is.

    Returns:
        A view: video (B, T, H, W, C), image (B, 1, H, W, C), sound (B, S, C).
    """
    if kind == "video":
        return decoded.permute(0, 2, 3, 4, 1)
    if kind == "image":
        return decoded.permute(0, 2, 3, 1).unsqueeze(1)
    return decoded.permute(0, 2, 1)


def quantise(pixels: torch.Tensor) -> torch.Tensor:
    """Turn pixels in [-1, 1] of any float dtype into uint8, by diffusers' PIL rule."""
    scaled = (pixels * 0.5 + 0.5).clamp(0, 1)
    return scaled.float().mul_(255).round_().to(torch.uint8)


def render(decoded: torch.Tensor, kind: Kind, output: Output) -> torch.Tensor:
    """Turn a decoder's output into what consumers get, on the device it is on.

    Args:
        decoded: As in `channels_last`; float, pixels in [-1, 1].
        kind: What it is. Sound is never quantised.
        output: ``"uint8"``, ``"float32"`` (the decoder's values, [-1, 1]) or ``"device"``
            (the decoder's values in their own dtype, not moved).

    Returns:
        A contiguous tensor, channels last.
    """
    last = channels_last(decoded, kind)
    if output == "device":
        return last.contiguous()
    if kind == "sound" or output == "float32":
        return last.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    return quantise(last.contiguous())


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all of ``tensor`` is finite: a bool where the tensor is, without a host wait."""
    return torch.isfinite(tensor).all()
