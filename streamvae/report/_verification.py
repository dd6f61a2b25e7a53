"""What a comparison of streamed frames with the autoencoder's own found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .._options import Mode
from .._pixels import Kind
from ._precision import Precision

#: How streamed frames compare with the autoencoder's own.
Verdict = Literal["equal", "accepted", "within rounding", "different"]

_UNITS = {"video": "frames", "image": "pictures", "sound": "samples"}


@dataclass(frozen=True, slots=True)
class Verification:
    """How a stream compares with the autoencoder's own decode. ``print`` it to read it.

    Attributes:
        verdict: ``"equal"``: every value is, bit for bit. ``"accepted"``, in fast mode:
            ``precision.accepted``. ``"within rounding"``: none differs by more than ``tolerance``,
            nor by more than ``wide_tolerance`` in float64 where that was tried. ``"different"``:
            anything else, also another number of frames.
        family: Class name of the autoencoder.
        kind: What it makes.
        dtype: Of its weights.
        device: Where they are.
        latents_shape: Shape of the latents that were decoded.
        latents_from: Where those came from.
        mode: Of the stream.
        step: How the stream decoded its chunks, and why by nothing faster.
        exactness: What the codec promises, in a sentence.
        difference: The greatest between values as the decoder gives them (pixels in [-1, 1]); NaN
            if one way gave NaN, infinity if the shapes differ.
        tolerance: How much of that may be rounding: a share of the greatest value that
            ``vae.decode`` gave, by dtype (see `streamvae.report.TOLERANCES`).
        wide: The greatest difference when both ways decode in float64, where what is rounding
            nearly vanishes and what is an error stays; None where that was not needed or possible.
        wide_tolerance: How much of that may be rounding, of layers that compute in float32 whatever
            they are given; None where ``wide`` is.
        precision: In fast mode, the errors of both ways against a decode in a wider dtype; None
            where that was not possible, which a note says, and in exact mode.
        equal_bytes: Share of bytes that are equal, 0 to 1, of uint8 pixels; of sound the share of
            float32 samples.
        frames: Frames, pictures or samples that were streamed.
        whole_frames: As many as the autoencoder's own decode gave.
        sha256: Of the streamed values as float32 in C order, as a ``.raw`` file holds them.
        whole_sha256: Of the autoencoder's own.
        notes: What the codec has to say about these latents, and about this comparison.
    """

    verdict: Verdict
    family: str
    kind: Kind
    dtype: str
    device: str
    latents_shape: tuple[int, ...]
    latents_from: str
    mode: Mode
    step: str
    exactness: str
    difference: float
    tolerance: float
    wide: float | None
    wide_tolerance: float | None
    precision: Precision | None
    equal_bytes: float
    frames: int
    whole_frames: int
    sha256: str
    whole_sha256: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        shape = ", ".join(map(str, self.latents_shape))
        yield f"{self.verdict}: {self.family}, {self.dtype} on {self.device}"
        yield f"latents: {shape} ({self.latents_from})"
        yield f"{self.mode} mode: {self.step}"
        yield f"promised: {self.exactness}"
        yield (
            f"greatest difference: {self.difference:.3g} (up to {self.tolerance:.2g} is rounding "
            f"in {self.dtype})"
        )
        if self.wide is not None and self.wide_tolerance is not None:
            yield (
                f"in float64: {self.wide:.3g} (up to {self.wide_tolerance:.2g} is rounding of "
                "layers in float32)"
            )
        if self.precision is not None:
            yield from self.precision.lines()
        what = "samples" if self.kind == "sound" else "bytes"
        yield f"equal {what}: {_percent(self.equal_bytes)}"
        yield f"{_UNITS[self.kind]}: {self.frames} streamed, {self.whole_frames} by decode"
        yield f"sha256 streamed:  {self.sha256}"
        yield f"sha256 by decode: {self.whole_sha256}"
        for note in self.notes:
            yield f"note: {note}"


def _percent(share: float) -> str:
    """A share for people, which is called all or nothing only where it is."""
    if share in {0.0, 1.0}:
        return f"{share:.0%}"
    return f"{min(max(share * 100, 0.0001), 99.9999):.4f}%"
