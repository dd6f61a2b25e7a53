"""What is launched between convolutions, as a protocol: by Triton on a card, or in torch anywhere.

All frames are channels last and contiguous, (frames, height, width, channels). Sums of a
convolution come without its bias, in an arrangement (`streamvae.fast._wan.options.Kind`): as they
are; `UPSAMPLE`, the four pixels of a square side by side, (frames, height / 2, width / 2,
4 * channels); `DOUBLE_TIME`, two frames side by side, (frames / 2, height, width, 2 * channels).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from streamvae.fast._wan.options import Kind


class Sums(NamedTuple):
    """What a convolution gave.

    Attributes:
        products: In the arrangement of ``kind``, any floating dtype.
        kind: The arrangement.
        bias: float32 (channels,), of `DOUBLE_TIME` (2 * channels,), not yet added; or None.
        residual: (frames, height, width, channels) to be added, or None.
    """

    products: torch.Tensor
    kind: Kind = Kind.PLAIN
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width, channels once they are arranged."""
        frames, height, width, channels = self.products.shape
        if self.kind is Kind.UPSAMPLE:
            return frames, 2 * height, 2 * width, channels // 4
        if self.kind is Kind.DOUBLE_TIME:
            return 2 * frames, height, width, channels // 2
        return frames, height, width, channels


class Moments(NamedTuple):
    """Of each channel in each of ``parts`` of a frame: float32 (frames, parts, channels).

    Attributes:
        pixels: Of a part, float32 (parts,).
        mean: Of these pixels.
        squares: Sum of the squared distances from this mean.
    """

    pixels: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor


class PointwiseOps(Protocol):
    """Launched on the current stream; computes in float32, rounds once to what it writes."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def rms_norm(
        self,
        sums: Sums,
        *,
        to_sums: torch.Tensor | None = None,
        to_norm: torch.Tensor | None = None,
        gamma: torch.Tensor | None = None,
        silu: bool = True,
    ) -> None:
        """Write arranged sums, silu(rms_norm(sums) * gamma), or both.

        Args:
            sums: What a convolution gave.
            to_sums: Where sums are written; may be the residual.
            to_norm: Where the norm over their channels is written.
            gamma: float32 (channels,), with ``to_norm``.
            silu: Whether SiLU comes after it.
        """
        ...

    def moments(self, sums: Sums, *, to_sums: torch.Tensor | None = None) -> Moments:
        """Measure arranged sums, and write them if there is somewhere to."""
        ...

    def scale_shift(
        self, sums: Sums, scale: torch.Tensor, shift: torch.Tensor, *, to: torch.Tensor, silu: bool
    ) -> None:
        """Write ``sums * scale + shift``, with SiLU or not.

        Args:
            sums: What a convolution gave, without residual.
            scale: float32 (frames, channels).
            shift: The same.
            to: Where.
            silu: Whether SiLU comes after it.
        """
        ...

    def add_taps(self, planes: torch.Tensor, bias: torch.Tensor, pixels: torch.Tensor) -> None:
        """Sum a 3x3 convolution of few channels, whose products are already there.

        Args:
            planes: (frames + taps in time - 1, rows, height, width): of each input frame its
                products with every tap, at least ``taps * 9 * channels`` rows, ordered by time, y,
                x, output channel.
            bias: float32 (channels,).
            pixels: (frames, height, width, channels), of a floating dtype.
        """
        ...
