"""A Wan decoder as layers to launch: built once from its modules, shared by all streams."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from .interface import Convolution, Frames, Head, Kernels, Norm
from .options import Kind
from .repeat import Repeat
from .weights import padded

_UP_BLOCKS = {"WanUpBlock", "QwenImageUpBlock", "WanResidualUpBlock"}

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
    """Residual blocks of one size, with attention between those of the middle block.

    Attributes:
        blocks: In order.
        upsampling: After them.
        shortcut: Around all of it.
    """

    blocks: tuple[ResidualBlock | Attention, ...]
    upsampling: Upsampling | None
    shortcut: Repeat | None = None


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The convolution that gives pixels.

    Attributes:
        input: Where its history is.
        launch: The convolution.
        channels: Of its pixels: three, or those of a patch.
        width: Channels that are written.
        quantises: Whether it can write levels.
    """

    input: Input
    launch: Head
    channels: int
    width: int
    quantises: bool


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
    head: LastLayer
    inputs: tuple[Input, ...]
    rate: int
    scale: int


def build(decoder: nn.Module, kernels: Kernels) -> Network:
    """Rebuild the decoder of AutoencoderKLWan or AutoencoderKLQwenImage.

    Args:
        decoder: A WanDecoder3d, of Wan 2.1 or 2.2, or a QwenImageDecoder3d.
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
        head = self.head(decoder.conv_out)
        return Network(
            weight.shape[1],
            weight.dtype,
            conv_in,
            weight.shape[0],
            tuple(levels),
            norm_out,
            head,
            tuple(self.inputs),
            self.rate,
            2**self.level,
        )

    def head(self, out: Untyped) -> LastLayer:
        """Three channels have a kernel; those of a patch are one convolution as others are."""
        _expect_kernel(out, (3, 3, 3))
        place = self.input(out.weight.shape[1])
        weight, bias = out.weight.detach(), out.bias.detach()
        channels = weight.shape[0]
        if channels == 3:
            return LastLayer(place, self.kernels.head(weight, bias), 3, 3, quantises=True)
        missing = padded(channels) - channels
        weight = functional.pad(weight, (0, 0) * 4 + (0, missing))
        layer = self.kernels.convolution(Kind.PLAIN, weight, functional.pad(bias, (0, missing)))

        def launch(
            source: Frames, pixels: torch.Tensor, finite: torch.Tensor | None = None
        ) -> None:
            del finite  # these are no levels
            layer(source, to=Frames.of(pixels))

        return LastLayer(place, launch, channels, padded(channels), quantises=False)

    def up_block(self, up: Untyped) -> Level:
        if type(up).__name__ not in _UP_BLOCKS:
            raise UnsupportedError(f"a {type(up).__name__}")
        blocks = tuple(self.block(resnet) for resnet in up.resnets)
        residual = type(up).__name__ == "WanResidualUpBlock"
        resample = up.upsampler if residual else up.upsamplers and up.upsamplers[0]
        if resample is None:
            return Level(blocks, None)
        if resample.mode not in {"upsample2d", "upsample3d"}:
            raise UnsupportedError(f"a {type(resample).__name__} of mode {resample.mode}")
        upsampling = self.upsampling(resample)
        shortcut = up.avg_shortcut if residual else None
        if shortcut is None:
            return Level(blocks, upsampling)
        if shortcut.factor_t != (1 if upsampling.time is None else 2) or shortcut.factor_s != 2:
            raise UnsupportedError("a shortcut that upsamples otherwise than its block")
        if shortcut.factor % shortcut.repeats:
            raise UnsupportedError(f"a shortcut of {shortcut.in_channels} channels")
        return Level(blocks, upsampling, Repeat(shortcut.factor_t, upsampling.channels))

    def upsampling(self, resample: Untyped) -> Upsampling:
        time = None
        if resample.mode == "upsample3d":
            time = self.causal(resample.time_conv, Kind.DOUBLE_TIME, (3, 1, 1))
            self.rate *= 2
        convolution = resample.resample[1]
        space = self.kernels.convolution(Kind.UPSAMPLE, convolution.weight, convolution.bias)
        self.level += 1
        return Upsampling(time, space, convolution.weight.shape[0])

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
