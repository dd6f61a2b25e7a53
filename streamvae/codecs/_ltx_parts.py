"""What is used of the decoders of LTX and LTX-2, and what follows from how they are built.

Upstream: ``diffusers/models/autoencoders/autoencoder_kl_ltx.py`` and ``autoencoder_kl_ltx2.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import nn

Function = Callable[[torch.Tensor], torch.Tensor]


class CausalConv(Protocol):
    """LTXVideoCausalConv3d, LTX2VideoCausalConv3d; the latter are told when they are called."""

    conv: nn.Conv3d
    kernel_size: tuple[int, int, int]
    is_causal: bool


class Resnet(Protocol):
    """LTXVideoResnetBlock3d, LTX2VideoResnetBlock3d."""

    norm1: Function
    norm2: Function
    norm3: Function | None
    nonlinearity: Function
    dropout: Function
    conv1: CausalConv
    conv2: CausalConv
    conv_shortcut: Function | None
    per_channel_scale1: nn.Parameter | None
    per_channel_scale2: nn.Parameter | None
    scale_shift_table: nn.Parameter | None


class Upsampler(Protocol):
    """LTXVideoUpsampler3d, LTX2VideoUpsampler3d."""

    conv: CausalConv
    stride: tuple[int, int, int]
    residual: bool


class Block(Protocol):
    """The middle block and the up blocks; only the latter have ``conv_in`` and ``upsamplers``."""

    conv_in: Resnet | None
    upsamplers: Sequence[Upsampler] | None
    resnets: Sequence[Resnet]
    time_embedder: nn.Module | None


class LTXDecoder(Protocol):
    """LTXVideoDecoder3d, LTX2VideoDecoder3d."""

    conv_in: CausalConv
    mid_block: Block
    up_blocks: Sequence[Block]
    norm_out: Function
    conv_act: Function
    conv_out: CausalConv
    patch_size: int
    patch_size_t: int
    time_embedder: nn.Module | None
    scale_shift_table: nn.Parameter | None
    timestep_scale_multiplier: nn.Parameter | None


def upsamplers(decoder: LTXDecoder) -> Iterator[Upsampler]:
    """All of them, in order of execution."""
    for block in decoder.up_blocks:
        yield from block.upsamplers or ()


def composites(decoder: LTXDecoder) -> Iterator[nn.Module]:
    """The modules whose children a chain calls in their place, parents first."""
    yield cast("nn.Module", decoder)
    yield from cast("list[nn.Module]", [decoder.conv_in, decoder.conv_out])
    for block in (decoder.mid_block, *decoder.up_blocks):
        yield cast("nn.Module", block)
        for upsampler in getattr(block, "upsamplers", None) or ():
            yield cast("nn.Module", upsampler)
            yield cast("nn.Module", upsampler.conv)
        entry: Resnet | None = getattr(block, "conv_in", None)
        for resnet in (*([] if entry is None else [entry]), *block.resnets):
            yield cast("nn.Module", resnet)
            yield from cast("list[nn.Module]", [resnet.conv1, resnet.conv2])


def frames_of(decoder: LTXDecoder, latents: int) -> int:
    """Frames that ``latents`` latents give: each upsampling in time loses the first few."""
    frames = latents
    for upsampler in upsamplers(decoder):
        frames = (frames - 1) * upsampler.stride[0] + 1
    return frames * decoder.patch_size_t


def scale_of(decoder: LTXDecoder) -> int:
    """Pixels of a latent along a side; the upsamplers treat height and width alike."""
    scale = decoder.patch_size
    for upsampler in upsamplers(decoder):
        scale *= upsampler.stride[1]
    return scale


def injects_noise(decoder: LTXDecoder) -> bool:
    """Whether frames depend on noise drawn while decoding."""
    blocks = (decoder.mid_block, *decoder.up_blocks)
    return any(part.per_channel_scale1 is not None for block in blocks for part in block.resnets)


def is_broken(decoder: LTXDecoder) -> bool:
    """Whether ``vae.decode`` itself fails: up blocks that change channels take neither of these."""
    entries = [block.conv_in for block in decoder.up_blocks if block.conv_in is not None]
    return any(
        entry.scale_shift_table is not None or entry.per_channel_scale1 is not None
        for entry in entries
    )
