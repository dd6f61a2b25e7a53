"""MP4 for those who watch: H.264 without delay, one fragment a frame, in BT.709."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from streamvae._chunks import Frame, HostChunk, StreamInfo
from streamvae._errors import UsageError
from streamvae._threads import Worker
from streamvae.sinks._codecs import CODECS, expect_encoder
from streamvae.sinks._encoder import Encoder
from streamvae.sinks._rates import rate_of

from ._forms import chosen, opaque, pixels
from ._fragments import Fragments
from ._packets import Packet

#: No frame is held back, and a keyframe that is asked for is one that one can begin with. Two
#: threads, since the decode needs the others.
_TOLD = {"tune": "zerolatency", "forced-idr": "1", "threads": "2"}

#: Constant rate factor: half the bytes of what files get, at 39 dB.
CRF = 23


class Mp4:
    """Fragments of H.264, by libx264 on a thread of its own.

    Of odd sizes the last row or column is repeated, RGBA is shown on black, a keyframe comes each
    second, and for somebody who waits for one, but at most four a second.

    Args:
        info: What is known of the stream; asked for when the first frame comes.
        clip: Which item of the batch.
    """

    name = "MP4"
    ahead = 0

    def __init__(self, info: Callable[[], StreamInfo], clip: int | None) -> None:
        self.header = b""
        self._info, self._clip = info, clip
        self._worker = Worker("streamvae mp4")
        self._fragments = Fragments()
        self._encoder: Encoder | None = None
        self._size = (0, 0)
        self._gop = 1
        self._key = 0

    def frames(self, chunk: HostChunk) -> list[Frame]:
        """Those of the clip."""
        return chosen(chunk, self._info().rate, self._clip)

    def make(self, frame: Frame, *, key: bool) -> Future[Packet]:
        """Encode it."""
        return self._worker.submit(self._encode, frame, key=key)

    def is_key(self, item: Packet) -> bool:
        """Whether it is a keyframe."""
        return item.key

    def close(self) -> None:
        """Let the thread go, and the encoder with it."""
        self._worker.submit(self._release)
        self._worker.close()

    def _encode(self, frame: Frame, *, key: bool) -> Packet:
        picture = self._picture(frame)
        encoder = self._encoder = self._encoder or self._begin(picture)
        if picture.shape[:2] != self._size:
            raise UsageError(
                f"expected pictures of one size for MP4, {self._size}, got {picture.shape[:2]}"
            )
        often = (frame.index - self._key) * 4 < self._gop
        encoder.encode(picture, frame.index, key=key and not often)
        ((is_key, data),) = self._fragments.made
        self._fragments.made.clear()
        if is_key:
            self._key = frame.index
        return Packet(frame.index, frame.time, data, is_key)

    def _begin(self, picture: npt.NDArray[np.uint8]) -> Encoder:
        fps = self._info().fps
        if fps is None:
            raise UsageError("expected frames a second to make MP4 of, fps=..., got none")
        codec = CODECS["h264"]
        expect_encoder(codec.encoder, av.codecs_available, av.__version__)
        rate: Fraction = rate_of(fps)
        self._gop = max(1, round(rate))
        self._size = (picture.shape[0], picture.shape[1])
        told = {**codec.told(CRF, None), **_TOLD}
        encoder = Encoder(self._fragments, codec, told, self._size[::-1], fps=rate, gop=self._gop)
        self.header = self._fragments.header
        return encoder

    def _picture(self, frame: Frame) -> npt.NDArray[np.uint8]:
        data = pixels(frame, self.name)
        if data.shape[2] != 3:
            data = np.asarray(opaque(frame, self.name).convert("RGB"), np.uint8)
        height, width = data.shape[:2]
        if height % 2 or width % 2:
            data = np.pad(data, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        return data

    def _release(self) -> None:
        if self._encoder is not None:
            self._encoder.release()
        self._encoder = None
        self._fragments = Fragments()
