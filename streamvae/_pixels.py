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
from torch.nn import functional

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


#: Luma's share of red and of blue (ITU-R BT.709, table 4: item 3.2).
_RED, _BLUE = 0.2126, 0.0722


def yuv420p(pixels: torch.Tensor) -> torch.Tensor:
    """Turn RGB into planar 4:2:0, BT.709 limited range: half the bytes, and what encoders take.

    Within one level of what FFmpeg's swscale makes with ``bilinear+accurate_rnd+full_chroma_inp``,
    chroma in the middle of its four pixels included.

    Args:
        pixels: uint8 (B, T, H, W, 3) or (B, T, H, W, 1) (grey), quantised before. An odd last row
            or column is repeated.

    Returns:
        uint8 (B, T, 3 * H' / 2, W') with H' and W' even: H' rows of luma, then both chroma planes
        of H'/2 rows of W'/2, each laid out contiguously.
    """
    batch, time, height, width, channels = pixels.shape
    rgb = pixels.expand(-1, -1, -1, -1, 3) if channels == 1 else pixels
    rgb = rgb.flatten(0, 1).permute(0, 3, 1, 2).float()
    rgb = functional.pad(rgb, (0, width % 2, 0, height % 2), mode="replicate")
    red, green, blue = rgb.unbind(1)
    luma = _RED * red + (1 - _RED - _BLUE) * green + _BLUE * blue
    chroma = torch.stack([(blue - luma) / (2 - 2 * _BLUE), (red - luma) / (2 - 2 * _RED)], 1)
    planes = [16 + luma * (219 / 255), 128 + _halved(chroma) * (224 / 255)]
    packed = torch.cat([plane.flatten(1) for plane in planes], 1).round_().to(torch.uint8)
    return packed.view(batch, time, -1, width + width % 2)


def _halved(planes: torch.Tensor) -> torch.Tensor:
    """Half the size of (N, C, H, W), each place the mean of its 4x4 neighbours, 1:3:3:1."""
    # Sums, since a convolution would be in TF32 on a card.
    wide = functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    outer = wide[..., :-3:2] + wide[..., 3::2]
    inner = wide[..., 1:-2:2] + wide[..., 2:-1:2]
    across = outer + 3 * inner
    outer = across[..., :-3:2, :] + across[..., 3::2, :]
    inner = across[..., 1:-2:2, :] + across[..., 2:-1:2, :]
    return (outer + 3 * inner) / 64


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all of ``tensor`` is finite: a bool where the tensor is, without a host wait."""
    return torch.isfinite(tensor).all()
