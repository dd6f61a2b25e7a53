"""What all file sinks have in common: the checks, and the temporary name."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np

from streamvae._chunks import Array, HostChunk, StreamInfo
from streamvae._errors import UsageError

from ._partial import Partial
from ._thread import ThreadSink


class FileSink(ThreadSink):
    """Base of sinks that keep one clip, a run of images or one piece of sound in one file.

    The file grows under ``<name>.partial``, gets its name when it is complete, and stays under
    the temporary name, readable, when the stream is broken off. One that an earlier run left is
    replaced with the first chunk, not before. Two writers on one target are refused (where the
    system has ``flock``). What is committed survives the process, however it ends; nothing is
    synced to disk against a loss of power.

    Args:
        path: Where to.
        overwrite: Whether a file of that name may be replaced.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        given = os.fsdecode(path)
        super().__init__(given)
        self.path = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() follows links
        self._partial = Partial(self.path, overwrite=overwrite)
        self._info: StreamInfo  # from `start` on
        self._file: io.FileIO  # from the first chunk on
        self._like: tuple[tuple[int, ...], str] = ((), "|u1")

    @property
    def partial(self) -> Path:
        """The name the file has until it is complete."""
        return self._partial.path

    def check(self, info: StreamInfo) -> None:
        """Refuse a stream that this file cannot hold.

        Raises:
            UsageError: Naming what was expected and what came.
        """
        if info.output == "device":
            raise UsageError(
                f"sink {self.name} needs frames on the host; expected output='uint8' or "
                "'float32', got 'device'"
            )
        if info.kind != "image" and info.batch is not None:
            self._expect_one(info.batch)

    def start(self, info: StreamInfo) -> None:
        """Check the stream and the place.

        Raises:
            UsageError: The stream does not fit, the file exists, its directory is missing or not
                writable, or another sink is writing to it.
        """
        self.check(info)
        self._info = info
        self._partial.acquire()

    def rows(self, chunk: HostChunk) -> Array:
        """A chunk's frames (n, H, W, C) or samples (n, C), a view.

        Raises:
            UsageError: More than one clip, a gap, or another shape or dtype than before.
        """
        if chunk.kind != "image":
            self._expect_one(chunk.data.shape[0])
        rows: Array = chunk.data[:, 0] if chunk.kind == "image" else chunk.data[0]
        like = (rows.shape[1:], rows.dtype.str)
        if self._accepted == 0:
            self._like = like
        if like != self._like:
            raise UsageError(f"sink {self.name}: expected more of {self._like}, got {like}")
        if chunk.start != self._accepted:
            raise UsageError(
                f"sink {self.name}: expected the chunk at {self._accepted}, got {chunk.start}"
            )
        return rows

    @staticmethod
    def memory(rows: Array) -> memoryview:
        """The bytes of a chunk's rows, not copied."""
        return rows.reshape(-1).view(np.uint8).data

    @property
    def _row_bytes(self) -> int:
        shape, dtype = self._like
        return math.prod(shape) * np.dtype(dtype).itemsize

    def _expect_one(self, batch: int) -> None:
        if batch != 1:
            raise UsageError(
                f"sink {self.name} keeps one clip in one file; expected batch 1, got {batch}"
            )

    def _explain(self, error: BaseException) -> None:
        where = f"kept in {self.partial}" if self.committed else "committed"
        unit = "samples" if self._info.kind == "sound" else "frames"
        error.add_note(f"In sink {self.name}: {self.committed} {unit} {where}.")
