"""``.mp4``: what people play. The options, and the checks that go with them."""

from __future__ import annotations

import logging
import math
import os
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from streamvae._chunks import Array, HostChunk, StreamInfo
from streamvae._errors import MissingDependencyError, UsageError

from ._file import FileSink

if TYPE_CHECKING:
    from ._h264 import Encoder

_log = logging.getLogger("streamvae")


class VideoFile(FileSink):
    """H.264 in MP4: 8 bits, 4:2:0, BT.709 limited range, converted so and tagged so.

    Takes uint8 RGB or grey (shown as RGB); a stream of images becomes consecutive frames. Plays
    everywhere, and what was written plays also after a kill: the file is a run of fragments until
    it is closed, then an ordinary MP4. `committed` counts whole fragments, so it lags behind what
    was accepted by up to one group of pictures and the encoder's look-ahead.

    Args:
        path: Where to.
        fps: Frames a second; by default the stream's. 23.976, 29.97 and 59.94 mean 24000/1001 and
            so on.
        crf: Quality, 0 (largest) to 51; 18 is hard to tell from the original.
        preset: libx264's, ``"ultrafast"`` to ``"placebo"``.
        gop: Frames from one keyframe to the next at most; by default those of a second. What a
            kill can cost grows with it, the file shrinks with it.
        odd: 4:2:0 needs even sizes. ``"pad"`` repeats the last row or column of an odd one and
            says so in the log, ``"refuse"`` raises. Nothing is ever stretched.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: An option is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction | None = None,
        *,
        crf: float = 18,
        preset: str = "veryfast",
        gop: int | None = None,
        odd: Literal["pad", "refuse"] = "pad",
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, overwrite=overwrite)
        if find_spec("av") is None:
            raise MissingDependencyError("av", "writing video", "video")
        if not 0 <= crf <= 51:  # libx264's range
            raise UsageError(f"expected crf in 0..51, got {crf}")
        if odd not in {"pad", "refuse"}:
            raise UsageError(f"expected odd='pad' or 'refuse', got {odd!r}")
        if gop is not None and gop < 1:
            raise UsageError(f"expected a gop of one frame or more, got {gop}")
        self._fps = None if fps is None else rate_of(fps)
        self._crf, self._preset, self._gop, self._odd = crf, preset, gop, odd
        self._encoder: Encoder | None = None

    @property
    def committed(self) -> int:
        """Frames in whole fragments; all of them once the file is closed."""
        return self._encoder.committed if self._encoder else 0

    def check(self, info: StreamInfo) -> None:
        """Refuse sound, float pixels, several clips, a missing frame rate and bad options."""
        super().check(info)
        if info.kind == "sound":
            raise UsageError(f"sink {self.name} keeps pictures; got sound (.npy or .raw keep it)")
        if info.output != "uint8":
            raise UsageError(
                f"sink {self.name} keeps 8 bits; expected output='uint8', got {info.output!r} "
                "(.npy or .raw keep float32)"
            )
        if self._fps is None:
            if info.fps is None:
                raise UsageError(
                    f"sink {self.name} needs frames a second; expected fps=..., got none"
                )
            self._fps = rate_of(info.fps)
        if info.height is not None and info.width is not None:
            self._even(info.height, info.width)
        _try_encoder(self._preset, self._crf)

    def put(self, chunk: HostChunk) -> None:
        """Encode a chunk."""
        rows = self.rows(chunk)
        if self._encoder is None:
            self._encoder = self._begin(rows)
        for picture in rows:
            self._encoder.encode(self._stage(picture))

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            UsageError: The stream had no frames; there is no video without one.
        """
        if self._encoder is None:
            raise UsageError(f"sink {self.name}: expected at least one frame, got none")
        self._encoder.close()
        self._partial.publish()

    def stop(self) -> None:
        """Complete what there is under its temporary name; after an error keep whole fragments."""
        try:
            if self._encoder is not None:
                self._encoder.salvage()
        finally:
            self._partial.release(keep=self.committed > 0)

    def _begin(self, rows: Array) -> Encoder:
        from ._h264 import Encoder

        channels = rows.shape[3]
        if channels not in {1, 3} or rows.dtype != np.uint8:
            alpha = " (H.264 has no transparency; .npy or .raw keep it)" if channels == 4 else ""
            raise UsageError(
                f"sink {self.name}: expected uint8 with 1 or 3 channels, "
                f"got {rows.dtype} with {channels}{alpha}"
            )
        height, width = rows.shape[1:3]
        even = self._even(height, width)
        self._canvas: npt.NDArray[np.uint8] | None = None
        if channels == 1 or even != (height, width):
            self._canvas = np.empty((*even, 3), np.uint8)
        if even != (height, width):
            _log.info("sink %s: %dx%d padded to %dx%d", self.name, width, height, *even[::-1])
        fps = self._fps or Fraction(0)
        return Encoder(
            self._partial.begin(),
            even[::-1],
            fps=fps,
            crf=self._crf,
            preset=self._preset,
            gop=self._gop or max(1, round(fps)),
        )

    def _even(self, height: int, width: int) -> tuple[int, int]:
        if self._odd == "refuse" and (height % 2 or width % 2):
            raise UsageError(
                f"sink {self.name}: expected an even size, got {width}x{height}; "
                "odd='pad' repeats the last row or column"
            )
        return height + height % 2, width + width % 2

    def _stage(self, picture: Array) -> npt.NDArray[np.uint8]:
        """The picture as three channels of even size; the canvas is free again once encoded."""
        if self._canvas is None:
            return picture  # type: ignore[return-value]  # `_begin` has seen that it is uint8
        height, width = picture.shape[:2]
        self._canvas[:height, :width] = picture
        self._canvas[height:, :width] = self._canvas[height - 1 : height, :width]
        self._canvas[:, width:] = self._canvas[:, width - 1 : width]
        return self._canvas


def rate_of(fps: float | Fraction) -> Fraction:
    """Frames a second as the fraction that is meant.

    Raises:
        UsageError: Not a positive finite number.
    """
    if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction):
        raise UsageError(f"expected fps as a number, got {fps!r}")
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"expected fps above 0, got {fps}")
    if not isinstance(fps, float):
        return Fraction(fps)
    drop = Fraction(math.ceil(fps) * 1000, 1001)  # NTSC: 24000/1001 is written 23.976 or 23.98
    if not fps.is_integer() and abs(drop - fps) < 0.005:
        return drop
    return Fraction(fps).limit_denominator(1001)


def _try_encoder(preset: str, crf: float) -> None:
    """Open the encoder on a small picture, so that what it refuses shows before the decoding."""
    import av

    try:
        context = av.CodecContext.create("libx264", "w")
        context.width = context.height = 64
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 24)
        context.options = {"crf": f"{crf:g}", "preset": preset}
        context.open()
    except (av.FFmpegError, ValueError) as error:
        raise UsageError(
            f"expected a PyAV with libx264 and one of its presets, got preset={preset!r}: {error}"
        ) from error
