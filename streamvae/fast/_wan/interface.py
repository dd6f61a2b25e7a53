"""What a step launches, as protocols: kernels on a card, or the same in torch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from .options import Kind


class Frames(NamedTuple):
    """Frames in temporal order, each somewhere in a tensor.

    Attributes:
        memory: (slots, height, width, channels), contiguous.
        slots: Where the frames are.
    """

    memory: torch.Tensor
    slots: tuple[int, ...]

    @classmethod
    def of(cls, memory: torch.Tensor) -> Frames:
        """All frames of a tensor."""
        return cls(memory, tuple(range(memory.shape[0])))

    @property
    def channels(self) -> int:
        """Channels of a pixel."""
        return self.memory.shape[-1]


class Activation(NamedTuple):
    """silu(rms_norm(x) * gamma), and where it is written.

    Attributes:
        gamma: float32 (channels,).
        to: The frames.
    """

    gamma: torch.Tensor
    to: Frames


class Convolution(Protocol):
    """A convolution with its weights."""

    def __call__(
        self,
        source: Frames,
        *,
        to: Frames | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Write sums, their activation, or both.

        Args:
            source: The input frames: as many as are written, and before them one for each further
                tap in time. Where there are fewer, the earliest taps are left out: a clip's first
                frame, before which all is zeros, is read alone.
            to: Where sums are written; may be the residual's memory.
            activation: Where their activation is written; of at most ``Kernels.fused_channels``
                channels.
            residual: (frames, height, width, channels), added to the sums.
        """
        ...


class Head(Protocol):
    """The last convolution: three channels."""

    def __call__(
        self, source: Frames, pixels: torch.Tensor, finite: torch.Tensor | None = None
    ) -> None:
        """Write pixels.

        Args:
            source: As of `Convolution`.
            pixels: (frames, height, width, 3), contiguous: the weights' dtype, or uint8. Levels are
                those of pixels that were rounded and clamped (`streamvae._pixels.quantise`).
            finite: A bool, which levels need: it becomes False where a pixel is no number.
        """
        ...


class Norm(Protocol):
    """A norm with its gamma, on its own."""

    def __call__(self, source: torch.Tensor, to: Frames, *, silu: bool = True) -> None:
        """Norm (frames, height, width, channels) over its channels."""
        ...


class Kernels(Protocol):
    """Makes layers of weights, once; they are launched on the current stream of their device."""

    @property
    def fused_channels(self) -> int:
        """Up to how many channels a convolution writes its activation."""
        ...

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        """Make a convolution.

        Args:
            kind: What it is; not `Kind.HEAD`.
            weight: (out, in, taps in time, y, x); of `Kind.UPSAMPLE` (out, in, 3, 3). For
                `Kind.DOUBLE_TIME` ``out`` is twice the channels of a frame.
            bias: (out,).
        """
        ...

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """Make the head: ``weight`` (3, in, taps in time, y, x), ``bias`` (3,)."""
        ...

    def norm(self, gamma: torch.Tensor) -> Norm:
        """Make a norm: ``gamma`` (channels,)."""
        ...


def count_frames(kind: Kind, to: Frames | None, activation: Activation | None) -> int:
    """Count the frames that a convolution makes, of which `Kind.DOUBLE_TIME` writes two each."""
    written = to if to is not None else activation and activation.to
    if not written:
        raise ValueError("expected somewhere to write to, got nowhere")
    return len(written.slots) // (2 if kind is Kind.DOUBLE_TIME else 1)
