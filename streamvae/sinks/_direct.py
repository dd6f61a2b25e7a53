"""Writing past the system's cache, from a chunk's own memory where that lies on pages."""

from __future__ import annotations

import errno
import io
import logging
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

_log = logging.getLogger("streamvae")

#: What address, place in the file and length must be multiples of: a page, and every disk's block.
BLOCK = 4096

#: Bytes of the memory that goes between, for chunks that lie elsewhere.
BETWEEN = 4 * 2**20

#: The flag; 0 where the system has none.
O_DIRECT = getattr(os, "O_DIRECT", 0)

#: What a file system says that cannot write so.
_CANNOT = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


def direct(plain: io.FileIO, path: Path) -> io.FileIO:
    """Give what writes to ``plain``'s file past the cache; ``plain`` itself where that cannot be.

    Args:
        plain: Open for reading and writing. Its position is where the next write goes.
        path: Its name.
    """
    if not O_DIRECT:
        _log.info("%s: this system has no O_DIRECT; written as usual", path)
        return plain
    try:
        return DirectFile(plain, path)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _log.info("%s: this file system has no O_DIRECT (%s); written as usual", path, error)
        return plain


class DirectFile(io.FileIO):
    """Writes whole blocks past the cache, what is left behind the last one as usual.

    When a write returns, all of it is in the file, and nothing else. Memory that does not lie on
    pages, or goes to a place that does not, is copied into such that does, a part at a time. A file
    system that turns out not to be able to is written to as usual, from then on.

    Args:
        plain: The same file, opened as usual; its position is where the next write goes.
        path: Its name.

    Raises:
        OSError: ``EINVAL`` where the file system cannot.
    """

    def __init__(self, plain: io.FileIO, path: Path) -> None:
        super().__init__(os.open(path, os.O_WRONLY | O_DIRECT), "w")
        self._plain, self._path = plain, path
        self._able = True
        self._between: npt.NDArray[np.uint8] | None = None

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # bytes and all others
        """Write all of ``data`` where ``plain`` stands, and move that behind it."""
        left = np.frombuffer(data, np.uint8)
        while self._able and (place := self._plain.tell()) % BLOCK + left.size >= BLOCK:
            try:
                left = left[self._write_blocks(left, place) :]
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self._able = False
                _log.info("%s: direct writes are refused (%s); written as usual", self._path, error)
        view = left.data
        while view:
            view = view[self._plain.write(view) :]
        return len(data)

    def _write_blocks(self, left: npt.NDArray[np.uint8], place: int) -> int:
        """Write blocks that ``left`` fills, from ``place``; say how many of its bytes that was."""
        before = place % BLOCK
        if not before and not left.ctypes.data % BLOCK:
            blocks = left[: left.size // BLOCK * BLOCK]
        else:
            blocks = self._copied(left, place, before)
        done = os.pwrite(self.fileno(), blocks.data, place - before) - before
        if done <= 0:  # the disk took less than a block; as usual it says what is wrong
            return self._plain.write(left[:BLOCK].data)
        self._plain.seek(place + done)
        return done

    def _copied(
        self, left: npt.NDArray[np.uint8], place: int, before: int
    ) -> npt.NDArray[np.uint8]:
        """Whole blocks, on pages: what stands in the file before ``place``, then ``left``."""
        if self._between is None:
            self._between = np.frombuffer(mmap.mmap(-1, BETWEEN), np.uint8)
        if before:
            os.preadv(self._plain.fileno(), [self._between[:before].data], place - before)
        size = min(BETWEEN, (before + left.size) // BLOCK * BLOCK)
        np.copyto(self._between[before:size], left[: size - before])
        return self._between[:size]
