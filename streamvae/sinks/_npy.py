"""``.npy``: an array that grows, readable by numpy after every chunk."""

from __future__ import annotations

import os
import re
from typing import ClassVar

from streamvae._chunks import HostChunk

from ._file import DTYPES, FileSink
from ._left import damaged

#: Bytes of the header, whatever it says; the longest (a count of 19 digits) takes about 110.
HEADER = 128


class NpyFile(FileSink):
    """One array of frames (N, H, W, C) or samples (N, C) in numpy's own format.

    uint8 pixels in 0..255 or float32 in [-1, 1]; float32 sound as decoded. The header is right
    after every chunk: the data go first, then the count, in place, so ``numpy.load`` (also with
    ``mmap_mode="r"``) of the growing ``.partial`` gives the frames committed so far.

    A commit is two writes that belong together, so they are one call on the sink's thread; by
    aiofiles they would be two awaits with a place between them to be cancelled at.
    """

    takes_bands: ClassVar[bool] = True

    def put(self, chunk: HostChunk) -> None:
        """Append a chunk, then count it in."""
        rows = self.rows(chunk)
        if not self._begun:
            self._begin()
        self._write_at(self.memory(rows), self._end(self._accepted) + self._top_bytes)
        if len(chunk):  # but for bands of a picture that is not complete
            self._partial.settle()  # a count of what is not there would spoil all that is
            self._count(self._accepted + len(chunk))
            self._partial.settle()
        self.passed(chunk)

    def finish(self) -> None:
        """Give the file its name. A stream without frames gives an array of length 0."""
        if self._accepted == 0:
            self._begin()
        self._partial.publish()

    def stop(self) -> None:
        """Cut off what was not counted in."""
        keep = self._accepted > 0
        try:
            if keep:
                self._file.truncate(self._end(self._accepted))
        finally:
            self._partial.release(keep=keep)

    def reread(self) -> int:
        """Find the array that is there, and cut off what is not counted in.

        Raises:
            UsageError: Its header is none that a stream has written.
        """
        head = self._partial.read(HEADER)
        if len(head) < HEADER or not any(head):  # killed before the header was written
            return 0
        (rows, *shape), dtype = _parse(head) or ((0,), "")
        if not dtype:
            raise damaged(self.partial, "a file with another header")
        self._file, self._like = self._partial.resume(), (tuple(shape), dtype)
        whole = (os.fstat(self._file.fileno()).st_size - HEADER) // self._row_bytes
        count = min(rows, whole)
        self._count(count)
        self._file.truncate(self._end(count))
        return count

    def offset(self, count: int) -> int:
        """Where ``count`` rows end in the file."""
        return self._end(count)

    def let_go(self, chunk: HostChunk) -> None:
        """Cut off all from ``chunk`` on, and count it out."""
        self._count(chunk.start)
        super().let_go(chunk)

    def _begin(self) -> None:
        self._file = self._partial.begin()
        self._count(0)

    def _end(self, rows: int) -> int:
        """Where ``rows`` rows end in the file."""
        return HEADER + rows * self._row_bytes

    @property
    def _top_bytes(self) -> int:
        """Bytes that are there of a picture that is not complete."""
        return self._top and self._top * (self._row_bytes // self._like[0][0])

    def _count(self, rows: int) -> None:
        shape, dtype = self._like
        self._write_at(memoryview(_header((rows, *shape), dtype)), 0)

    def _write_at(self, left: memoryview, at: int) -> None:
        self._file.seek(at)
        while left:
            left = left[self._file.write(left) :]


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    magic = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return magic + head.ljust(HEADER - 11).encode("latin1") + b"\n"


def _parse(head: bytes) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype of a header of ours; None of any other."""
    found = re.search(rb"'descr': '(.{3})'.*'shape': \((\d+(?:, \d+)*),?\)", head)
    if found is None:
        return None
    shape, dtype = tuple(map(int, found[2].split(b", "))), found[1].decode("latin1")
    if dtype not in DTYPES or len(shape) not in {2, 4} or 0 in shape[1:]:
        return None
    return (shape, dtype) if _header(shape, dtype) == head else None
