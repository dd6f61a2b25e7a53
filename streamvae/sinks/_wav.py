"""``.wav``: sound that every program reads, also while it grows."""

from __future__ import annotations

import os
import struct
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamvae._chunks import Array, HostChunk
from streamvae._errors import UsageError

from ._durable import Sync
from ._sound_file import SoundFile

Samples = Literal["float32", "int16"]

#: Bytes before the samples: RIFF, fmt with its extension, fact, the head of data.
HEADER = 12 + 8 + 18 + 8 + 4 + 8
_LARGEST = 2**32 - 1 - HEADER


class WavFile(SoundFile):
    """Sound in RIFF WAVE: samples (N, C), one piece.

    The sizes in the header are right after every chunk: the samples go first, then the count, in
    place, so what is under ``.partial`` plays, also after a kill.

    Args:
        path: Where to.
        samples: ``"float32"`` keeps what was decoded, bit for bit; ``"int16"`` takes half the room,
            rounds, and cuts off what is beyond [-1, 1].
        sample_rate: Samples a second; by default the stream's.
        overwrite: Whether a file of that name may be replaced.
        sync: As for `FileSink`.

    Raises:
        UsageError: An option is none of those there are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        samples: Samples = "float32",
        sample_rate: int | None = None,
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        super().__init__(path, sample_rate=sample_rate, overwrite=overwrite, sync=sync)
        if samples not in {"float32", "int16"}:
            raise UsageError(f"expected samples='float32' or 'int16', got {samples!r}")
        self._samples = samples
        self._width = 4 if samples == "float32" else 2
        self._channels = 0

    def put(self, chunk: HostChunk) -> None:
        """Append a chunk, then count it in.

        Raises:
            UsageError: The file would be of 4 GiB, which its header cannot say.
        """
        rows = self.rows(chunk)
        self._channels = rows.shape[1]
        if self._end(self._accepted + len(rows)) > _LARGEST:
            raise UsageError(
                f"sink {self.name}: expected less than 4 GiB of sound, which is all that .wav "
                "holds; .npy and .raw hold more"
            )
        if self._accepted == 0:
            self._file = self._partial.begin()
            self._count(0)
        self._write_at(self.memory(rows) if self._width == 4 else _int16(rows), self._accepted)
        self._partial.settle()  # a count of what is not there would spoil all that is
        self._count(self._accepted + len(rows))
        self._partial.settle()

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            UsageError: There was no sound, so nobody knows of how many channels.
        """
        if self._accepted == 0:
            raise UsageError(f"sink {self.name}: expected at least one sample, got none")
        self._partial.publish()

    def stop(self) -> None:
        """Cut off what was not counted in."""
        keep = self._accepted > 0
        try:
            if keep:
                self._file.truncate(self._end(self._accepted))
        finally:
            self._partial.release(keep=keep)

    def _end(self, samples: int) -> int:
        """Where ``samples`` samples end in the file."""
        return HEADER + samples * self._channels * self._width

    def _count(self, samples: int) -> None:
        rate, block = self._rate, self._channels * self._width
        data = samples * block
        form = (3 if self._width == 4 else 1, self._channels, rate, rate * block, block)
        self._file.seek(0)
        head = (
            struct.pack("<4sI4s", b"RIFF", HEADER - 8 + data, b"WAVE")
            + struct.pack("<4sIHHIIHHH", b"fmt ", 18, *form, 8 * self._width, 0)
            + struct.pack("<4sII", b"fact", 4, samples)
            + struct.pack("<4sI", b"data", data)
        )
        self._write_all(memoryview(head))

    def _write_at(self, data: memoryview, samples: int) -> None:
        self._file.seek(self._end(samples))
        self._write_all(data)

    def _write_all(self, left: memoryview) -> None:
        while left:
            left = left[self._file.write(left) :]


def _int16(rows: Array) -> memoryview:
    scaled = np.rint(np.clip(rows.astype(np.float32), -1, 1) * 32767)
    whole: npt.NDArray[np.uint8] = scaled.astype("<i2").reshape(-1).view(np.uint8)
    return whole.data
