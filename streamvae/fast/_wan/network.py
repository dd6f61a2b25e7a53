"""A Wan decoder as layers to launch: built once from its modules, shared by all streams."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from .interface import Convolution, Head, Kernels, Norm
from .options import Kind
from .weights import padded

#: Modules of diffusers, whose attributes have no types.
Untyped = Any


class UnsupportedError(ValueError):
    """A decoder that this step cannot rebuild; says what of it."""


@dataclass(frozen=True, slots=True)
class Input:
    """A causal convolution's place in the decoder: where its history is kept.

    Attributes:
        index: Among all, in order of execution.
        level: How often its input was upsampled.
        channels: Of its input, padded to whole chunks where they are latents.
        rate: Frames for each latent, after the first.
    """

    index: int
    level: int
    channels: int
    rate: int


@dataclass(frozen=True, slots=True)
class Causal:
    """A convolution over frames and their history."""

    input: Input
    launch: Convolution


@dataclass(frozen=True, slots=True)
class Normalization:
    """A norm's gamma, to be fused, and the norm on its own."""

    gamma: torch.Tensor
    launch: Norm


@dataclass(frozen=True, slots=True)
class ResidualBlock:
    """norm, SiLU, convolution, twice; and the shortcut, None where it is the identity."""

    norm1: Normalization
    conv1: Causal
    norm2: Normalization
    conv2: Causal
    shortcut: Convolution | None
    channels: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Over all pixels of a frame, one head; weights (out, in) and biases."""

    norm: Normalization
    qkv: tuple[torch.Tensor, torch.Tensor]
    projection: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Upsampling:
    """Twice the frames, where there is a convolution in time, and twice the height and width."""

    time: Causal | None
    space: Convolution
    channels: int


@dataclass(frozen=True, slots=True)
class Level:
    """Residual blocks of one size, with attention between those of the middle block."""

    blocks: tuple[ResidualBlock | Attention, ...]
    upsampling: Upsampling | None


@dataclass(slots=True)
class Network:
    """A decoder.

    Attributes:
        latent_channels: Before padding.
        dtype: Of weights and frames.
        conv_in: The first convolution.
        conv_in_channels: Of its output.
        levels: The middle block's and the up blocks'; the middle has the first up block's size.
        norm_out: The head's norm.
        head_input: Where the head's history is kept.
        head: The last convolution.
        inputs: Of all causal convolutions, in order.
        rate: Frames for each latent, after the first.
        scale: Pixels along a side of a latent.
    """

    latent_channels: int
    dtype: torch.dtype
    conv_in: Causal
    conv_in_channels: int
    levels: tuple[Level, ...]
    norm_out: Normalization
    head_input: Input
    head: Head
    inputs: tuple[Input, ...]
    rate: int
    scale: int


def build(decoder: nn.Module, kernels: Kernels) -> Network:
    """Rebuild ``AutoencoderKLWan.decoder``.

    Args:
        decoder: A WanDecoder3d, not the residual one of Wan 2.2.
        kernels: Make its layers.

    Raises:
        UnsupportedError: It is something else.
    """
    return _Builder(kernels).network(cast("Untyped", decoder))


@dataclass(slots=True)
class _Builder:
    """Walks the decoder in order of execution, counting sizes and inputs."""

    kernels: Kernels
    inputs: list[Input] = field(default_factory=list)
    level: int = 0
    rate: int = 1

    def network(self, decoder: Untyped) -> Network:
        weight = decoder.conv_in.weight
        conv_in = self.causal(decoder.conv_in)
        middle = decoder.mid_block
        blocks: list[ResidualBlock | Attention] = [self.block(middle.resnets[0])]
        for attention, resnet in zip(middle.attentions, list(middle.resnets)[1:], strict=True):
            if attention is not None:
                blocks.append(self.attention(attention))
            blocks.append(self.block(resnet))
        levels = [Level(tuple(blocks), None), *(self.up_block(up) for up in decoder.up_blocks)]
        _expect_joined(levels)
        norm_out = self.normalization(decoder.norm_out)
        out = decoder.conv_out
        if out.weight.shape[0] != 3:
            raise UnsupportedError(f"a head of {out.weight.shape[0]} channels")
        head_input = self.input(out.weight.shape[1])
        _expect_kernel(out, (3, 3, 3))
        head = self.kernels.head(out.weight, out.bias)
        return Network(
            weight.shape[1],
            weight.dtype,
            conv_in,
            weight.shape[0],
            tuple(levels),
            norm_out,
            head_input,
            head,
            tuple(self.inputs),
            self.rate,
            2**self.level,
        )

    def up_block(self, up: Untyped) -> Level:
        if type(up).__name__ != "WanUpBlock":
            raise UnsupportedError(f"a {type(up).__name__}")
        blocks = tuple(self.block(resnet) for resnet in up.resnets)
        if up.upsamplers is None:
            return Level(blocks, None)
        (resample,) = up.upsamplers
        if resample.mode not in {"upsample2d", "upsample3d"}:
            raise UnsupportedError(f"a WanResample of mode {resample.mode}")
        time = None
        if resample.mode == "upsample3d":
            time = self.causal(resample.time_conv, Kind.DOUBLE_TIME, (3, 1, 1))
            self.rate *= 2
        convolution = resample.resample[1]
        space = self.kernels.convolution(Kind.UPSAMPLE, convolution.weight, convolution.bias)
        self.level += 1
        return Level(blocks, Upsampling(time, space, convolution.weight.shape[0]))

    def block(self, block: Untyped) -> ResidualBlock:
        if type(block.nonlinearity) is not nn.SiLU:
            raise UnsupportedError(f"{type(block.nonlinearity).__name__} in place of SiLU")
        shortcut = None
        if not isinstance(block.conv_shortcut, nn.Identity):
            plain = block.conv_shortcut
            _expect_kernel(plain, (1, 1, 1))
            shortcut = self.kernels.convolution(Kind.PLAIN, plain.weight, plain.bias)
        norm1, conv1 = self.normalization(block.norm1), self.causal(block.conv1)
        norm2, conv2 = self.normalization(block.norm2), self.causal(block.conv2)
        channels = block.conv2.weight.shape[0]
        return ResidualBlock(norm1, conv1, norm2, conv2, shortcut, channels)

    def attention(self, block: Untyped) -> Attention:
        def flat(layer: Untyped) -> tuple[torch.Tensor, torch.Tensor]:
            return layer.weight.detach().flatten(1), layer.bias.detach()

        return Attention(self.normalization(block.norm), flat(block.to_qkv), flat(block.proj))

    def causal(
        self, layer: Untyped, kind: Kind = Kind.PLAIN, kernel: tuple[int, int, int] = (3, 3, 3)
    ) -> Causal:
        _expect_kernel(layer, kernel)
        place = self.input(layer.weight.shape[1])
        return Causal(place, self.kernels.convolution(kind, layer.weight, layer.bias))

    def input(self, channels: int) -> Input:
        """The next one; latents, which are the first, are padded."""
        count = channels if self.inputs else padded(channels)
        place = Input(len(self.inputs), self.level, count, self.rate)
        self.inputs.append(place)
        return place

    def normalization(self, norm: Untyped) -> Normalization:
        if not isinstance(norm.bias, float) or norm.bias:
            raise UnsupportedError(f"a {type(norm).__name__} with a bias")
        gamma = norm.gamma.detach().flatten()
        return Normalization(gamma.float().contiguous(), self.kernels.norm(gamma))


def _expect_kernel(layer: Untyped, kernel: tuple[int, int, int]) -> None:
    unusual = (tuple(layer.stride), tuple(layer.dilation), layer.groups) != ((1,) * 3, (1,) * 3, 1)
    if tuple(layer.kernel_size) != kernel or unusual or layer.bias is None:
        raise UnsupportedError(f"a {layer}")


def _expect_joined(levels: list[Level]) -> None:
    """Raise unless every level but the middle's and the last one ends with upsampling."""
    for level, after in pairwise(levels[1:]):
        if level.upsampling is None or not after.blocks:
            raise UnsupportedError("up blocks that do not upsample")
    if levels[-1].upsampling is not None:
        raise UnsupportedError("a last up block that upsamples")
