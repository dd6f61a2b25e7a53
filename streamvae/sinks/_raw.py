"""``.raw``: bare numbers, one after another, and a JSON file that says how to read them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar

import numpy as np
from aiofiles.threadpool import wrap
from aiofiles.threadpool.binary import AsyncFileIO

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._threads import Worker, outcome

from ._direct import direct
from ._durable import Sync, sync_data, sync_directory
from ._file import FileSink
from ._left import damaged, read_object, sizes
from ._partial import move, refuse_existing

P = ParamSpec("P")
T = TypeVar("T")


class RawFile(FileSink):
    """One growing file of frames (N, H, W, C) or samples (N, C), C order, no header.

    uint8 pixels in 0..255 or float32 in [-1, 1]; float32 sound as decoded. Each chunk is one
    aiofiles call with the chunk's own memory. Beside it lies ``<name>.json`` (beside
    ``out.raw.partial`` likewise ``out.raw.partial.json``) with shape, dtype, fps and more, so that
    ``numpy.fromfile(path, dtype).reshape(shape)`` reads it. While the file still grows, and after
    a kill, the shape's N is -1: as many whole frames as the file holds.

    Args:
        path: Where to.
        overwrite: Whether files of these names may be replaced.
        sync: As for `FileSink`.
        direct: Write past the system's cache (``O_DIRECT``) where the file system can, else as
            usual, which the log says. Takes a tenth of the processor time or less, and what is
            written is on the disk when `write` returns; but what a slow disk cannot take at once
            makes the stream wait, and whoever reads the file next reads it from the disk.
    """

    takes_bands: ClassVar[bool] = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        sync: Sync = "none",
        direct: bool = False,
    ) -> None:
        super().__init__(path, overwrite=overwrite, sync=sync)
        self._direct = direct
        self._stream: AsyncFileIO  # from the first chunk on
        self._past_cache: io.FileIO | None = None

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the complete file."""
        return _json_of(self.path)

    def start(self, info: StreamInfo) -> None:
        """Check the stream and the place, as `FileSink` does, and the sidecar's place too."""
        if self._resuming:
            self._undo_half_a_finish()
        refuse_existing(self.sidecar, overwrite=self._partial.overwrite)
        super().start(info)

    async def write(self, chunk: HostChunk) -> None:
        """Append a chunk.

        Raises:
            UsageError: The chunk does not follow on the one before, or is of another shape.
            ClosedError: The sink is not open, or an earlier write failed.
        """
        self._enter("open")
        if not self._begun:
            await outcome(self._submit(self._begin, chunk))
        self._expect("open")
        self._state = "failed"  # unless all of it arrives; also if this await is broken off
        try:
            left = self.memory(self.rows(chunk))
            while left:  # once, unless the system takes less than it was given
                left = left[await self._stream.write(left) :]
            if self._partial.sync == "commit":
                await outcome(self._submit(self._partial.settle))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._explain(error)
            raise
        self._accepted += len(chunk)
        self.passed(chunk)
        self._state = "open"

    def finish(self) -> None:
        """Give the sidecar, then the file, their names."""
        self._close_stream()
        if self._accepted == 0:  # a stream without frames
            self._partial.begin()
        self._describe(complete=True)
        overwrite = self._partial.overwrite
        move(_json_of(self.partial), self.sidecar, overwrite=overwrite)
        try:
            self._partial.publish()
        except BaseException:
            self.sidecar.replace(_json_of(self.partial))
            raise

    def stop(self) -> None:
        """Cut off what was not accepted, and say how much was."""
        keep = self._accepted > 0
        try:
            self._close_stream()
            if keep:
                self._file.truncate(self._accepted * self._row_bytes)
                with contextlib.suppress(OSError):  # no room: the first one, with N = -1, stays
                    self._describe(complete=False)
            elif self._partial.ours:
                _json_of(self.partial).unlink(missing_ok=True)
        finally:
            self._partial.release(keep=keep)

    def reread(self) -> int:
        """Find the rows that are there, by the sidecar, and cut off what is not a whole one.

        Raises:
            UsageError: The sidecar is none that a stream has written.
        """
        sidecar = _json_of(self.partial)
        about = read_object(sidecar)
        if about is None:  # killed before it was written
            return 0
        shape, dtype = about.get("shape"), about.get("dtype")
        row = sizes(shape[1:]) if isinstance(shape, list) else None
        if row is None or len(row) not in {1, 3} or 0 in row:
            raise damaged(sidecar, f"shape {shape!r}")
        if dtype not in {"uint8", "float32"} or about.get("byteorder") != sys.byteorder:
            raise damaged(sidecar, f"dtype {dtype!r} of byteorder {about.get('byteorder')!r}")
        like = row, np.dtype(str(dtype)).str
        self._file, self._like = self._partial.resume(), like
        count = os.fstat(self._file.fileno()).st_size // self._row_bytes
        self._file.truncate(self._file.seek(count * self._row_bytes))
        self._open_stream()
        return count

    def _undo_half_a_finish(self) -> None:
        """Take the sidecar back that a writer gave its name, killed before the file got its own."""
        ours = _json_of(self.partial)
        if self.partial.exists() and not self.path.exists() and not ours.exists():
            with contextlib.suppress(FileNotFoundError):
                self.sidecar.replace(ours)

    def same(self, chunk: HostChunk) -> bool:
        """Read a chunk's rows again and compare; then be at the end, to append."""
        try:
            return super().same(chunk)
        finally:
            self._file.seek(0, os.SEEK_END)

    def _begin(self, chunk: HostChunk) -> None:
        self._expect("open")
        self._state = "failed"
        try:
            self.rows(chunk)
            self._file = self._partial.begin()
            self._describe(complete=None)
            self._open_stream()
        except BaseException as error:
            self._explain(error)
            raise
        self._state = "open"

    def _open_stream(self) -> None:
        file = self._file
        if self._direct:
            file = self._past_cache = direct(file, self.partial)
        self._stream = wrap(file, executor=_OneThread(self._worker))

    def _close_stream(self) -> None:
        file, self._past_cache = self._past_cache, None
        if file is not None and file is not self._file:
            file.close()

    def _describe(self, *, complete: bool | None) -> None:
        """Write the sidecar under its temporary name; ``complete`` is None while it grows."""
        info = self._info
        shape, dtype = self._like
        sound, pixels = info.kind == "sound", [0, 255] if dtype == "|u1" else [-1, 1]
        text = json.dumps(
            {
                "shape": [-1 if complete is None else self._accepted, *shape],
                "dtype": np.dtype(dtype).name,
                "byteorder": sys.byteorder,
                "layout": "NC" if sound else "NHWC",
                "range": None if sound else pixels,
                "kind": info.kind,
                "fps": info.fps,
                "sample_rate": info.sample_rate,
                "family": info.family,
                "exactness": info.exactness,
                "complete": bool(complete),
            },
            indent=1,
        )
        final = _json_of(self.partial)
        fresh = final.with_name(final.name + ".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                if self._partial.sync != "none":
                    sync_data(file.fileno())
            fresh.replace(final)
            if self._partial.sync == "commit":
                sync_directory(final.parent)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def _json_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


class _OneThread(Executor):
    """A worker as aiofiles wants it, so that its calls keep their order with all the others."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._worker.submit(fn, *args, **kwargs)
