"""VidTok's decoder as layers that are walked through time, on the modules' weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody calls it
from torch import nn

from ._delays import Beside, Each, Frames, Function, Layer, Memory, Neighbours, Stack
from ._doubling import Linear, Seamed, repeated
from ._offloaded import onloaded


def layers(decoder: nn.Module, memory: Memory, *, seams: bool) -> Iterator[Layer]:
    """Give the layers of a ``VidTokDecoder3D`` (`autoencoder_vidtok.py`) in order.

    Args:
        decoder: Whose weights they compute with; its own state is neither read nor written.
        memory: Of the walk.
        seams: Walk in diffusers' runs of latents, whose last comes again with the next run; else
            as if all latents were there at once. Only for causal decoders.
    """
    net = cast("Any", decoder)
    ahead = int(seams)
    yield _convolution(net.conv_in, memory, ahead)
    yield _residual(net.mid.block_1, memory, ahead)
    yield _attention(net.mid.attn_1)
    yield _residual(net.mid.block_2, memory, ahead)
    for level in reversed(range(net.num_resolutions)):
        in_space, in_time = net.up[level], net.up_temporal[level]
        for block, temporal in zip(in_space.block, in_time.block, strict=True):
            yield Each(_frame_by_frame(_without_time_step(block)))
            yield _PixelByPixel(_residual(temporal, memory, ahead))
        if level in net.spatial_us:
            yield Each(_frame_by_frame(in_space.upsample))
            if level in net.tempo_us:
                yield from _upsample(in_time.upsample, memory, ahead)
                ahead *= 2
    yield Each(lambda frames: net.nonlinearity(net.norm_out(frames)))
    yield _convolution(net.conv_out, memory, ahead)


def composites(decoder: nn.Module) -> Iterator[nn.Module]:
    """The modules whose children `layers` calls in their place, parents first."""
    net = cast("Any", decoder)
    yield decoder
    yield from _entered(net.conv_in, net.conv_out)
    attention = net.mid.attn_1
    yield attention
    yield from _entered(attention.q, attention.k, attention.v, attention.proj_out)
    in_time = [
        block for level in range(net.num_resolutions) for block in net.up_temporal[level].block
    ]
    for block in (net.mid.block_1, net.mid.block_2, *in_time):
        yield block
        yield from _entered(block.conv1, block.conv2)
    for level in set(net.tempo_us) & set(net.spatial_us):
        upsample = net.up_temporal[level].upsample
        yield upsample
        yield from _entered(upsample.conv)


def _entered(*convolutions: nn.Module) -> Iterator[nn.Module]:
    """Those whose inner convolution is called; ordinary ones are called themselves."""
    return (one for one in convolutions if hasattr(one, "time_pad"))


class _Causal:
    """``VidTokCausalConv1d`` or ``VidTokCausalConv3d``, with the frames before kept here.

    Not by calling it: it would keep copies of all its input on the module, over those of others.

    Args:
        module: The diffusers layer.
        memory: Of the walk.
        ahead: Frames at the end of each run that come again with the next one.
    """

    rate = 1
    late = 0

    def __init__(self, module: nn.Module, memory: Memory, ahead: int = 0) -> None:
        self._module = cast("Any", module)
        self._memory = memory
        self._ahead = ahead
        self._begun = False

    def push(self, frames: torch.Tensor) -> torch.Tensor:
        before: int = self._module.time_pad
        if self._begun:
            window = self._memory.behind(self, frames)
        else:
            repeats = (1, 1, before) + (1,) * (frames.ndim - 3)
            window = torch.cat((frames[:, :, :1].repeat(repeats), frames), 2)
            self._begun = True
        end = window.shape[2] - self._ahead
        self._memory.keep(self, window[:, :, end - before : end])
        if window.ndim == 5:
            window = F.pad(window, self._module.spatial_padding, mode=self._module.pad_mode)
        return cast("torch.Tensor", self._module.conv(window))

    def flush(self) -> Iterator[torch.Tensor]:
        return iter(())


def _convolution(module: nn.Module, memory: Memory, ahead: int) -> Layer:
    """A convolution over three frames: back only, or (an ordinary one) back and forth."""
    if hasattr(module, "time_pad"):
        return _Causal(module, memory, ahead)
    return Neighbours(module, memory)


def _pointwise(module: nn.Module) -> Function:
    """A convolution over one pixel, without what would keep its input on the module."""
    if not hasattr(module, "time_pad"):
        return module
    net = cast("Any", module)
    # Contiguous as diffusers has it there, or torch might pick another algorithm.
    return lambda frames: cast("torch.Tensor", net.conv(frames.contiguous()))


def _without_time_step(block: nn.Module) -> Function:
    return lambda frames: cast("torch.Tensor", block(frames, None))


def _frame_by_frame(function: Function) -> Function:
    """Lift a function of pictures (N, C, H, W) to frames (B, C, T, H, W)."""

    def lifted(frames: torch.Tensor) -> torch.Tensor:
        batch, channels, time, height, width = frames.shape
        pictures = frames.permute(0, 2, 1, 3, 4).reshape(batch * time, channels, height, width)
        made = function(pictures)
        return made.reshape(batch, time, *made.shape[1:]).permute(0, 2, 1, 3, 4)

    return lifted


class _PixelByPixel:
    """A layer of (N, C, T), lifted to (B, C, T, H, W)."""

    rate = 1

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.late = layer.late
        self._clip = (0, 0, 0)

    def push(self, frames: torch.Tensor) -> Frames:
        batch, channels, time, height, width = frames.shape
        self._clip = (batch, height, width)
        made = self._layer.push(frames.permute(0, 3, 4, 1, 2).reshape(-1, channels, time))
        return None if made is None else self._lifted(made)

    def flush(self) -> Iterator[torch.Tensor]:
        return map(self._lifted, self._layer.flush())

    def _lifted(self, made: torch.Tensor) -> torch.Tensor:
        return made.reshape(*self._clip, *made.shape[1:]).permute(0, 3, 4, 1, 2)


def _residual(block: nn.Module, memory: Memory, ahead: int) -> Layer:
    """``VidTokResnetBlock`` in time, whose channels stay as many as they are."""
    net = cast("Any", block)
    path = (
        Each(lambda frames: net.nonlinearity(net.norm1(frames))),
        _convolution(net.conv1, memory, ahead),
        Each(lambda frames: net.dropout(net.nonlinearity(net.norm2(frames)))),
        _convolution(net.conv2, memory, ahead),
    )
    return Beside(Stack(path), torch.add, memory)


def _attention(block: nn.Module) -> Layer:
    """``VidTokAttnBlock``: pixels of a frame attend to one another, never to other frames."""
    net = cast("Any", block)
    inwards = [_pointwise(each) for each in (net.q, net.k, net.v)]
    outwards = _pointwise(net.proj_out)

    def attended(frames: torch.Tensor) -> torch.Tensor:
        batch, channels, time, height, width = frames.shape
        normed = net.norm(frames)
        query, key, value = (
            made(normed).permute(0, 2, 3, 4, 1).reshape(batch, time, -1, channels).contiguous()
            for made in inwards
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.reshape(batch, time, height, width, channels).permute(0, 4, 1, 2, 3)
        return frames + outwards(mixed)

    return Each(attended)


def _upsample(module: nn.Module, memory: Memory, ahead: int) -> Iterator[Layer]:
    """``VidTokUpsample3D``: twice as many frames, then these mixed with a convolution of them."""
    net = cast("Any", module)
    if not net.is_causal:
        yield Each(repeated, 2)
    elif ahead:
        yield Seamed(ahead, memory)
    else:
        yield Linear(net.num_temp_upsample, memory)

    def mixed(frames: torch.Tensor, convolved: torch.Tensor) -> torch.Tensor:
        part = torch.sigmoid(_mix_factor(module, frames.device))
        return part * frames + (1 - part) * convolved

    yield Beside(_convolution(net.conv, memory, 2 * ahead), mixed, memory)


def _mix_factor(upsample: nn.Module, device: torch.device) -> torch.Tensor:
    """Read the layer's own parameter, which its offload hook, if any, brings for a forward."""
    with onloaded(upsample):
        factor: torch.Tensor = cast("Any", upsample).mix_factor.to(device, copy=True)
    return factor
