"""``.mp4``, ``.mkv``, ``.mov``, ``.webm``: what people play. The options, and their checks."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from streamvae._chunks import Array, Format, HostChunk, StreamInfo
from streamvae._errors import MissingDependencyError, UsageError

from ._codecs import CodecName, chosen, expect_encoder
from ._durable import Sync
from ._file import FileSink
from ._rates import rate_of
from ._shared import SharedFile
from ._sound_track import SoundTrack

if TYPE_CHECKING:
    from ._encoder import Encoder

_log = logging.getLogger("streamvae")


class VideoFile(FileSink):
    """Video that people play: 8 bits, 4:2:0, BT.709 limited range, converted so and tagged so.

    Takes uint8 RGB or grey (shown as RGB); a stream of images becomes consecutive frames. H.264 in
    MP4 plays everywhere, VP9 in WebM in every browser; FFV1 (``.mkv``) keeps every pixel as it is,
    RGB and RGBA. What was written plays also after a kill: MP4 and MOV are a run of fragments until
    they are closed, then ordinary files; Matroska and WebM grow by whole clusters. `committed`
    counts the frames in these, so it lags behind what was accepted by up to one group of pictures
    and the encoder's look-ahead.

    ========  ======  ===================================  ================
    codec     crf     preset                               goes into
    ========  ======  ===================================  ================
    ``h264``  0..51   libx264's: ``"ultrafast"`` to        mp4 mkv mov
                      ``"placebo"``
    ``hevc``  0..51   libx265's, the same names            mp4 mkv mov
    ``vp9``   0..63   libvpx's cpu-used, 0 to 9;           webm mkv mp4
                      6 and more are made for real time
    ``av1``   0..63   SVT-AV1's, 0 to 13                   webm mkv mp4
    ``ffv1``  none    none                                 mkv
    ========  ======  ===================================  ================

    Args:
        path: Where to.
        fps: Frames a second; by default the stream's. 23.976, 29.97 and 59.94 mean 24000/1001 and
            so on.
        codec: By default VP9 for ``.webm``, H.264 for the others.
        crf: Quality, 0 is the best (and largest). By default 18 (H.264, HEVC), 24 (VP9), 22
            (AV1): hard to tell from the original.
        preset: Time for size. By default ``"veryfast"`` (H.264), ``"superfast"`` (HEVC), 8 (VP9),
            10 (AV1).
        gop: Frames from one keyframe to the next at most; by default those of a second. What a
            kill can cost grows with it, the file shrinks with it. FFV1: always 1.
        odd: 4:2:0 needs even sizes. ``"pad"`` repeats the last row or column of an odd one and
            says so in the log, ``"refuse"`` raises. Nothing is ever stretched. FFV1 takes any size.
        overwrite: Whether a file of that name may be replaced.
        sync: As for `FileSink`.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: An option is out of range, or the file cannot hold this codec.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction | None = None,
        *,
        codec: CodecName | None = None,
        crf: float | None = None,
        preset: str | int | None = None,
        gop: int | None = None,
        odd: Literal["pad", "refuse"] = "pad",
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        super().__init__(path, overwrite=overwrite, sync=sync)
        if find_spec("av") is None:
            raise MissingDependencyError("av", "writing video", "video")
        self._kind, self._codec = chosen(self.path.suffix.lower(), codec)
        self._told = self._codec.told(crf, preset)
        if odd not in {"pad", "refuse"}:
            raise UsageError(f"expected odd='pad' or 'refuse', got {odd!r}")
        if gop is not None and gop < 1:
            raise UsageError(f"expected a gop of one frame or more, got {gop}")
        self._fps = None if fps is None else rate_of(fps)
        self._gop, self._odd = gop, odd
        self._shared = SharedFile(self._partial, self._kind)
        self._encoder: Encoder | None = None

    @property
    def committed(self) -> int:
        """Frames in whole fragments or clusters; all of them once the file is closed."""
        return self._shared.muxer.committed if self._shared.muxer else 0

    @property
    def takes(self) -> tuple[Format, ...]:
        """Formats of pixels it takes: see `streamvae.abc.Sink`."""
        return ("rgb24", "rgba", "gray") if self._codec.exact else ("rgb24", "gray", "yuv420p")

    def sound_track(self, *, bitrate: int | None = None) -> SoundTrack:
        """A second sink, which takes the sound for this file: AAC, in WebM Opus.

        The two belong into two streams, as `streamvae.stream_decode_av` has them. The file is
        complete when both are closed.

        Args:
            bitrate: Bits a second; by default 96,000 for each channel (AAC) or 64,000 (Opus).

        Raises:
            UsageError: The bitrate is not positive, there is a sound track already, or the file
                has been opened without.
        """
        if bitrate is not None and bitrate < 1:
            raise UsageError(f"expected a bitrate above 0, got {bitrate}")
        if self._shared.begun or self._shared.sinks > 1:
            raise UsageError(
                f"sink {self.name}: expected one sound track, made before it is opened"
            )
        self._shared.sinks += 1
        return SoundTrack(f"{self.name} (sound)", self._shared, bitrate)

    def start(self, info: StreamInfo) -> None:
        """Check the stream and the place, as `FileSink` does."""
        self.check(info)
        self._info = info
        self._shared.enter(self)

    def check(self, info: StreamInfo) -> None:
        """Refuse sound, float pixels, several clips, a missing frame rate or encoder."""
        super().check(info)
        if info.kind == "sound":
            raise UsageError(
                f"sink {self.name} keeps pictures; got sound (.wav, .flac, .npy or .raw keep it)"
            )
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
        elif self._shared.sinks > 1 and info.fps and rate_of(info.fps) != self._fps:
            raise UsageError(
                f"sink {self.name}: expected the stream's {info.fps} frames a second, got "
                f"fps={float(self._fps)}, which the sound would not be in time with"
            )
        if info.height is not None and info.width is not None:
            self._even(info.height, info.width)
        import av

        expect_encoder(self._codec.encoder, av.codecs_available, av.__version__)

    def put(self, chunk: HostChunk) -> None:
        """Encode a chunk."""
        rows = self.rows(chunk)
        encoder = self._encoder = self._encoder or self._begin(rows, chunk.picture)
        for picture in rows:
            if chunk.picture is None:
                encoder.encode(self._stage(picture))
            else:
                encoder.encode_planes(picture[..., 0])

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            UsageError: The stream had no frames; there is no video without one.
        """
        if self._encoder is None:
            raise UsageError(f"sink {self.name}: expected at least one frame, got none")
        self._encoder.flush()
        self._shared.end(self)

    def stop(self) -> None:
        """Complete what there is under its temporary name; after an error keep whole fragments."""
        self._shared.stop(self)

    def _begin(self, rows: Array, planes_of: tuple[int, int] | None) -> Encoder:
        from ._encoder import Encoder

        channels = rows.shape[3]
        if rows.dtype != np.uint8 or channels not in self._channels:
            alpha = " (only FFV1, .npy and .raw keep transparency)" if channels == 4 else ""
            raise UsageError(
                f"sink {self.name}: expected uint8 with {' or '.join(map(str, self._channels))} "
                f"channels, got {rows.dtype} with {channels}{alpha}"
            )
        height, width = planes_of or (int(rows.shape[1]), int(rows.shape[2]))
        even = self._even(height, width)
        self._canvas: npt.NDArray[np.uint8] | None = None
        if planes_of is None and (channels == 1 or even != (height, width)):
            self._canvas = np.empty((*even, 3), np.uint8)
        if even != (height, width):
            _log.info("sink %s: %dx%d padded to %dx%d", self.name, width, height, *even[::-1])
        fps = self._fps or Fraction(0)
        encoder = Encoder(
            self._shared.writer(),
            self._codec,
            self._told,
            even[::-1],
            fps=fps,
            gop=self._gop or max(1, round(fps)),
            alpha=channels == 4,
        )
        self._shared.add(encoder)
        return encoder

    @property
    def _channels(self) -> tuple[int, ...]:
        return (1, 3, 4) if self._codec.exact else (1, 3)

    def _even(self, height: int, width: int) -> tuple[int, int]:
        if self._codec.exact or not (height % 2 or width % 2):
            return height, width
        if self._odd == "refuse":
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
