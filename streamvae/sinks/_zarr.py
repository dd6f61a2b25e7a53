"""``.zarr``: an array that grows, in pieces of some frames each, as zarr's version 3 has it."""

from __future__ import annotations

import logging
import math
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from streamvae._chunks import Array, HostChunk, StreamInfo
from streamvae._errors import MissingDependencyError, UsageError

from ._durable import Sync
from ._left import damaged
from ._partial import partial_of
from ._partial_directory import PartialDirectory
from ._resumable import ResumableSink
from ._zarr_format import ABOUT, describe, described, metadata, writer
from ._zarr_store import ENDLESS, Pieces

_log = logging.getLogger("streamvae")

#: Bytes of a piece, and how many pictures it holds at most; of sound it holds a second.
PIECE_BYTES = 8 * 2**20
PIECE_PICTURES = 16
#: Samples of a piece of sound whose rate nobody knows.
PIECE_SAMPLES = 48_000


class ZarrArray(ResumableSink):
    """One zarr array (version 3) in a directory, written by tensorstore, read by any zarr library.

    Frames (T, H, W, C), pictures (N, H, W, C) or samples (S, C); a batch of clips or of sounds has
    its axis in front, (B, T, H, W, C). uint8 pixels in 0..255 or float32 in [-1, 1]; float32 sound
    as decoded. The axes have names (``dimension_names``), the attributes say ``fps``,
    ``sample_rate``, ``range``, ``family``, ``exactness`` and whether the stream is ``complete``.

    The array is stored in pieces of ``length`` frames of one clip, a file each. Its shape grows
    with every whole piece, written after it: so ``<name>.partial``, also after a kill, opens as an
    array of just the frames that `committed` counts, which lag behind what was accepted by less
    than one piece. A stream that breaks off without a kill stores the rest as well.

    Args:
        path: Where to.
        length: Frames (samples) in a piece: by default as many as fit into 8 MiB, 16 at most; of
            sound a second.
        zstd: Zstandard's level, -7 to 22. None, the default, does not compress: level 1 takes off
            some 12 % of uint8 frames and 9 % of float32 ones, and writes 400 to 600 MB a second
            and core in place of 3500.
        overwrite: Whether a zarr directory of that name may be replaced.
        sync: As for `FileSink`; a commit is a piece.

    Raises:
        MissingDependencyError: tensorstore is not installed.
        UsageError: An option is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        length: int | None = None,
        zstd: int | None = None,
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        given = os.fsdecode(path)
        self.path = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() follows links
        partial = partial_of(self.path)
        super().__init__(given, partial.with_name(partial.name + ".manifest.json"))
        if find_spec("tensorstore") is None:
            raise MissingDependencyError("tensorstore", "writing zarr", "zarr")
        if length is not None and length < 1:
            raise UsageError(f"expected a length of one frame or more, got {length}")
        if zstd is not None and not -7 <= zstd <= 22:
            raise UsageError(f"expected zstd in -7..22, got {zstd}")
        self._partial = PartialDirectory(self.path, marker=ABOUT, overwrite=overwrite, sync=sync)
        self._length, self._zstd = length, zstd
        self._info: StreamInfo  # from `start` on
        self._store: Pieces | None = None
        self._rest: Array  # frames of the piece that is not whole, from the first chunk on
        self._stored = self._counted = 0  # the second only when a reader finds them

    @property
    def partial(self) -> Path:
        """The name the directory has until it is complete."""
        return self._partial.path

    @property
    def committed(self) -> int:
        """Frames in whole pieces; all of them once the sink is closed or aborted."""
        return self._counted

    def start(self, info: StreamInfo) -> None:
        """Check the stream and the place.

        Raises:
            UsageError: The frames stay on the device, the target exists, its parent is missing or
                not writable, or another sink is writing to it.
        """
        if info.output == "device":
            raise UsageError(
                f"sink {self.name} needs frames on the host; expected output='uint8' or "
                "'float32', got 'device'"
            )
        self._info = info
        self._partial.acquire()

    def restore(self) -> None:
        """Find the array that is there, and what its last piece holds if that is not whole."""
        about = described(self.partial, self._info.kind)
        if about is None:
            return
        self._proven = self.manifest.fits(self.partial)
        piece, dtype, length, codecs = about
        try:
            self._rest = np.empty(piece, dtype)
        except (MemoryError, ValueError) as error:
            raise damaged(self.partial / ABOUT, f"pieces of {piece}") from error
        if codecs != self._metadata(0)["codecs"] or self._length not in {None, piece[1]}:
            raise UsageError(
                f"expected the length and the zstd that {self.partial} was begun with, "
                f"got length={self._length} and zstd={self._zstd}; nothing was touched"
            )
        self._store = self._opened()
        self._take_up(length)
        self._counted = length

    def same(self, chunk: HostChunk) -> bool:
        """Read a chunk's frames again and compare.

        Raises:
            UsageError: They are of another shape or dtype than what is there.
        """
        rows = chunk.data[None, :, 0] if chunk.kind == "image" else chunk.data
        self._expect_like(rows)
        there = self._pieces.read(chunk.start, chunk.start + len(chunk))
        return there is not None and np.array_equal(there, rows)

    def let_go(self, chunk: HostChunk) -> None:
        """Count out all from ``chunk`` on."""
        self._take_up(chunk.start)
        self._describe(complete=False)
        self._counted = self._stored

    def _take_up(self, count: int) -> None:
        """Stand behind ``count`` frames, as if they had just been put."""
        self._accepted = count
        self._stored = count - count % self._rest.shape[1]
        if count > self._stored:
            there = self._pieces.read(self._stored, count)
            # One that cannot be read is found out when it is compared.
            self._rest[:, : count - self._stored] = 0 if there is None else there

    def put(self, chunk: HostChunk) -> None:
        """Store the pieces that are whole with this chunk; keep what is left."""
        rows = chunk.data[None, :, 0] if chunk.kind == "image" else chunk.data
        if self._store is None:
            self._store = self._begin(rows)
        self._expect_like(rows)
        if chunk.start != self._accepted:
            raise UsageError(
                f"sink {self.name}: expected the chunk at {self._accepted}, got {chunk.start}"
            )
        size, taken, waiting = self._rest.shape[1], 0, self._accepted - self._stored
        while taken < len(chunk):
            count = min(size - waiting, len(chunk) - taken)
            part = rows[:, taken : taken + count]
            if count < size:  # else it is stored from the chunk's own memory
                self._rest[:, waiting : waiting + count] = part
                part = self._rest
            taken, waiting = taken + count, (waiting + count) % size
            if not waiting:
                self._keep(part)

    def finish(self) -> None:
        """Store the last frames, and give the directory its name.

        A stream without frames gives an array of length 0.
        """
        if self._store is None:
            self._store = self._begin(np.empty((1, 0), np.uint8))
        self._keep_rest()
        self._describe(complete=True)
        self._partial.publish()
        self.manifest.remove()

    def stop(self) -> None:
        """Store what was accepted; after an error, keep the pieces that are whole."""
        try:
            self._keep_rest()
        except Exception:
            if self._state != "failed":  # else it is the same error once more
                raise
            _log.debug("only whole pieces are kept", exc_info=True)
        finally:
            if self._store is not None and not self._counted:
                self.manifest.remove()
            self._partial.release(keep=self._counted > 0)

    def _begin(self, rows: Array) -> Pieces:
        batch, _, *each = rows.shape
        self._rest = np.empty((batch, self._steps(rows), *each), rows.dtype)
        self.manifest.begin()
        self._partial.begin()
        self._describe(complete=False)
        return self._opened()

    @property
    def _pieces(self) -> Pieces:
        if self._store is None:
            raise RuntimeError("expected an array to store in")
        return self._store

    def _opened(self) -> Pieces:
        # The array that is described on the disk has what is stored. This one never ends.
        sync = self._partial.sync == "commit"
        compressed, piece = self._zstd is not None, self._rest.shape
        about = self._metadata(ENDLESS)
        return Pieces(self.partial, about, piece, compressed=compressed, sync=sync)

    def _steps(self, rows: Array) -> int:
        """Frames or samples in a piece."""
        if self._length is not None:
            return self._length
        if self._info.kind == "sound":
            return self._info.sample_rate or PIECE_SAMPLES
        each = math.prod(rows.shape[2:]) * rows.dtype.itemsize
        steps = max(1, min(PIECE_PICTURES, PIECE_BYTES // each))
        if not self._info.frames:
            return steps
        # The last piece takes as much room as the others: let it be as full as they are.
        return math.ceil(self._info.frames / math.ceil(self._info.frames / steps))

    def _keep(self, part: Array) -> None:
        """Store a piece (B, t, ...), then count it in."""
        end = self._stored + part.shape[1]
        self._pieces.write(self._stored, part)
        self._stored = end
        self._describe(complete=False)
        self._counted = end

    def _keep_rest(self) -> None:
        left = self._accepted - self._stored
        if left > 0:
            self._keep(self._rest[:, :left])

    def _metadata(self, length: int) -> dict[str, object]:
        rest = self._rest
        return metadata(rest.shape, rest.dtype, length, self._info.kind, self._zstd)

    def _describe(self, *, complete: bool) -> None:
        """Write down how long the array is."""
        info, pixels = self._info, [0, 255] if self._rest.dtype == np.uint8 else [-1, 1]
        attributes = {
            "kind": info.kind,
            "range": None if info.kind == "sound" else pixels,
            "fps": info.fps,
            "sample_rate": info.sample_rate,
            "family": info.family,
            "exactness": info.exactness,
            "streamvae": writer(),
            "complete": complete,
        }
        about = self._metadata(self._stored) | {"attributes": attributes}
        describe(self.partial, about, sync=self._partial.sync == "commit")

    def _expect_like(self, rows: Array) -> None:
        like, got = _like(self._rest), _like(rows)
        if like != got:
            raise UsageError(f"sink {self.name}: expected more of {like}, got {got}")

    def _explain(self, error: BaseException) -> None:
        where = f"kept in {self.partial}" if self.committed else "committed"
        unit = "samples" if self._info.kind == "sound" else "frames"
        error.add_note(f"In sink {self.name}: {self.committed} {unit} {where}.")


def _like(rows: Array) -> tuple[tuple[int, ...], str]:
    batch, _, *each = rows.shape
    return (batch, *each), rows.dtype.str
