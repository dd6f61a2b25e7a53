"""The file as FFmpeg sees it, and how much of it is readable."""

from __future__ import annotations

import io
from collections.abc import Callable


class Output:
    """A file that FFmpeg writes to. After the first error nothing is written any more.

    Else the trailer of a full disk would turn whole fragments into an MP4 without its index.

    Args:
        file: Empty, writable, seekable.
        settle: Called when all that was written so far is to be kept.
    """

    def __init__(self, file: io.FileIO, settle: Callable[[], None]) -> None:
        self.closed = False
        self._file = file
        self._settle = settle
        self._whole = 0

    def write(self, data: bytes) -> int:
        """Write all of it."""
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self.closed = True
            raise
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As any file's."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As any file's."""
        return self._file.tell()

    def mark(self) -> None:
        """Remember that all up to here is readable."""
        self._settle()
        self._whole = self.tell()

    def cut(self) -> None:
        """Take off what was written after the last mark."""
        self.closed = True
        self._file.truncate(self._whole)
