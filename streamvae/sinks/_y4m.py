"""``.y4m``: uncompressed YUV, what encoders and players take from a file or through a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

from streamvae._chunks import Array, HostChunk, StreamInfo
from streamvae._errors import MissingDependencyError, UsageError

from ._durable import Sync
from ._file import FileSink
from ._rates import rate_of
from ._thread import ThreadSink

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

Chroma = Literal["420", "444"]
Matrix = Literal["bt601", "bt709"]

#: What stands before every frame.
_FRAME = b"FRAME\n"


class Y4M:
    """Pictures as YUV4MPEG2: limited range, 8 bits.

    Args:
        fps: Frames a second; by default the stream's.
        chroma: ``"420"`` (half of the chroma each way, sited as MPEG-2's) or ``"444"``.
        matrix: The format has no place to say it, and readers take what says nothing for BT.601.
            ``"bt709"`` is for those who are told so (``ffmpeg -colorspace bt709 -i ...``).

    Raises:
        MissingDependencyError: PyAV, which converts the colours, is not installed.
        UsageError: An option is none of these.
    """

    def __init__(self, fps: float | Fraction | None, chroma: Chroma, matrix: Matrix) -> None:
        if find_spec("av") is None:
            raise MissingDependencyError("av", "writing y4m", "video")
        if chroma not in {"420", "444"}:
            raise UsageError(f"expected chroma='420' or '444', got {chroma!r}")
        if matrix not in {"bt601", "bt709"}:
            raise UsageError(f"expected matrix='bt601' or 'bt709', got {matrix!r}")
        self._fps = None if fps is None else rate_of(fps)
        self._chroma, self._matrix = chroma, matrix
        self._reformatter: VideoReformatter | None = None

    def check(self, name: str, info: StreamInfo) -> None:
        """Refuse sound, float pixels, frames on the device and a missing frame rate."""
        if info.kind == "sound":
            raise UsageError(f"sink {name} keeps pictures; got sound (.wav, .npy or .raw keep it)")
        if info.output != "uint8":
            raise UsageError(
                f"sink {name} keeps 8 bits; expected output='uint8', got {info.output!r}"
            )
        if self._fps is None:
            if info.fps is None:
                raise UsageError(f"sink {name} needs frames a second; expected fps=..., got none")
            self._fps = rate_of(info.fps)

    def head(self, name: str, rows: Array) -> bytes:
        """The file's first line, for pictures like ``rows`` (n, H, W, C).

        Raises:
            UsageError: They are not uint8 with 1 or 3 channels.
        """
        height, width, channels = rows.shape[1:]
        if channels not in {1, 3} or rows.dtype != np.uint8:
            raise UsageError(
                f"sink {name}: expected uint8 with 1 or 3 channels, got {rows.dtype} "
                f"with {channels}"
            )
        rate = self._fps or Fraction(0)
        chroma = "420mpeg2" if self._chroma == "420" else "444"
        return (
            f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 "
            f"C{chroma} XCOLORRANGE=LIMITED\n"
        ).encode()

    def frame(self, picture: Array) -> Iterator[memoryview]:
        """What is written for a picture (H, W, C): a mark, then the planes, valid till the next."""
        from av import VideoFrame
        from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

        coloured: Array = picture if picture.shape[2] == 3 else np.repeat(picture, 3, 2)  # type: ignore[assignment]  # numpy forgets the dtype
        self._reformatter = self._reformatter or VideoReformatter()
        matrix = Colorspace.ITU709 if self._matrix == "bt709" else Colorspace.ITU601
        frame = self._reformatter.reformat(
            VideoFrame.from_numpy_buffer(coloured, "rgb24"),
            format=f"yuv{self._chroma}p",
            dst_colorspace=matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR
            | Interpolation.ACCURATE_RND
            | Interpolation.FULL_CHR_H_INP,
        )
        yield memoryview(_FRAME)
        yield from _planes(frame)

    def frame_bytes(self, rows: Array) -> int:
        """Bytes of a frame like those of ``rows``, its mark included."""
        height, width = int(rows.shape[1]), int(rows.shape[2])
        half = ((height + 1) // 2) * ((width + 1) // 2)
        return (
            len(_FRAME) + height * width + 2 * (half if self._chroma == "420" else height * width)
        )


def _planes(frame: VideoFrame) -> Iterator[memoryview]:
    for plane in frame.planes:
        # FFmpeg's lines are longer than the picture is wide.
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        yield np.ascontiguousarray(lines[: plane.height, : plane.width]).reshape(-1).data


class Y4MFile(FileSink):
    """Uncompressed video, readable by ffmpeg, mpv and encoders; any size, also an odd one.

    Takes uint8 RGB or grey (shown as RGB); a stream of images becomes consecutive frames. What is
    under ``.partial`` after a kill reads up to the last frame that is whole.

    Args:
        path: Where to.
        fps: As for `Y4M`.
        chroma: As for `Y4M`.
        matrix: As for `Y4M`.
        overwrite: Whether a file of that name may be replaced.
        sync: As for `FileSink`.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: An option is none of those there are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction | None = None,
        *,
        chroma: Chroma = "420",
        matrix: Matrix = "bt601",
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        super().__init__(path, overwrite=overwrite, sync=sync)
        self._format = Y4M(fps, chroma, matrix)
        self._head = self._each = 0

    def check(self, info: StreamInfo) -> None:
        """Refuse what this format cannot hold, and several clips."""
        super().check(info)
        self._format.check(self.name, info)

    def put(self, chunk: HostChunk) -> None:
        """Append a chunk."""
        rows = self.rows(chunk)
        if self._accepted == 0:
            head = self._format.head(self.name, rows)
            self._head, self._each = len(head), self._format.frame_bytes(rows)
            self._file = self._partial.begin()
            _write(self._file, memoryview(head))
        for picture in rows:
            for part in self._format.frame(picture):
                _write(self._file, part)
        self._partial.settle()

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            UsageError: The stream had no frames; there is no video without one.
        """
        if self._accepted == 0:
            raise UsageError(f"sink {self.name}: expected at least one frame, got none")
        self._partial.publish()

    def stop(self) -> None:
        """Cut off what was not accepted."""
        keep = self._accepted > 0
        try:
            if keep:
                self._file.truncate(self._head + self._accepted * self._each)
        finally:
            self._partial.release(keep=keep)


class Y4MPipe(ThreadSink):
    """Uncompressed video into an open file: stdout, a pipe, a socket's.

    As `Y4MFile`, but nothing can be taken back, and the file is the giver's: flushed, not closed.

    Args:
        file: Binary, writable; what it raises (`BrokenPipeError`) ends the stream.
        fps: As for `Y4M`.
        chroma: As for `Y4M`.
        matrix: As for `Y4M`.
        name: What the sink calls itself in errors.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: An option is none of those there are.
    """

    def __init__(
        self,
        file: IO[bytes],
        fps: float | Fraction | None = None,
        *,
        chroma: Chroma = "420",
        matrix: Matrix = "bt601",
        name: str = "-",
    ) -> None:
        super().__init__(name)
        self._file = file
        self._format = Y4M(fps, chroma, matrix)
        self._like: tuple[int, ...] = ()

    def start(self, info: StreamInfo) -> None:
        """Refuse what this format cannot hold, and several clips."""
        self._format.check(self.name, info)
        if info.kind != "image" and info.batch is not None:
            self._expect_one(info.batch)

    def put(self, chunk: HostChunk) -> None:
        """Write a chunk out."""
        if chunk.kind != "image":
            self._expect_one(chunk.data.shape[0])
        rows: Array = chunk.data[:, 0] if chunk.kind == "image" else chunk.data[0]
        if self._accepted == 0:
            self._like = rows.shape[1:]
            _write(self._file, memoryview(self._format.head(self.name, rows)))
        if rows.shape[1:] != self._like:
            raise UsageError(f"sink {self.name}: expected more of {self._like}, got {rows.shape}")
        for picture in rows:
            for part in self._format.frame(picture):
                _write(self._file, part)
        self._file.flush()

    def finish(self) -> None:
        """Nothing is left to write."""

    def _expect_one(self, batch: int) -> None:
        if batch != 1:
            raise UsageError(f"sink {self.name} takes one clip; expected batch 1, got {batch}")


def _write(file: IO[bytes], left: memoryview) -> None:
    """Write all of it, also to a file that takes less at a time."""
    while left:
        left = left[file.write(left) :]
