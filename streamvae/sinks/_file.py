"""What all file sinks have in common: the checks, and the temporary name."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from streamvae._chunks import Array, Band, HostChunk, StreamInfo
from streamvae._errors import UsageError

from ._durable import Sync
from ._partial import Partial, partial_of
from ._resumable import ResumableSink

#: The numbers that are kept: pixels, and pixels or sound.
DTYPES = (np.dtype(np.uint8).str, np.dtype(np.float32).str)


class FileSink(ResumableSink):
    """Base of sinks that keep one clip, a run of images or one piece of sound in one file.

    The file grows under ``<name>.partial``, gets its name when it is complete, and stays under
    the temporary name, readable, when the stream is broken off. One that an earlier run left is
    replaced with the first chunk, not before. Two writers on one target are refused (where the
    system has ``flock``). What is committed survives the process, however it ends; a loss of power
    it survives as far as ``sync`` says.

    Args:
        path: Where to.
        overwrite: Whether a file of that name may be replaced.
        sync: ``"none"``: the system writes to the disk when it likes. ``"close"``: a file is on the
            disk before it has its name, and when it is left under the temporary one.
            ``"commit"``: so are the frames before `committed` counts them.
    """

    #: Whether `put` takes bands of pictures: see `streamvae.abc.Sink`.
    takes_bands: ClassVar[bool] = False

    def __init__(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, sync: Sync = "none"
    ) -> None:
        given = os.fsdecode(path)
        self.path = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() follows links
        partial = partial_of(self.path)
        super().__init__(given, partial.with_name(partial.name + ".manifest.json"))
        self._partial = Partial(self.path, overwrite=overwrite, sync=sync)
        self._partial.manifest = self.manifest
        self._info: StreamInfo  # from `start` on
        self._file: io.FileIO  # from the first chunk on
        self._top = 0  # rows that are there of a picture that is not complete
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

    def restore(self) -> None:
        """Find what is there under the temporary name."""
        if self._partial.found:
            self._proven = self.manifest.fits(self.partial)
            self._accepted = self.reread()

    def reread(self) -> int:
        """Open what an earlier run left, and give how many frames (samples) it holds.

        By default none: a file that cannot be gone on with is written anew, and the earlier one
        stays until the new one is complete, or longer.
        """
        self._partial.aside = True
        return 0

    def offset(self, count: int) -> int:
        """Where ``count`` frames (samples) end in the file. Only for those that `reread`."""
        return count * self._row_bytes

    def written(self, rows: Array) -> Iterator[memoryview]:
        """What ``rows`` are in the file. Only for those that `reread`."""
        yield self.memory(rows)

    def same(self, chunk: HostChunk) -> bool:
        """Read a chunk's frames again and compare.

        Raises:
            UsageError: They are of another shape or dtype than what is there.
        """
        rows: Array = chunk.data[:, 0] if chunk.kind == "image" else chunk.data[0]
        self._expect_like(_like(rows, chunk.band))
        band = chunk.band
        self._file.seek(self.offset(chunk.start))
        if band is not None:  # its rows of the picture
            self._file.seek(band.rows.start * (self._row_bytes // band.height), io.SEEK_CUR)
        return all(
            np.array_equal(_read(self._file, len(part)), np.frombuffer(part, np.uint8))
            for part in self.written(rows)
        )

    def let_go(self, chunk: HostChunk) -> None:
        """Cut off all from ``chunk`` on, and be there to write it."""
        self._top = 0 if chunk.band is None else chunk.band.rows.start
        end = self.offset(chunk.start)
        if self._top:
            end += self._top * (self._row_bytes // self._like[0][0])
        self._file.truncate(end)
        self._file.seek(end)

    def rows(self, chunk: HostChunk) -> Array:
        """A chunk's frames (n, H, W, C), rows of one (1, h, W, C) or samples (n, C), a view.

        Raises:
            UsageError: More than one clip, a gap, or another shape or dtype than before.
        """
        if chunk.kind != "image":
            self._expect_one(chunk.data.shape[0])
        rows: Array = chunk.data[:, 0] if chunk.kind == "image" else chunk.data[0]
        like, top = _like(rows, chunk.band), chunk.band.rows.start if chunk.band else 0
        if not self._begun:
            self._like = like
        self._expect_like(like)
        if chunk.start != self._accepted:
            raise UsageError(
                f"sink {self.name}: expected the chunk at {self._accepted}, got {chunk.start}"
            )
        if top != self._top:
            raise UsageError(f"sink {self.name}: expected the rows at {self._top}, got {top}")
        return rows

    def passed(self, chunk: HostChunk) -> None:
        """Remember how far a picture is that comes in bands, when ``chunk`` is in the file."""
        self._top = 0 if chunk.band is None or chunk.band.last else chunk.band.rows.stop

    @staticmethod
    def memory(rows: Array) -> memoryview:
        """The bytes of a chunk's rows, not copied."""
        return rows.reshape(-1).view(np.uint8).data

    @property
    def _begun(self) -> bool:
        return self._accepted > 0 or self._top > 0

    @property
    def _row_bytes(self) -> int:
        shape, dtype = self._like
        return math.prod(shape) * np.dtype(dtype).itemsize

    def _expect_like(self, like: tuple[tuple[int, ...], str]) -> None:
        if like != self._like:
            raise UsageError(f"sink {self.name}: expected more of {self._like}, got {like}")

    def _expect_one(self, batch: int) -> None:
        if batch != 1:
            raise UsageError(
                f"sink {self.name} keeps one clip in one file; expected batch 1, got {batch}"
            )

    def _explain(self, error: BaseException) -> None:
        where = f"kept in {self.partial}" if self.committed else "committed"
        unit = "samples" if self._info.kind == "sound" else "frames"
        error.add_note(f"In sink {self.name}: {self.committed} {unit} {where}.")


def _like(rows: Array, band: Band | None) -> tuple[tuple[int, ...], str]:
    """Shape of a frame (of a sample), and dtype."""
    height = () if band is None else (band.height,)
    return (*height, *rows.shape[1 + len(height) :]), rows.dtype.str


def _read(file: io.FileIO, count: int) -> npt.NDArray[np.uint8]:
    """Up to ``count`` bytes from where ``file`` stands."""
    data = np.empty(count, np.uint8)
    left = data.data
    while left and (got := file.readinto(left)):
        left = left[got:]
    return data[: count - len(left)]
