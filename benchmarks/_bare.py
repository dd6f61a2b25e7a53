"""The least that writes the same bytes: what a sink is measured against."""

from __future__ import annotations

import mmap
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: H.273's number for BT.709.
BT709 = 1


class BareVideo:
    """PyAV's own loop: H.264 in MP4 with the sink's options and colours, and nothing around it.

    Args:
        path: Where to.
        size: Width and height, even.
        fps: Frames a second, and frames from one keyframe to the next.
        crf: libx264's.
        preset: libx264's.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], *, fps: int, crf: float, preset: str
    ) -> None:
        import av
        from av.video.reformatter import ColorRange, VideoReformatter

        options = {"movflags": "hybrid_fragmented"}
        self._container = av.open(str(path), "w", format="mp4", options=options)
        options = {"crf": f"{crf:g}", "preset": preset}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        context = self._stream.codec_context
        context.width, context.height = size
        context.pix_fmt, context.gop_size = "yuv420p", fps
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        self._reformatter = VideoReformatter()
        self._base, self._count = Fraction(1, fps), 0

    def encode(self, picture: npt.NDArray[np.uint8]) -> None:
        """One picture (H, W, 3), uint8."""
        import av
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        frame = self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(picture, "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=(
                Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
            ),
        )
        frame.pts, frame.time_base = self._count, self._base
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """The encoder's last frames, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Give ``nbytes`` bytes of memory that begins on a page."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def write_all(file: int, data: npt.NDArray[np.uint8]) -> None:
    """Write all of a flat array, by as many calls as the system wants."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
