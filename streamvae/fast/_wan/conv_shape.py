"""A layer's shape, and the specialisation of the kernel for each of its calls."""

from __future__ import annotations

import torch

from .interface import Frames
from .options import ConvOptions, Kind, block_channels, block_frames
from .weights import padded


class ConvShape:
    """What a convolution's options depend on, besides how it is called.

    Args:
        kind: What it is.
        channels: Output channels of a frame.
        in_channels: Padded to whole chunks.
        taps: In time, y and x, all of them.
    """

    def __init__(
        self, kind: Kind, channels: int, in_channels: int, taps: tuple[int, int, int]
    ) -> None:
        self.kind = kind
        self.channels = channels
        self.in_channels = in_channels
        self.taps = taps
        self.block = 8 if kind is Kind.HEAD else block_channels(channels)

    @classmethod
    def of(cls, kind: Kind, weight: torch.Tensor) -> ConvShape:
        """The shape of a layer with this weight."""
        out, inputs = weight.shape[:2]
        taps = (1, 2, 2) if kind is Kind.UPSAMPLE else tuple(weight.shape[2:])
        channels = out // 2 if kind is Kind.DOUBLE_TIME else out
        return cls(kind, channels, padded(inputs), taps)  # type: ignore[arg-type]

    @property
    def channel_blocks(self) -> int:
        """Blocks of channels, those of all phases and of both frames counted."""
        each = -(-self.channels // self.block)
        return each * {Kind.UPSAMPLE: 4, Kind.DOUBLE_TIME: 2}.get(self.kind, 1)

    def options(
        self, source: Frames, frames: int, *, residual: bool, write_sum: bool, write_norm: bool
    ) -> ConvOptions:
        """Choose the specialisation for a call."""
        time = 1 if self.kind is Kind.UPSAMPLE else len(source.slots) - frames + 1
        if not 1 <= time <= self.taps[0] or source.channels != self.in_channels:
            raise ValueError(
                f"expected {frames} to {frames + self.taps[0] - 1} frames of {self.in_channels} "
                f"channels, got {len(source.slots)} of {source.channels}"
            )
        return ConvOptions(
            self.kind,
            self.in_channels,
            self.block,
            block_frames(self.block, frames, time),
            (time, *self.taps[1:]),
            residual,
            write_sum,
            write_norm,
        )
