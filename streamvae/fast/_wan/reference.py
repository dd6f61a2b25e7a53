"""What the kernels do, in torch, over the same memory: for tests, self-tests and CPUs."""

from __future__ import annotations

import torch
from torch.nn import functional

from streamvae._pixels import quantise

from .interface import Activation, Convolution, Frames, Head, Norm, count_frames
from .options import FUSED_CHANNELS, Kind
from .weights import phase_weights


class ReferenceKernels:
    """Kernels of any dtype on any device; see `interface.Kernels`.

    Args:
        compute: What is computed in. Weights and frames are rounded to their own dtype before.
        fused_channels: Up to how many channels a convolution writes its activation.
    """

    def __init__(
        self, compute: torch.dtype = torch.float32, fused_channels: int = FUSED_CHANNELS
    ) -> None:
        self.compute = compute
        self.fused_channels = fused_channels

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        """See `interface.Kernels.convolution`."""
        return _Convolution(kind, weight, bias, self.compute)

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """See `interface.Kernels.head`."""
        return _Head(Kind.PLAIN, weight, bias, self.compute)

    def norm(self, gamma: torch.Tensor) -> Norm:
        """See `interface.Kernels.norm`."""
        return _Norm(gamma, self.compute)


class _Weights:
    """A convolution's weights, and its products."""

    def __init__(
        self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor, compute: torch.dtype
    ) -> None:
        self.kind = kind
        self.dtype = weight.dtype
        weight = weight.detach()
        if kind is Kind.UPSAMPLE:
            weight = phase_weights(weight).to(weight.dtype)  # rounded once, as in the images
        self.weight = weight.to(compute)
        self.bias = bias.detach().to(compute)
        self.compute = compute

    def sums(self, source: Frames, frames: int) -> torch.Tensor:
        """Give the sums of ``frames`` frames, (frames, height, width, channels)."""
        given = source.memory[list(source.slots)].to(self.compute)
        if self.kind is Kind.UPSAMPLE:
            return self._upsampled(given.permute(0, 3, 1, 2))
        taps = len(source.slots) - frames + 1
        weight = self.weight[:, :, -taps:]
        given = given[..., : weight.shape[1]].permute(3, 0, 1, 2)[None]
        padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
        sums = functional.conv3d(given, weight, self.bias, padding=padding)[0]
        sums = sums.permute(1, 2, 3, 0).contiguous()
        if self.kind is not Kind.DOUBLE_TIME:
            return sums
        halves = sums.view(*sums.shape[:3], 2, -1).movedim(-2, 1)
        return halves.flatten(0, 1)

    def _upsampled(self, given: torch.Tensor) -> torch.Tensor:
        count, _, height, width = given.shape
        sums = given.new_empty(count, 2 * height, 2 * width, self.bias.shape[0])
        for phase, weight in enumerate(self.weight):
            y, x = divmod(phase, 2)
            seen = functional.pad(given, (1 - x, x, 1 - y, y))
            products = functional.conv2d(seen, weight, self.bias)
            sums[:, y::2, x::2] = products.permute(0, 2, 3, 1)
        return sums


class _Convolution(_Weights):
    def __call__(
        self,
        source: Frames,
        *,
        to: Frames | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        sums = self.sums(source, count_frames(self.kind, to, activation))
        if residual is not None:
            sums = sums + residual
        if to is not None:
            _write(to, sums)
        if activation is not None:
            normed = _normed(sums, activation.gamma.to(self.compute))
            _write(activation.to, functional.silu(normed))


class _Head(_Weights):
    def __call__(
        self, source: Frames, pixels: torch.Tensor, finite: torch.Tensor | None = None
    ) -> None:
        sums = self.sums(source, pixels.shape[0])
        if pixels.dtype is torch.uint8:
            assert finite is not None  # noqa: S101  # see `interface.Head`
            finite.logical_and_(~sums.isnan().any())
            sums = quantise(sums.to(self.dtype).clamp(-1, 1))
        pixels.copy_(sums)


class _Norm:
    def __init__(self, gamma: torch.Tensor, compute: torch.dtype) -> None:
        self.gamma = gamma.detach().to(compute)

    def __call__(self, source: torch.Tensor, to: Frames, *, silu: bool = True) -> None:
        normed = _normed(source.to(self.gamma.dtype), self.gamma)
        _write(to, functional.silu(normed) if silu else normed)


def _normed(sums: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    scale: float = sums.shape[-1] ** 0.5
    return functional.normalize(sums, dim=-1) * scale * gamma


def _write(to: Frames, frames: torch.Tensor) -> None:
    for slot, frame in zip(to.slots, frames, strict=True):
        to.memory[slot].copy_(frame)
