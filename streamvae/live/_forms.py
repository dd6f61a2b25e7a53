"""What frames are made into for viewers: frames in memory of their own, and JPEG."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamvae._chunks import Frame, HostChunk
from streamvae._errors import UsageError
from streamvae._threads import Worker

from ._packets import Packet

#: Threads that encode JPEG: Pillow holds the interpreter's lock half of the time.
WORKERS = 2


def chosen(chunk: HostChunk, rate: float | None, clip: int | None) -> list[Frame]:
    """The frames of a chunk; of a batch of clips all, or those of one."""
    frames = list(chunk.frames(rate))
    if clip is None or chunk.kind != "video":
        return frames
    return [frame for frame in frames if frame.batch_index == clip]


def pixels(frame: Frame, name: str) -> npt.NDArray[np.uint8]:
    """The picture, uint8 with 1 to 4 channels.

    Raises:
        UsageError: It is another.
    """
    data = frame.data
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        raise UsageError(f"expected output='uint8' to make {name} of, got {data.dtype}")
    if not 1 <= data.shape[2] <= 4:
        raise UsageError(f"expected 1 to 4 channels to make {name} of, got {data.shape[2]}")
    return data.view(np.uint8)


class Copies:
    """Frames in memory of their own: one that a viewer keeps does not keep its whole chunk.

    Args:
        rate: Frames a second; asked for when frames come.
        clip: Which item of the batch; None for all.
    """

    name = "frames"
    header = b""
    ahead = 1

    def __init__(self, rate: Callable[[], float | None], clip: int | None) -> None:
        self._rate, self._clip = rate, clip
        self._worker = Worker("streamvae viewers")

    def frames(self, chunk: HostChunk) -> list[Frame]:
        """Those of the clip."""
        return chosen(chunk, self._rate(), self._clip)

    def make(self, frame: Frame, *, key: bool) -> Future[Frame]:  # noqa: ARG002  # all are
        """Copy it, on a thread: a large one would hold the loop."""
        return self._worker.submit(_own, frame)

    def is_key(self, item: Frame) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def close(self) -> None:
        """Let the thread go."""
        self._worker.close()


class Jpegs:
    """JPEG files by Pillow, on a few threads, in order.

    RGBA is shown on black, as video is.

    Args:
        rate: Frames a second; asked for when frames come.
        clip: Which item of the batch; None for all.
        quality: Pillow's, 1 to 100.
    """

    name = "JPEG"
    header = b""

    def __init__(self, rate: Callable[[], float | None], clip: int | None, quality: int) -> None:
        self._rate, self._clip, self._quality = rate, clip, quality
        count = max(1, min(WORKERS, os.cpu_count() or 1))
        self.ahead = count
        self._workers = [Worker(f"streamvae jpeg {number}") for number in range(count)]
        self._turn = itertools.cycle(self._workers)

    def frames(self, chunk: HostChunk) -> list[Frame]:
        """Those of the clip."""
        return chosen(chunk, self._rate(), self._clip)

    def make(self, frame: Frame, *, key: bool) -> Future[Packet]:  # noqa: ARG002  # all are
        """Encode it."""
        return next(self._turn).submit(self._encode, frame)

    def is_key(self, item: Packet) -> bool:
        """Always."""
        return item.key

    def close(self) -> None:
        """Let the threads go."""
        for worker in self._workers:
            worker.close()

    def _encode(self, frame: Frame) -> Packet:
        into = io.BytesIO()
        # Colour in full resolution: halved, it is off by 4 levels over whole 8x8 blocks, not by 2.
        opaque(frame, self.name).save(into, "JPEG", quality=self._quality, subsampling=0)
        return Packet(frame.index, frame.time, into.getvalue())


def opaque(frame: Frame, name: str) -> Image.Image:
    """The picture as Pillow's, grey or RGB: transparency on black."""
    pixels(frame, name)
    picture = frame.to_pil()
    if picture.mode not in {"LA", "RGBA"}:
        return picture
    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, picture.convert("RGBA")).convert("RGB")


def _own(frame: Frame) -> Frame:
    data = frame.data
    assert isinstance(data, np.ndarray)  # noqa: S101  # broadcasts are of host chunks
    whole = data.base
    if isinstance(whole, np.ndarray) and whole.nbytes == data.nbytes:
        return frame  # the only one of its chunk
    owned = data.copy()
    owned.setflags(write=False)
    return replace(frame, data=owned)
