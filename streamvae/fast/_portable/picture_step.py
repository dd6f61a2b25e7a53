"""A picture's way through AutoencoderKL's decoder, channels last."""

from __future__ import annotations

import torch
from torch.nn import functional

from streamvae.fast._wan.options import Kind

from .convolutions import convolve, tap_products
from .interface import Moments, PointwiseOps, Sums
from .picture_network import (
    Attention,
    Block,
    GroupNorm,
    Layer,
    PictureNetwork,
    ResidualBlock,
    Upsampling,
)
from .selftest import whole


class PictureDecoder:
    """Launches pictures.

    Sums of a convolution are passed over twice: once to add bias and residual, to write them and
    to measure them, once to norm and activate them. Where nothing but a norm reads them, they are
    not written.

    Args:
        network: The decoder.
        ops: What is done between convolutions.
    """

    def __init__(self, network: PictureNetwork, ops: PointwiseOps) -> None:
        self._network = network
        self._ops = ops

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Launch pictures.

        Args:
            latents: After ``post_quant_conv``, (B, C, h, w).

        Returns:
            (B, channels, H, W), in memory channels last; not clamped.
        """
        network = self._network
        given = latents.to(network.dtype).permute(0, 2, 3, 1).contiguous()
        layer = network.conv_in
        moments: Moments | None
        x, moments = self._measure(Sums(convolve(given, layer.weight), bias=layer.bias))
        for block, after in zip(network.blocks, (*network.blocks[1:], None), strict=True):
            x, moments = self._block(block, x, moments, normed=not isinstance(after, Upsampling))
        hidden = self._activate(Sums(x), moments, network.norm_out)
        return self._head(network.head, hidden).permute(0, 3, 1, 2)

    def _block(
        self, block: Block, x: torch.Tensor, moments: Moments | None, *, normed: bool
    ) -> tuple[torch.Tensor, Moments | None]:
        """Launch one; its sums, and their moments if they will be normed."""
        if isinstance(block, Upsampling):
            sums = Sums(convolve(x, block.layer.weight), Kind.UPSAMPLE, block.layer.bias)
        elif isinstance(block, Attention):
            sums = self._attend(block, x, moments)
        else:
            sums = self._residual(block, x, moments)
        if normed:
            return self._measure(sums)
        to = x.new_empty(sums.shape)
        self._ops.rms_norm(sums, to_sums=to)
        return to, None

    def _residual(self, block: ResidualBlock, x: torch.Tensor, moments: Moments | None) -> Sums:
        hidden = self._activate(Sums(x), moments, block.norm1)
        inner = Sums(convolve(hidden, block.conv1.weight), bias=block.conv1.bias)
        del hidden
        hidden = self._activate(inner, self._ops.moments(inner), block.norm2)
        del inner
        residual = x if block.shortcut is None else convolve(x, block.shortcut)
        products = convolve(hidden, block.conv2.weight)
        return Sums(products, bias=block.conv2.bias, residual=residual)

    def _attend(self, block: Attention, x: torch.Tensor, moments: Moments | None) -> Sums:
        normed = self._activate(Sums(x), moments, block.norm, silu=False)
        qkv = functional.linear(normed.flatten(1, 2), *block.qkv)
        query, key, value = (
            torch.unflatten(part, 2, (block.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2)
        products = functional.linear(mixed, block.projection.weight).view(x.shape)
        return Sums(products, bias=block.projection.bias, residual=x)

    def _measure(self, sums: Sums) -> tuple[torch.Tensor, Moments]:
        to = sums.products.new_empty(sums.shape)
        return to, self._ops.moments(sums, to_sums=to)

    def _activate(
        self, sums: Sums, moments: Moments | None, norm: GroupNorm, *, silu: bool = True
    ) -> torch.Tensor:
        assert moments is not None  # noqa: S101  # measured, since it is normed
        scale, shift = coefficients(moments, norm)
        to = sums.products.new_empty(sums.shape)
        self._ops.scale_shift(sums, scale, shift, to=to, silu=silu)
        return to

    def _head(self, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
        pixels = hidden.new_empty(*hidden.shape[:3], self._network.channels)
        if self._network.by_taps:
            self._ops.add_taps(tap_products(hidden, layer.weight), layer.bias, pixels)
        else:
            sums = Sums(convolve(hidden, layer.weight), bias=layer.bias)
            self._ops.rms_norm(sums, to_sums=pixels)
        return pixels


def coefficients(moments: Moments, norm: GroupNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a norm over groups into one product and one sum a channel.

    Args:
        moments: Of what is normed.
        norm: The norm.

    Returns:
        Scale and shift, float32 (pictures, channels).
    """
    channel_mean, channel_variance = (
        torch.unflatten(part, 1, (norm.groups, -1)) for part in whole(moments)
    )
    mean = channel_mean.mean(-1, keepdim=True)
    variance = (channel_variance + (channel_mean - mean).square()).mean(-1, keepdim=True)
    scale = norm.weight.view(norm.groups, -1) * torch.rsqrt(variance + norm.epsilon)
    shift = norm.bias.view(norm.groups, -1) - mean * scale
    return scale.flatten(1), shift.flatten(1)
