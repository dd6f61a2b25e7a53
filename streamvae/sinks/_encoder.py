"""Pictures to packets by PyAV: colours as they should be, in a file readable after a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.stream import Stream
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from streamvae._errors import UsageError

from ._codecs import VideoCodec

# Its notices go to stderr, and nothing but this stops them; what somebody has set stays.
os.environ.setdefault("SVT_LOG", "1")

#: H.273's number for BT.709: of the matrix, of the primaries and of the transfer function.
BT709 = 1

#: Rounding and chroma siting as exact as the scaler can.
_SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class Tracks(Protocol):
    """What an encoder writes to: a file (`streamvae.sinks._muxer.Muxer`), or whoever is watching.

    Attributes:
        isom: Whether it is of the family of MP4.
    """

    isom: bool

    def video(self, encoder: str, rate: Fraction, options: dict[str, str]) -> VideoStream:
        """A track of pictures, to be set up before `ready`."""
        ...

    def ready(self) -> None:
        """The track is set up."""
        ...

    def mux(self, packets: Sequence[Packet[Stream]]) -> None:
        """Take packets in the order of decoding."""
        ...


class Encoder:
    """Encodes pictures into a track of a file.

    Args:
        muxer: The file; this is its track of pictures.
        codec: How.
        told: What the encoder is told.
        size: Width and height, both even but for a codec that is exact.
        fps: Frames a second.
        gop: Frames from one keyframe to the next at most, which is also a fragment.
        alpha: Whether pictures have a fourth channel (exact codecs only).

    Raises:
        UsageError: The encoder refuses it, for the size mostly (libx265: less than 16x16).
    """

    def __init__(
        self,
        muxer: Tracks,
        codec: VideoCodec,
        told: dict[str, str],
        size: tuple[int, int],
        *,
        fps: Fraction,
        gop: int,
        alpha: bool = False,
    ) -> None:
        self.pictures = 0
        self._muxer = muxer
        self._base = 1 / fps
        self._exact = codec.exact
        self._given = "rgba" if alpha else "rgb24"
        self._stream: VideoStream | None = muxer.video(codec.encoder, fps, told)
        context = self._stream.codec_context
        context.width, context.height = size
        context.gop_size = gop
        if codec.tag is not None and muxer.isom:
            context.codec_tag = codec.tag
        if codec.exact:
            context.pix_fmt = "bgra" if alpha else "bgr0"
            context.gop_size = 1  # each frame for itself: one can seek to any, and loses none
            # As RGB it has no matrix: tagged BT.709 it would be read as if it had.
        else:
            context.pix_fmt = "yuv420p"
            # Tags alone do not change the conversion; a conversion without tags is read wrongly.
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = ColorRange.MPEG
        self._format = context.pix_fmt
        self._reformatter = VideoReformatter()
        try:
            context.open()
        except av.FFmpegError as error:
            raise UsageError(
                f"expected what {codec.encoder} takes, got {size[0]}x{size[1]} pixels and {told}: "
                f"{error.strerror}"
            ) from error
        muxer.ready()

    @property
    def begun(self) -> bool:
        """Whether it was given a picture."""
        return self.pictures > 0

    def encode(
        self, picture: npt.NDArray[np.uint8], number: int | None = None, *, key: bool = False
    ) -> None:
        """Encode one picture.

        Args:
            picture: (H, W, 3 or 4), uint8, rows contiguous; not read after the return.
            number: When it is shown, in frames, above that of the one before; by default the next.
            key: Make it a keyframe.
        """
        # from_ndarray would copy it while holding the GIL.
        wrapped = av.VideoFrame.from_numpy_buffer(picture, self._given)
        # The encoder gets planes of its own, so the picture's memory may go at once.
        if self._exact:
            frame = self._reformatter.reformat(wrapped, format=self._format)
        else:
            frame = self._reformatter.reformat(
                wrapped,
                format=self._format,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_SCALER,
            )
        if key:
            frame.pict_type = PictureType.I
        self._send(frame, number)

    def encode_planes(self, planes: npt.NDArray[np.uint8]) -> None:
        """Encode planes as `streamvae._pixels.yuv420p` makes them, (3 * H / 2, W), not copied."""
        frame = av.VideoFrame.from_numpy_buffer(planes, "yuv420p")
        frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.MPEG
        self._send(frame)

    def release(self) -> None:
        """Let go of the encoder's threads and frames without writing them out."""
        self._stream = None

    def flush(self) -> None:
        """Write out what the encoder holds, then `release`."""
        stream, self._stream = self._stream, None
        if stream is not None:
            packets = stream.encode(None)
            if self.pictures <= 2:  # too few to be reordered; then libx265's dts may be garbage
                for packet in packets:
                    packet.dts = packet.pts
            self._muxer.mux(packets)

    def _send(self, frame: av.VideoFrame, number: int | None = None) -> None:
        assert self._stream is not None  # noqa: S101  # nothing comes after the flush
        frame.pts = self.pictures if number is None else number
        frame.time_base = self._base
        self.pictures += 1
        self._muxer.mux(self._stream.encode(frame))
