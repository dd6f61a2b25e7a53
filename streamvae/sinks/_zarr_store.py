"""The pieces of a zarr array: what lies in one file each, written and read by tensorstore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streamvae._chunks import Array

from ._durable import sync_directory
from ._zstd import is_whole_zstd

#: Longer than any stream.
ENDLESS = 2**40


class Pieces:
    """An array without an end, whose pieces lie in ``directory``.

    How much of it there is, the array's description tells, which is not this class's business.

    Args:
        directory: Where.
        about: The description, `ENDLESS` steps long.
        piece: (B, t, ...), see `streamvae.sinks._zarr_format.metadata`.
        compressed: Whether the pieces' files are frames of Zstandard.
        sync: Whether each piece is on the disk when it is written.
    """

    def __init__(
        self,
        directory: Path,
        about: Mapping[str, object],
        piece: tuple[int, ...],
        *,
        compressed: bool,
        sync: bool,
    ) -> None:
        import tensorstore

        self._directory, self._piece, self._sync = directory, piece, sync
        self._batched, self._compressed = piece[0] > 1, compressed
        self._store = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{directory}/", "file_io_sync": sync},
                "metadata": dict(about),
                "store_data_equal_to_fill_value": True,
            },
            open=True,
            assume_metadata=True,
        ).result()

    def write(self, start: int, part: Array) -> None:
        """Store steps (B, t, ...) from ``start`` on, which begins a piece.

        Raises:
            OSError: They could not be stored.
        """
        end = start + part.shape[1]
        place = self._store[:, start:end] if self._batched else self._store[start:end]
        data = part if self._batched else part[0]
        try:
            place.write(data, can_reference_source_data_indefinitely=True).result()
        except ValueError as error:  # what tensorstore makes of most errors of the system
            raise OSError(str(error)) from error
        if self._sync:
            sync_directory(self._directory)

    def read(self, start: int, end: int) -> Array | None:
        """Give steps ``start`` to ``end``, (B, t, ...); None if they cannot be read.

        What is not there reads as zeros.
        """
        place = self._store[:, start:end] if self._batched else self._store[start:end]
        if self._compressed and not self._are_whole(start, end):
            return None
        try:
            data: Array = np.asarray(place.read().result())
        except (OSError, ValueError, ArithmeticError, LookupError, RuntimeError):
            return None  # a piece that is cut off, or not what was compressed
        return data if self._batched else data[None]

    def _are_whole(self, start: int, end: int) -> bool:
        """Whether the files are frames of Zstandard, with nothing behind that others refuse."""
        batch, steps, *each = self._piece
        zeros = [0] * len(each)
        numbers = (
            [*([item] if self._batched else []), index, *zeros]
            for item in range(batch)
            for index in range(start // steps, -(-end // steps))
        )
        names = (".".join(map(str, ["c", *place])) for place in numbers)
        try:
            return all(is_whole_zstd((self._directory / name).read_bytes()) for name in names)
        except OSError:
            return False
