"""Every element of each pointwise operation against float64, at one width and dtype.

What is not to be written is NaN, and sizes are such that the last tile is not full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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


class Variant(NamedTuple):
    """A form of an operation, which is a kernel of its own.

    Attributes:
        operation: Of `interface.PointwiseOps`.
        kind: How sums are arranged.
        bias: Whether there is one.
        residual: Whether there is one.
        sums: Whether sums are written.
        norm: Whether their norm is.
        silu: Whether SiLU comes after it.
    """

    operation: str
    kind: Kind = Kind.PLAIN
    bias: bool = True
    residual: bool = False
    sums: bool = False
    norm: bool = False
    silu: bool = False


#: What decoders with norms over channels use.
RMS_NORM = (
    Variant("rms_norm", norm=True, silu=True),
    Variant("rms_norm", residual=True, norm=True, silu=True),
    Variant("rms_norm", residual=True, sums=True, norm=True, silu=True),
    Variant("rms_norm", residual=True, sums=True),
    Variant("rms_norm", sums=True),
    Variant("rms_norm", sums=True, norm=True, silu=True),
    Variant("rms_norm", bias=False, norm=True, silu=True),
    Variant("rms_norm", bias=False, norm=True),
    Variant("rms_norm", Kind.UPSAMPLE, sums=True, norm=True, silu=True),
    Variant("rms_norm", Kind.UPSAMPLE, sums=True),
    Variant("rms_norm", Kind.DOUBLE_TIME, sums=True),
    Variant("add_taps"),
)
#: What decoders with norms over groups of channels use.
GROUP_NORM = (
    Variant("moments"),
    Variant("moments", sums=True),
    Variant("moments", residual=True, sums=True),
    Variant("moments", Kind.UPSAMPLE, sums=True),
    Variant("scale_shift", silu=True),
    Variant("scale_shift", bias=False, silu=True),
    Variant("scale_shift", bias=False),
    Variant("rms_norm", residual=True, sums=True),
    Variant("rms_norm", sums=True),
    Variant("rms_norm", Kind.UPSAMPLE, sums=True),
    Variant("add_taps"),
)


class SelfTestError(RuntimeError):
    """An operation gives wrong elements on this device."""


class Case:
    """Random inputs of one variant and width.

    Args:
        variant: What is to be run.
        device: Where.
        dtype: Of frames.
        channels: Of a pixel.
    """

    def __init__(
        self, variant: Variant, device: torch.device, dtype: torch.dtype, channels: int
    ) -> None:
        self._variant = variant
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(channels)
        frames, height, width = _SIZE
        kind = variant.kind
        shape = {
            Kind.UPSAMPLE: (frames, height // 2, width // 2, 4 * channels),
            Kind.DOUBLE_TIME: (frames // 2, height, width, 2 * channels),
        }.get(kind, (*_SIZE, channels))
        bias = self._noise(channels * (2 if kind is Kind.DOUBLE_TIME else 1)).float()
        residual = self._noise(*_SIZE, channels)
        self._sums = Sums(
            self._noise(*shape),
            kind,
            bias if variant.bias else None,
            residual if variant.residual else None,
        )
        self._scale = self._noise(frames, channels).float()
        self._shift = self._noise(frames, channels).float()
        self._planes = self._noise(frames + 2, 27 * _PIXEL + 7, height, width)
        self._bias = self._noise(_PIXEL).float()

    def run(self, ops: PointwiseOps, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Run it with outputs of ``dtype``: what was written, by name."""
        variant, sums = self._variant, self._sums
        written = self._unwritten(dtype, *sums.shape)
        normed = self._unwritten(dtype, *sums.shape)
        found = {"sums": written} if variant.sums else {}
        to_sums = written if variant.sums else None
        if variant.operation == "rms_norm":
            ops.rms_norm(
                sums,
                to_sums=to_sums,
                to_norm=normed if variant.norm else None,
                gamma=self._scale[0] if variant.norm else None,
                silu=variant.silu,
            )
            return found | ({"norms": normed} if variant.norm else {})
        if variant.operation == "moments":
            mean, variance = whole(ops.moments(sums, to_sums=to_sums))
            return found | {"mean": mean, "variance": variance}
        if variant.operation == "scale_shift":
            ops.scale_shift(sums, self._scale, self._shift, to=normed, silu=variant.silu)
            return {"norms": normed}
        found = {}
        for taps in (1, 3):
            pixels = self._unwritten(dtype, *_SIZE, _PIXEL)
            ops.add_taps(self._planes[: _SIZE[0] + taps - 1], self._bias, pixels)
            found[f"pixels of {taps} taps in time"] = pixels
        return found

    def _noise(self, *shape: int) -> torch.Tensor:
        noise = torch.randn(shape, generator=self._generator, device=self._device)
        return noise.to(self._dtype)

    def _unwritten(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=self._device)


def whole(moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the moments of parts together: mean and variance, (frames, channels)."""
    pixels = moments.pixels[None, :, None]
    total = pixels.sum()
    mean = (moments.mean * pixels).sum(1) / total
    apart = (moments.mean - mean[:, None]).square() * pixels
    return mean, (moments.squares + apart).sum(1) / total


def check(
    ops: PointwiseOps,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    variants: Iterable[Variant],
) -> None:
    """Compare every element that operations write.

    Args:
        ops: Those to be checked.
        device: Where.
        dtype: Of frames.
        channels: Of a pixel.
        variants: Which.

    Raises:
        SelfTestError: Some are wrong.
    """
    rounding = torch.finfo(dtype).eps / 2
    right = TorchOps(torch.float64)
    for variant in variants:
        case = Case(variant, device, dtype, channels)
        mine, expected = case.run(ops, dtype), case.run(right, torch.float64)
        for part, exact in expected.items():
            allowed = exact.abs() * (_TOLERANCE + rounding) + _TOLERANCE
            wrong = ~((mine[part].double() - exact).abs() <= allowed)  # NaN is wrong too
            count = int(wrong.sum())
            if count:
                raise SelfTestError(
                    f"expected {variant} of {channels} channels in {dtype} to be right, "
                    f"got {count} of {wrong.numel()} elements of its {part} wrong"
                )
