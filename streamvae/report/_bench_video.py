"""H.264 in MP4 by PyAV alone, with a sink's options, and that sink with other pictures in it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._chunks import HostChunk
from ..sinks import VideoFile

#: How all loops encode: `VideoFile`'s own defaults, one keyframe a second.
FPS, CRF, PRESET = 24, 18, "veryfast"
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


class RealContent(VideoFile):
    """Encodes given pictures in the place of those that come.

    Random weights decode to noise, which no encoder is made for and no user encodes.

    Args:
        path: Where to.
        real: Pictures (N, H, W, 3), uint8, as many as will come.
        planes: The same in 4:2:0, as `streamvae.HostChunk` has planes.
    """

    def __init__(
        self, path: Path, real: npt.NDArray[np.uint8], planes: npt.NDArray[np.uint8]
    ) -> None:
        super().__init__(path, fps=FPS, crf=CRF, preset=PRESET)
        self._real = {"rgb24": real, "yuv420p": planes}

    def put(self, chunk: HostChunk) -> None:
        """Encode as many real pictures as came, laid out as they came."""
        real = self._real[chunk.format][None, chunk.start : chunk.start + len(chunk)]
        super().put(replace(chunk, data=real))
