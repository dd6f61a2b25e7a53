"""Every element of each pointwise operation against float64, at one width and dtype.

What is not to be written is NaN, and sizes are such that the last tile is not full.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from streamvae.fast._wan.options import Kind

from .interface import Moments, PointwiseOps, Sums
from .torch_ops import TorchOps

#: Frames, height and width of what is written.
_SIZE = (2, 18, 22)
#: What an element may differ by, relative and absolute, rounding to its dtype not counted.
_TOLERANCE = 1e-4
#: Channels of pixels.
_PIXEL = 3

_Run = Callable[[PointwiseOps, torch.dtype], dict[str, torch.Tensor]]


class SelfTestError(RuntimeError):
    """An operation gives wrong elements on this device."""


class Case:
    """Random inputs of one width.

    Args:
        device: Where.
        dtype: Of frames.
        channels: Of a pixel.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, channels: int) -> None:
        self.dtype = dtype
        self.channels = channels
        self._device = device
        self._generator = torch.Generator(device).manual_seed(channels)

    def runs(self) -> dict[str, _Run]:
        """Operations to run, by name."""
        named: dict[str, _Run] = {}
        for kind, full in itertools.product((Kind.PLAIN, Kind.UPSAMPLE, Kind.DOUBLE_TIME), (0, 1)):
            name = f"{kind.name.lower()} {'sums and norms' if full else 'norms'}"
            sums = self._sums(kind, residual=bool(full))
            named[f"rms_norm, {name}"] = self._rms_norm(sums, full=bool(full))
            named[f"moments, {name}"] = self._moments(sums, full=bool(full))
            named[f"scale_shift, {name}"] = self._scale_shift(sums, silu=bool(full))
        for taps in (1, 3):
            named[f"add_taps, {taps}"] = self._add_taps(taps)
        return named

    def _rms_norm(self, sums: Sums, *, full: bool) -> _Run:
        gamma = self._noise(self.channels).float()

        def run(ops: PointwiseOps, dtype: torch.dtype) -> dict[str, torch.Tensor]:
            written = self._unwritten(sums, dtype) if full else None
            normed = self._unwritten(sums, dtype)
            ops.rms_norm(sums, to_sums=written, to_norm=normed, gamma=gamma, silu=full)
            return {"norms": normed} | ({} if written is None else {"sums": written})

        return run

    def _moments(self, sums: Sums, *, full: bool) -> _Run:
        def run(ops: PointwiseOps, dtype: torch.dtype) -> dict[str, torch.Tensor]:
            written = self._unwritten(sums, dtype) if full else None
            mean, variance = whole(ops.moments(sums, to_sums=written))
            found = {"mean": mean, "variance": variance}
            return found if written is None else found | {"sums": written}

        return run

    def _scale_shift(self, sums: Sums, *, silu: bool) -> _Run:
        scale, shift = (self._noise(sums.shape[0], self.channels).float() for _ in range(2))
        bare = sums._replace(residual=None)

        def run(ops: PointwiseOps, dtype: torch.dtype) -> dict[str, torch.Tensor]:
            written = self._unwritten(sums, dtype)
            ops.scale_shift(bare, scale, shift, to=written, silu=silu)
            return {"norms": written}

        return run

    def _add_taps(self, taps: int) -> _Run:
        frames, height, width = _SIZE
        planes = self._noise(frames + taps - 1, taps * 9 * _PIXEL + 5, height, width)
        bias = self._noise(_PIXEL).float()

        def run(ops: PointwiseOps, dtype: torch.dtype) -> dict[str, torch.Tensor]:
            pixels = torch.full((*_SIZE, _PIXEL), torch.nan, dtype=dtype, device=self._device)
            ops.add_taps(planes, bias, pixels, 2.0)
            return {"pixels": pixels}

        return run

    def _sums(self, kind: Kind, *, residual: bool) -> Sums:
        frames, height, width = _SIZE
        shape = {
            Kind.UPSAMPLE: (frames, height // 2, width // 2, 4 * self.channels),
            Kind.DOUBLE_TIME: (frames // 2, height, width, 2 * self.channels),
        }.get(kind, (*_SIZE, self.channels))
        bias = self._noise(self.channels * (2 if kind is Kind.DOUBLE_TIME else 1)).float()
        added = self._noise(*_SIZE, self.channels) if residual else None
        return Sums(self._noise(*shape), kind, bias, added)

    def _noise(self, *shape: int) -> torch.Tensor:
        noise = torch.randn(shape, generator=self._generator, device=self._device)
        return noise.to(self.dtype)

    def _unwritten(self, sums: Sums, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(sums.shape, torch.nan, dtype=dtype, device=self._device)


def whole(moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the moments of parts together: mean and variance, (frames, channels)."""
    count = moments.count[None, :, None]
    pixels = count.sum()
    mean = (moments.mean * count).sum(1) / pixels
    apart = (moments.mean - mean[:, None]).square() * count
    return mean, (moments.squares + apart).sum(1) / pixels


def check(ops: PointwiseOps, device: torch.device, dtype: torch.dtype, channels: int) -> None:
    """Compare every element that operations write.

    Args:
        ops: Those to be checked.
        device: Where.
        dtype: Of frames.
        channels: Of a pixel.

    Raises:
        SelfTestError: Some are wrong.
    """
    rounding = torch.finfo(dtype).eps / 2
    right = TorchOps(torch.float64)
    for name, run in Case(device, dtype, channels).runs().items():
        mine, expected = run(ops, dtype), run(right, torch.float64)
        for part, exact in expected.items():
            allowed = exact.abs() * (_TOLERANCE + rounding) + _TOLERANCE
            wrong = ~((mine[part].double() - exact).abs() <= allowed)  # NaN is wrong too
            count = int(wrong.sum())
            if count:
                raise SelfTestError(
                    f"expected {name} of {channels} channels in {dtype} to be right, got {count} "
                    f"of {wrong.numel()} elements of its {part} wrong"
                )
