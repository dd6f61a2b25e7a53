"""AutoencoderKL's decoder as layers to launch: built once, shared by all streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from streamvae.fast._wan.network import UnsupportedError

from .convolutions import prepare, prepare_taps, prepare_upsampling

#: Modules of diffusers, whose attributes have no types.
_Untyped = Any

#: Output channels up to which a 3x3 is cheaper as products with every tap, summed afterwards.
_FEW = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or a linear layer.

    Attributes:
        weight: As `convolutions.convolve` takes it; of a head as `convolutions.tap_products` does.
        bias: float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """A norm over groups of channels; ``weight`` and ``bias`` float32."""

    weight: torch.Tensor
    bias: torch.Tensor
    groups: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class ResidualBlock:
    """norm, SiLU, convolution, twice; and the weight of the shortcut, None if it is the identity.

    The shortcut's bias is in that of ``conv2``.
    """

    norm1: GroupNorm
    conv1: Layer
    norm2: GroupNorm
    conv2: Layer
    shortcut: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Attention:
    """Over all pixels of a picture: query, key and value in one matrix."""

    norm: GroupNorm
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    projection: Layer
    heads: int


@dataclass(frozen=True, slots=True)
class Upsampling:
    """A 3x3 convolution after nearest 2x upsampling."""

    layer: Layer


Block = ResidualBlock | Attention | Upsampling


@dataclass(frozen=True, slots=True)
class PictureNetwork:
    """A decoder.

    Attributes:
        dtype: Of weights.
        conv_in: The first convolution.
        blocks: In order.
        norm_out: The head's norm.
        head: The last convolution.
        channels: Of pixels.
        by_taps: Whether the head is laid out as a matrix.
    """

    dtype: torch.dtype
    conv_in: Layer
    blocks: tuple[Block, ...]
    norm_out: GroupNorm
    head: Layer
    channels: int
    by_taps: bool

    @property
    def nbytes(self) -> int:
        """Of the weights of convolutions, which are nearly all there is."""
        layers = [self.conv_in, self.head]
        for block in self.blocks:
            if isinstance(block, ResidualBlock):
                layers += (block.conv1, block.conv2)
            elif isinstance(block, Upsampling):
                layers.append(block.layer)
        return sum(layer.weight.nbytes for layer in layers)


def build(decoder: nn.Module, *, dry: bool = False) -> PictureNetwork:
    """Rebuild ``AutoencoderKL.decoder``.

    Args:
        decoder: diffusers' ``Decoder``.
        dry: Copy no weights: only to see whether it can be rebuilt.

    Raises:
        UnsupportedError: It has a part that is not known.
    """
    return _Builder(dry=dry).network(cast("_Untyped", decoder))


class _Builder:
    """Walks the decoder in order of execution."""

    def __init__(self, *, dry: bool) -> None:
        self._dry = dry

    def network(self, decoder: _Untyped) -> PictureNetwork:
        _expect(type(decoder).__name__ == "Decoder", decoder)
        middle = decoder.mid_block
        _expect(type(middle).__name__ == "UNetMidBlock2D", middle)
        blocks: list[Block] = [self.block(middle.resnets[0])]
        for attention, resnet in zip(middle.attentions, list(middle.resnets)[1:], strict=True):
            if attention is not None:
                blocks.append(self.attention(attention))
            blocks.append(self.block(resnet))
        for up in decoder.up_blocks:
            _expect(type(up).__name__ == "UpDecoderBlock2D", up)
            blocks += map(self.block, up.resnets)
            blocks += map(self.upsampling, up.upsamplers or ())
        _expect(type(decoder.conv_act) is nn.SiLU, decoder.conv_act)
        conv_in = self.convolution(decoder.conv_in)
        norm_out, out = _norm(decoder.conv_norm_out), decoder.conv_out
        _expect_convolution(out, (3, 3))
        channels: int = out.out_channels
        by_taps = channels <= _FEW
        weight = self.lay_out(prepare_taps, out.weight[:, :, None])
        if not by_taps:
            weight = self.lay_out(prepare, out.weight)
        head = Layer(weight, out.bias.detach().float())
        dtype: torch.dtype = out.weight.dtype
        return PictureNetwork(dtype, conv_in, tuple(blocks), norm_out, head, channels, by_taps)

    def lay_out(
        self, how: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor
    ) -> torch.Tensor:
        return weight.detach() if self._dry else how(weight)

    def convolution(self, layer: _Untyped) -> Layer:
        _expect_convolution(layer, (3, 3))
        return Layer(self.lay_out(prepare, layer.weight), layer.bias.detach().float())

    def block(self, block: _Untyped) -> ResidualBlock:
        _expect(type(block).__name__ == "ResnetBlock2D", block)
        _expect(type(block.nonlinearity) is nn.SiLU, block.nonlinearity)
        extras = (block.upsample, block.downsample, block.time_emb_proj)
        plain = block.time_embedding_norm != "scale_shift" and block.output_scale_factor == 1
        _expect(plain and not any(extra is not None for extra in extras), block)
        conv1, conv2 = self.convolution(block.conv1), self.convolution(block.conv2)
        shortcut = None
        if block.conv_shortcut is not None:
            _expect_convolution(block.conv_shortcut, (1, 1))
            shortcut = self.lay_out(prepare, block.conv_shortcut.weight)
            conv2 = Layer(conv2.weight, conv2.bias + block.conv_shortcut.bias.detach().float())
        return ResidualBlock(_norm(block.norm1), conv1, _norm(block.norm2), conv2, shortcut)

    def attention(self, block: _Untyped) -> Attention:
        plain = (
            type(block).__name__ == "Attention"
            and type(block.processor).__name__ in {"AttnProcessor", "AttnProcessor2_0"}
            and block.spatial_norm is block.norm_q is block.norm_k is None
            and block.residual_connection
            and block.rescale_output_factor == 1
            and block.to_out[0].bias is not None
        )
        _expect(plain, block)
        parts, biases = (block.to_q, block.to_k, block.to_v), None
        weight = parts[0].weight.detach()
        if not self._dry:
            weight = torch.cat([part.weight.detach() for part in parts])
            if block.to_q.bias is not None:
                biases = torch.cat([part.bias.detach() for part in parts])
        out = block.to_out[0]
        copied = self.lay_out(torch.clone, out.weight.detach())
        projection = Layer(copied, out.bias.detach().float())
        return Attention(_norm(block.group_norm), (weight, biases), projection, block.heads)

    def upsampling(self, upsampler: _Untyped) -> Upsampling:
        plain = (
            type(upsampler).__name__ == "Upsample2D"
            and upsampler.norm is None
            and upsampler.use_conv
            and upsampler.interpolate
            and not upsampler.use_conv_transpose
            and upsampler.name == "conv"
        )
        _expect(plain, upsampler)
        _expect_convolution(upsampler.conv, (3, 3))
        weight = self.lay_out(prepare_upsampling, upsampler.conv.weight)
        return Upsampling(Layer(weight, upsampler.conv.bias.detach().float()))


def _norm(norm: _Untyped) -> GroupNorm:
    _expect(type(norm) is nn.GroupNorm and norm.affine, norm)
    weight, bias = norm.weight.detach().float(), norm.bias.detach().float()
    return GroupNorm(weight, bias, norm.num_groups, norm.eps)


def _expect_convolution(layer: _Untyped, kernel: tuple[int, int]) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    plain = (
        type(layer) is nn.Conv2d
        and tuple(layer.kernel_size) == kernel
        and tuple(layer.padding) == padding
        and (tuple(layer.stride), tuple(layer.dilation), layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding_mode == "zeros"
        and layer.bias is not None
    )
    _expect(plain, layer)


def _expect(plain: bool, part: object) -> None:  # noqa: FBT001  # what it says
    if not plain:
        raise UnsupportedError(f"a {type(part).__name__} of this form")
