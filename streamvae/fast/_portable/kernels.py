"""`streamvae.fast._wan.interface.Kernels` by cuDNN or oneDNN, with all that is pointwise fused.

Sums of a convolution come without bias. One pass over them then does all the rest: bias, residual,
norm, SiLU, and the write to where the next convolution reads (`interface.PointwiseOps`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from streamvae._pixels import quantise
from streamvae.fast._wan.interface import (
    Activation,
    Convolution,
    Frames,
    Head,
    Norm,
    count_frames,
)
from streamvae.fast._wan.options import Kind
from streamvae.fast._wan.repeat import Shortcut

from .convolutions import convolve, prepare, prepare_taps, prepare_upsampling, tap_products
from .interface import PointwiseOps, Sums


class PortableKernels:
    """Kernels for any device that torch convolves on.

    Args:
        ops: What is done between convolutions.
    """

    #: Norms are fused at any width.
    fused_channels = sys.maxsize

    def __init__(self, ops: PointwiseOps) -> None:
        self.ops = ops
        #: Bytes of all weights that were laid out.
        self.packed_bytes = 0

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        """See `interface.Kernels.convolution`."""
        layer = _Convolution(self.ops, kind, weight, bias)
        self.packed_bytes += layer.nbytes
        return layer

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """See `interface.Kernels.head`."""
        layer = _Head(self.ops, weight, bias)
        self.packed_bytes += layer.nbytes
        return layer

    def norm(self, gamma: torch.Tensor) -> Norm:
        """See `interface.Kernels.norm`."""
        return _Norm(self.ops, gamma)


class _Weights:
    """A layer's weights, laid out for all its taps in time, and for the last one alone.

    A clip's first frame, before which all is zeros, wants that one. Streams share them, each on a
    stream of its own, so nothing is laid out later.
    """

    def __init__(
        self, weight: torch.Tensor, lay_out: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self._weight = weight.detach()
        self._lay_out = lay_out
        self._ready = {taps: lay_out(self._weight[:, :, -taps:]) for taps in {1, weight.shape[2]}}

    @property
    def nbytes(self) -> int:
        """Of what is ready."""
        return sum(weight.nbytes for weight in self._ready.values())

    def of(self, taps: int) -> torch.Tensor:
        """Give the last ``taps`` in time."""
        ready = self._ready.get(taps)
        return self._lay_out(self._weight[:, :, -taps:]) if ready is None else ready


class _Convolution:
    def __init__(
        self, ops: PointwiseOps, kind: Kind, weight: torch.Tensor, bias: torch.Tensor
    ) -> None:
        self._ops = ops
        self._kind = kind
        self._bias = bias.detach().float()
        self._in_channels = weight.shape[1]
        if kind is Kind.UPSAMPLE:
            self._upsampling = prepare_upsampling(weight)
            self.nbytes = self._upsampling.nbytes
        else:
            self._weights = _Weights(weight, prepare)
            self.nbytes = self._weights.nbytes

    def __call__(
        self,
        source: Frames,
        *,
        to: Frames | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        frames = count_frames(self._kind, to, activation)
        given = adjacent(source)
        if source.channels > self._in_channels:  # latents, filled up
            given = given[..., : self._in_channels].contiguous()
        if self._kind is Kind.UPSAMPLE:
            products = convolve(given, self._upsampling)
        else:
            products = convolve(given, self._weights.of(given.shape[0] - frames + 1))
        self._ops.rms_norm(
            Sums(products, self._kind, self._bias, residual),
            to_sums=None if to is None else adjacent(to),
            to_norm=None if activation is None else adjacent(activation.to),
            gamma=None if activation is None else activation.gamma,
        )


class _Head:
    def __init__(self, ops: PointwiseOps, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._ops = ops
        self._bias = bias.detach().float()
        self._weights = _Weights(weight, prepare_taps)
        self.nbytes = self._weights.nbytes

    def __call__(
        self, source: Frames, pixels: torch.Tensor, finite: torch.Tensor | None = None
    ) -> None:
        given = adjacent(source)
        matrix = self._weights.of(given.shape[0] - pixels.shape[0] + 1)
        levels = pixels.dtype is torch.uint8
        sums = torch.empty_like(pixels, dtype=given.dtype) if levels else pixels
        self._ops.add_taps(tap_products(given, matrix), self._bias, sums)
        if levels:
            assert finite is not None  # noqa: S101  # see `interface.Head`
            finite.logical_and_(~sums.isnan().any())
            pixels.copy_(quantise(sums.clamp_(-1, 1)))


class _Norm:
    def __init__(self, ops: PointwiseOps, gamma: torch.Tensor) -> None:
        self._ops = ops
        self._gamma = gamma.detach().float().contiguous()

    def __call__(
        self,
        source: torch.Tensor,
        to: Frames,
        *,
        silu: bool = True,
        shortcut: Shortcut | None = None,
    ) -> None:
        if shortcut is not None:
            shortcut.add_to(source)
        self._ops.rms_norm(Sums(source), to_norm=adjacent(to), gamma=self._gamma, silu=silu)


def adjacent(frames: Frames) -> torch.Tensor:
    """Frames as one tensor, without a copy.

    Raises:
        ValueError: They do not lie one after another.
    """
    first, count = frames.slots[0], len(frames.slots)
    if frames.slots != tuple(range(first, first + count)):
        raise ValueError(f"expected frames one after another, got slots {frames.slots}")
    return frames.memory[first : first + count]
