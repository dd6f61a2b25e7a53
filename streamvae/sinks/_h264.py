"""H.264 in MP4 by PyAV: colours as they should be, and readable after a kill."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

_log = logging.getLogger("streamvae")

#: H.273's number for BT.709: of the matrix, of the primaries and of the transfer function.
BT709 = 1

#: Rounding and chroma siting as exact as the scaler can.
_SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class Encoder:
    """Encodes pictures into an open file; MP4 whose fragments become an index on `close`.

    Args:
        file: Empty, writable, seekable.
        size: Width and height, both even.
        fps: Frames a second.
        crf: libx264's constant rate factor.
        preset: libx264's preset.
        gop: Frames from one keyframe to the next at most, which is also a fragment.
    """

    def __init__(
        self,
        file: io.FileIO,
        size: tuple[int, int],
        *,
        fps: Fraction,
        crf: float,
        preset: str,
        gop: int,
    ) -> None:
        self.committed = 0
        self._encoded = 0
        self._closed = False
        self._base = 1 / fps
        self._output = _Output(file)
        self._container = av.open(
            self._output, "w", format="mp4", options={"movflags": "hybrid_fragmented"}
        )
        options = {"crf": f"{crf:g}", "preset": preset}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        context = self._stream.codec_context
        context.width, context.height = size
        context.pix_fmt = "yuv420p"
        context.gop_size = gop
        # Tags alone do not change the conversion, and a conversion without tags is read wrongly.
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        self._reformatter = VideoReformatter()
        context.open()  # a bad option shows here

    def encode(self, picture: npt.NDArray[np.uint8]) -> None:
        """Encode one picture (H, W, 3), uint8 RGB, rows contiguous; not read after the return."""
        # from_ndarray would copy it while holding the GIL.
        wrapped = av.VideoFrame.from_numpy_buffer(picture, "rgb24")
        # The encoder gets planes of its own, so the picture's memory may go at once.
        frame = self._reformatter.reformat(
            wrapped,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALER,
        )
        frame.pts, frame.time_base = self._encoded, self._base
        self._encoded += 1
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write out what the encoder holds, and the index."""
        self._mux(self._stream.encode(None))
        self._container.close()
        self.committed = self._encoded
        self._closed = True
        del self._stream  # and with it the encoder's threads and frames

    def salvage(self) -> None:
        """Close; where that fails, or a write has failed before, keep the whole fragments."""
        if self._closed:
            return
        try:
            if not self._output.closed:
                self.close()
        except Exception:  # noqa: BLE001  # PyAV's errors have no base of their own
            _log.debug("only whole fragments are kept", exc_info=True)
        if not self._closed:
            self._output.cut()
            self._container.close()  # sees that the output is closed, and writes no trailer
            self._closed = True
            del self._stream

    def _mux(self, packets: Sequence[Packet[VideoStream]]) -> None:
        for packet in packets:
            begins, first = packet.is_keyframe, packet.pts
            self._container.mux(packet)
            if begins and first:
                # Groups of pictures are closed, so this keyframe has sent all before it out.
                self.committed = first
                self._output.mark()


class _Output:
    """The file as FFmpeg sees it. After the first error nothing is written any more.

    Else the trailer of a full disk would turn whole fragments into an MP4 without its index.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.closed = False
        self._file = file
        self._whole = 0

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self.closed = True
            raise
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def mark(self) -> None:
        """Remember that all up to here is readable."""
        self._whole = self.tell()

    def cut(self) -> None:
        """Take off what was written after the last mark."""
        self.closed = True
        self._file.truncate(self._whole)
