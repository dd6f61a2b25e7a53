"""Bare numbers into a pipe."""

from __future__ import annotations

from typing import IO, ClassVar

import numpy as np

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import UsageError

from ._thread import ThreadSink


class RawPipe(ThreadSink):
    """Frames or samples into an open file, one after another, without a header.

    As `RawFile`, but nothing can be taken back, and the file is the giver's: flushed, not closed.
    ``ffmpeg -f rawvideo -pixel_format rgb24 -video_size 832x480 -framerate 16 -i -`` reads it.

    Args:
        file: Binary, writable; what it raises (`BrokenPipeError`) ends the stream.
        name: What the sink calls itself in errors.
    """

    takes_bands: ClassVar[bool] = True

    def __init__(self, file: IO[bytes], *, name: str = "-") -> None:
        super().__init__(name)
        self._file = file

    def start(self, info: StreamInfo) -> None:
        """Refuse frames on the device, and several clips."""
        if info.output == "device":
            raise UsageError(f"sink {self.name} needs frames on the host, got output='device'")
        if info.kind != "image" and (info.batch or 1) != 1:
            raise UsageError(f"sink {self.name} takes one clip; expected batch 1, got {info.batch}")

    def put(self, chunk: HostChunk) -> None:
        """Write a chunk out."""
        if chunk.kind != "image" and chunk.data.shape[0] != 1:
            raise UsageError(
                f"sink {self.name} takes one clip; expected batch 1, got {chunk.data.shape[0]}"
            )
        left = chunk.data.reshape(-1).view(np.uint8).data
        while left:
            left = left[self._file.write(left) :]
        self._file.flush()
