"""``frames/%05d.png``: each picture a file of its own, encoded by several threads, in order."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from streamvae._chunks import Frame, HostChunk, StreamInfo
from streamvae._errors import UsageError

from ._durable import Sync, checked, sync_directory
from ._encoders import Encoders
from ._lock import LockFile
from ._partial import Partial
from ._png import is_whole_png
from ._resumable import ResumableSink
from ._template import Template

#: Pillow's name and the channels it holds, by suffix.
FORMATS = {
    ".png": ("PNG", (1, 3, 4)),
    ".jpg": ("JPEG", (1, 3)),
    ".jpeg": ("JPEG", (1, 3)),
    ".webp": ("WEBP", (1, 3, 4)),
}


class Stills(ResumableSink):
    """Pictures as numbered PNG, JPEG or WebP files, by Pillow.

    Takes uint8 grey, RGB or (not JPEG) RGBA. Each file grows under its name and ``.partial`` and
    gets its name when it is whole, one after the other: those that are there are the first ones.
    `committed` counts them; it lags behind what was accepted by up to two frames for each encoder.
    Two writers on one template are refused (where the system has ``flock``).

    Args:
        path: A template with one number's place, ``frames/%05d.png``, counted from 0; for several
            clips with two, the clip's first, ``clip%d/%05d.png``. Without a place, the name of the
            one picture of a stream. The last directory is made when it is not there; its parent
            must be.
        quality: Of JPEG (95) and WebP (90), 0 to 100.
        lossless: WebP without loss.
        level: PNG's effort, 0 (fast) to 9 (small); no pixel depends on it.
        workers: Encoder threads; by default as many as there are processors, at most 4.
        overwrite: Whether files of these names may be replaced. Those that an earlier, longer
            stream left beyond this one's end stay.
        sync: ``"none"``: the system writes to the disk when it likes. ``"close"`` or ``"commit"``:
            a picture and its name are on the disk before it counts.

    Raises:
        UsageError: The suffix or an option is unknown, or the template has more places.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        quality: int | None = None,
        lossless: bool = False,
        level: int = 1,
        workers: int | None = None,
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        given = os.fsdecode(path)
        self._template = Template(given)
        self.path = self._template.path
        super().__init__(given, self._template.manifest)
        if (suffix := self.path.suffix.lower()) not in FORMATS:
            raise UsageError(f"expected a path ending in {', '.join(FORMATS)}, got {given!r}")
        self._format, self._channels = FORMATS[suffix]
        if quality is not None and not 0 <= quality <= 100:
            raise UsageError(f"expected quality in 0..100, got {quality}")
        if not 0 <= level <= 9:
            raise UsageError(f"expected level in 0..9, got {level}")
        if workers is not None and workers < 1:
            raise UsageError(f"expected one worker or more, got {workers}")
        self._options: dict[str, int | bool] = {
            "PNG": {"compress_level": level},
            "JPEG": {"quality": 95 if quality is None else quality},
            "WEBP": {"quality": 90 if quality is None else quality, "lossless": lossless},
        }[self._format]
        self._overwrite = overwrite
        self._sync: Sync = "none" if checked(sync) == "none" else "close"
        self._lock = LockFile(self._template.lock, self.path)
        self._encoders = Encoders(workers or min(4, os.cpu_count() or 1), given)
        self._encoding: deque[tuple[int, Path, Future[bytes]]] = deque()
        self._written, self._batch = 0, 1
        self._again = 0  # pictures that an earlier run may have left, which may be replaced

    @property
    def committed(self) -> int:
        """Frames (of every clip) whose files have their names."""
        return self._written // self._batch

    @property
    def found(self) -> bool:
        """Whether pictures of an earlier stream are there."""
        return self._template.there(1) > 0

    @property
    def broken_off(self) -> bool:
        """Whether they are the first ones of a stream that was broken off."""
        return self.manifest.path.exists()

    def start(self, info: StreamInfo) -> None:
        """Refuse sound, float pixels, clips or frames without a place, and a bad directory.

        Raises:
            UsageError: Naming what was expected and what came; or another sink is writing to
                these names.
        """
        if info.kind == "sound":
            raise UsageError(f"sink {self.name} keeps pictures; got sound")
        if info.output != "uint8":
            raise UsageError(
                f"sink {self.name} keeps 8 bits; expected output='uint8', got {info.output!r}"
            )
        self._expect_places(info.kind, info.batch, info.frames)
        first = self._template.name(0, 0)
        parent = first.parent if first.parent.exists() else first.parent.parent
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise UsageError(f"expected a writable directory {parent} for {self.name}")
        self._batch = info.batch if info.kind == "video" and info.batch else 1
        self._lock.acquire()
        try:
            self._refuse_taken()
        except BaseException:
            self._lock.release()
            raise

    def _refuse_taken(self) -> None:
        if self._resuming and self._template.there(self._batch):
            return
        for clip in range(self._batch if self._template.places == 2 else 1):
            self._template.refuse_taken(clip, overwrite=self._overwrite)

    def restore(self) -> None:
        """Find the pictures that are there, from the first on."""
        there = self._template.there(self._batch)
        if there:
            self._proven = self.manifest.fits(self.path)
            self._accepted, self._written = there, there * self._batch
            self._again = there + 1  # of that one some clips may be there

    def same(self, chunk: HostChunk) -> bool:
        """Compare PNGs by their pixels, if their files are whole; of other formats the files."""
        return all(self._encoders.map(self._is_there, self._frames(chunk)))

    def let_go(self, chunk: HostChunk) -> None:
        """Have those from ``chunk`` on replaced."""
        self._written = chunk.start * self._batch

    def put(self, chunk: HostChunk) -> None:
        """Have a chunk encoded, and give those their names that are."""
        batch = 1 if chunk.kind == "image" else chunk.data.shape[0]
        self._expect_places(chunk.kind, batch, chunk.start + len(chunk))
        channels = chunk.data.shape[-1]
        if channels not in self._channels or chunk.data.dtype.kind != "u":
            raise UsageError(
                f"sink {self.name}: expected uint8 with {' or '.join(map(str, self._channels))} "
                f"channels, got {chunk.data.dtype} with {channels}"
            )
        if chunk.start != self._accepted:
            raise UsageError(
                f"sink {self.name}: expected the chunk at {self._accepted}, got {chunk.start}"
            )
        self._batch = batch
        if self._accepted == 0:
            self.manifest.begin()
        for target, frame in self._frames(chunk):
            encoded = self._encoders.submit(self._encode, frame)
            self._encoding.append((frame.index, target, encoded))
            while len(self._encoding) > 2 * len(self._encoders):
                self._commit()

    def finish(self) -> None:
        """Give the last files their names."""
        while self._encoding:
            self._commit()
        self.manifest.remove()
        self._encoders.close()
        self._lock.release()

    def stop(self) -> None:
        """Keep what was accepted; after an error, up to the file that could not be written."""
        try:
            while self._encoding:
                self._commit()
        finally:
            self._encoding.clear()
            self._encoders.close()
            try:
                if not self._written and self._accepted:
                    self.manifest.remove()
            finally:
                self._lock.release()

    def _frames(self, chunk: HostChunk) -> Iterator[tuple[Path, Frame]]:
        for frame in chunk.frames(None):
            clip = 0 if chunk.kind == "image" else frame.batch_index
            yield self._template.name(clip, frame.index), frame

    def _is_there(self, named: tuple[Path, Frame]) -> bool:
        from PIL import Image

        path, frame = named
        try:
            data = path.read_bytes()
            if self._format != "PNG":
                return data == self._encode(frame)
            if not is_whole_png(data):  # torn by a loss of power
                return False
            with Image.open(io.BytesIO(data)) as there:  # of any level, by any release of zlib
                return np.array_equal(np.asarray(there), np.asarray(frame.to_pil()))
        except (OSError, SyntaxError, ValueError):  # gone, or none that Pillow can read
            return False

    def _commit(self) -> None:
        index, target, encoded = self._encoding.popleft()
        try:
            left = memoryview(encoded.result())
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                if self._sync != "none":
                    sync_directory(target.parent.parent)
            overwrite = self._overwrite or index < self._again
            partial = Partial(target, overwrite=overwrite, sync=self._sync)
            partial.acquire()
            try:
                file = partial.begin()
                while left:
                    left = left[file.write(left) :]
                partial.publish()
            except BaseException:
                partial.release(keep=False)
                raise
        except BaseException:
            self._encoding.clear()  # what comes later must not be there without this one
            raise
        self._written += 1

    def _encode(self, frame: Frame) -> bytes:
        into = io.BytesIO()
        frame.to_pil().save(into, self._format, **self._options)
        # Not its buffer: collected together with that, it complains (Python 3.12).
        return into.getvalue()

    def _expect_places(self, kind: str, batch: int | None, frames: int | None) -> None:
        if kind != "image" and (batch or 1) != 1 and self._template.places < 2:
            raise UsageError(
                f"sink {self.name}: expected two places, clip%d/%05d.png, for a batch of clips; "
                f"got a batch of {batch}"
            )
        if frames is not None and frames > 1 and not self._template.places:
            raise UsageError(
                f"sink {self.name}: expected a template with a number's place, frames/%05d.png, "
                f"for more than one picture; got {frames}"
            )
