"""How far frames are from a decode in a wider dtype: of a whole clip, and chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from .._pixels import Kind

#: An error is accepted up to so many times the error of the autoencoder's own decode.
ACCEPTED_RATIO = 1.02
#: No pixel may be further off than so many times the furthest of that decode, or so many levels.
_OUTLIER = 2


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far frames are from those of a decode in a wider dtype.

    Attributes:
        error: ‖frames - reference‖ / ‖reference‖, over all values as the decoder gives them.
        levels: The greatest difference of uint8 pixels, 0 to 255; None for sound.
        psnr: Of uint8 pixels, in dB, infinity where all are equal; None for sound.
    """

    error: float
    levels: int | None
    psnr: float | None

    def __str__(self) -> str:
        if self.levels is None or self.psnr is None:
            return f"{self.error:.3g}"
        return f"{self.error:.3g}, {self.levels} of 255 levels at most, PSNR {self.psnr:.2f} dB"


@dataclass(frozen=True, slots=True)
class Precision:
    """The errors of a stream and of the autoencoder's own decode, against one in a wider dtype.

    Attributes:
        reference: Dtype and device of that one.
        streamed: How far the stream's frames are from it.
        whole: How far those of the autoencoder's own decode are, in the dtype of the weights.
        ratio: The stream's error over the other one: 1 if both are 0, infinity if only the other.
        drift: The same of each chunk of the reference, first to last: it does not rise where
            errors do not add up over time.
    """

    reference: str
    streamed: Deviation
    whole: Deviation
    ratio: float
    drift: tuple[float, ...]

    @property
    def accepted(self) -> bool:
        """Whether ``ratio`` is at most `ACCEPTED_RATIO`, and no pixel is far off.

        Far is more than twice as many levels as decode itself is off at most, and more than 2: a
        single wrong pixel is no matter of a ratio.
        """
        return self.ratio <= ACCEPTED_RATIO and not self.has_outliers

    @property
    def has_outliers(self) -> bool:
        """Whether a pixel of the stream is far off."""
        if self.streamed.levels is None or self.whole.levels is None:
            return False
        return self.streamed.levels > _OUTLIER * max(self.whole.levels, 1)

    def lines(self) -> Iterator[str]:
        """What people read."""
        yield f"error against {self.reference}: {self.streamed}"
        yield f"error of decode itself: {self.whole}"
        said = "not accepted" if self.ratio > ACCEPTED_RATIO else "accepted"
        yield f"ratio: {self.ratio:.3f} ({said}: at most {ACCEPTED_RATIO} is)"
        if self.has_outliers:
            yield f"not accepted: a pixel is {self.streamed.levels} levels off"
        chunks = len(self.drift)
        places = dict.fromkeys((0, chunks // 2, chunks - 1))
        ratios = ", ".join(f"{self.drift[place]:.3f} (chunk {place + 1})" for place in places)
        yield f"ratio over {chunks} chunks: {ratios}"


@dataclass(slots=True)
class DeviationSum:
    """Adds up how far frames are from a reference, chunk by chunk, on whatever device they are.

    Attributes:
        kind: What they are.
        squared: Of each chunk, the sum of squared differences of values.
    """

    kind: Kind
    squared: list[float] = field(default_factory=list)
    _reference: float = 0.0
    _levels: int = 0
    _squared_levels: float = 0.0
    _bytes: int = 0

    def add(self, values: torch.Tensor, right: torch.Tensor) -> None:
        """Add a chunk's values.

        Args:
            values: (B, T, ...), any float dtype.
            right: The reference's, of the same shape, on the same device.
        """
        squared = reference = 0.0
        # Frame by frame: float64 doubles them.
        for mine, its in zip(values.unbind(1), right.unbind(1), strict=True):
            squared += float((mine.double() - its.double()).square().sum())
            reference += float(its.double().square().sum())
        self.squared.append(squared)
        self._reference += reference

    def add_bytes(self, pixels: torch.Tensor, right: torch.Tensor) -> None:
        """Add a chunk's uint8 pixels; shapes as in `add`. Not called for sound."""
        for mine, its in zip(pixels.unbind(1), right.unbind(1), strict=True):
            apart = (mine.short() - its.short()).abs()
            self._levels = max(self._levels, int(apart.max()))
            self._squared_levels += float(apart.double().square().sum())
        self._bytes += pixels.numel()

    def result(self) -> Deviation:
        """How far all that was added is."""
        error = _ratio(sum(self.squared), self._reference, none=0.0)
        if self.kind == "sound":
            return Deviation(error, None, None)
        mean = self._squared_levels / max(self._bytes, 1)
        psnr = math.inf if mean == 0 else 10 * math.log10(255**2 / mean)
        return Deviation(error, self._levels, psnr)


def compare(reference: str, streamed: DeviationSum, whole: DeviationSum) -> Precision:
    """Compare the errors of two ways against the same reference, chunk by chunk added alike.

    Args:
        reference: What it is.
        streamed: Of the stream.
        whole: Of the autoencoder's own decode.
    """
    pairs = zip(streamed.squared, whole.squared, strict=True)
    return Precision(
        reference=reference,
        streamed=streamed.result(),
        whole=whole.result(),
        ratio=_ratio(sum(streamed.squared), sum(whole.squared)),
        drift=tuple(_ratio(*pair) for pair in pairs),
    )


def _ratio(squared: float, other: float, *, none: float = 1.0) -> float:
    """The root of a ratio; ``none`` where both are 0."""
    if other == 0:
        return none if squared == 0 else math.inf if squared > 0 else math.nan
    return math.sqrt(squared / other) if squared >= 0 else math.nan
