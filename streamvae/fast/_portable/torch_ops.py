"""`interface.PointwiseOps` in torch: on any device, and what Triton's are held against."""

from __future__ import annotations

import torch
from torch.nn import functional

from streamvae.fast._wan.options import Kind

from .interface import Moments, Sums

#: Below this the norm of a pixel is no divisor, as `torch.nn.functional.normalize` has it.
EPSILON = 1e-12


class TorchOps:
    """See `interface.PointwiseOps`; frame by frame, so that float32 copies stay small.

    Args:
        compute: What is computed in.
    """

    name = "torch's operations"

    def __init__(self, compute: torch.dtype = torch.float32) -> None:
        self._compute = compute

    def rms_norm(
        self,
        sums: Sums,
        *,
        to_sums: torch.Tensor | None = None,
        to_norm: torch.Tensor | None = None,
        gamma: torch.Tensor | None = None,
        silu: bool = True,
    ) -> None:
        """See `interface.PointwiseOps.rms_norm`."""
        for number in range(sums.shape[0]):
            frame = self._frame(sums, number)
            if to_sums is not None:
                to_sums[number].copy_(frame)
            if to_norm is not None and gamma is not None:
                scale = gamma.to(self._compute) * frame.shape[-1] ** 0.5
                normed = functional.normalize(frame, dim=-1, eps=EPSILON).mul_(scale)
                to_norm[number].copy_(functional.silu(normed, inplace=True) if silu else normed)

    def moments(self, sums: Sums, *, to_sums: torch.Tensor | None = None) -> Moments:
        """See `interface.PointwiseOps.moments`; a frame is one part."""
        means, squares = [], []
        count, height, width, _ = sums.shape
        for number in range(count):
            frame = self._frame(sums, number)
            if to_sums is not None:
                to_sums[number].copy_(frame)
            variance, mean = torch.var_mean(frame, dim=(0, 1), correction=0)
            means.append(mean)
            squares.append(variance * (height * width))
        pixels = torch.full((1,), height * width, dtype=self._compute, device=means[0].device)
        return Moments(pixels, torch.stack(means)[:, None], torch.stack(squares)[:, None])

    def scale_shift(
        self, sums: Sums, scale: torch.Tensor, shift: torch.Tensor, *, to: torch.Tensor, silu: bool
    ) -> None:
        """See `interface.PointwiseOps.scale_shift`."""
        for number in range(sums.shape[0]):
            frame = self._frame(sums, number)
            normed = torch.addcmul(shift[number].to(frame), frame, scale[number].to(frame))
            to[number].copy_(functional.silu(normed, inplace=True) if silu else normed)

    def add_taps(self, planes: torch.Tensor, bias: torch.Tensor, pixels: torch.Tensor) -> None:
        """See `interface.PointwiseOps.add_taps`."""
        frames, height, width, channels = pixels.shape
        taps = planes.shape[0] - frames + 1
        for number in range(frames):
            given = planes[number : number + taps, : taps * 9 * channels].to(self._compute)
            given = functional.pad(torch.unflatten(given, 1, (taps, 3, 3, channels)), (1, 1, 1, 1))
            total = bias.to(self._compute)[:, None, None].expand(channels, height, width).clone()
            for time in range(taps):
                for y in range(3):
                    for x in range(3):
                        total += given[time, time, y, x, :, y : y + height, x : x + width]
            pixels[number].copy_(total.permute(1, 2, 0))

    def _frame(self, sums: Sums, number: int) -> torch.Tensor:
        """One frame, arranged, with bias and residual."""
        products, channels, bias = sums.products, sums.shape[-1], sums.bias
        if sums.kind is Kind.DOUBLE_TIME:
            half = slice(number % 2 * channels, (number % 2 + 1) * channels)
            frame = products[number // 2, ..., half]
            bias = None if bias is None else bias[half]
        elif sums.kind is Kind.UPSAMPLE:
            squares = torch.unflatten(products[number], -1, (2, 2, channels))
            frame = squares.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
        else:
            frame = products[number]
        frame = frame.to(self._compute)
        if bias is not None:
            frame = frame + bias.to(self._compute)
        return frame if sums.residual is None else frame + sums.residual[number]
