"""What files of sound have in common: that it is sound, and at how many samples a second."""

from __future__ import annotations

import os

from streamvae._chunks import StreamInfo
from streamvae._errors import UsageError

from ._durable import Sync
from ._file import FileSink


class SoundFile(FileSink):
    """Base of sinks that keep one piece of sound and must know its rate.

    Args:
        path: Where to.
        sample_rate: Samples a second; by default the stream's.
        overwrite: Whether a file of that name may be replaced.
        sync: As for `FileSink`.

    Raises:
        UsageError: ``sample_rate`` is below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sample_rate: int | None,
        overwrite: bool,
        sync: Sync,
    ) -> None:
        super().__init__(path, overwrite=overwrite, sync=sync)
        if sample_rate is not None and sample_rate < 1:
            raise UsageError(f"expected sample_rate to be at least 1, got {sample_rate}")
        self._given_rate = sample_rate
        self._rate = sample_rate or 0

    def check(self, info: StreamInfo) -> None:
        """Refuse pictures, several pieces of sound and a missing sample rate."""
        super().check(info)
        if info.kind != "sound":
            raise UsageError(f"sink {self.name} keeps sound; got {info.kind}")
        rate = self._given_rate or info.sample_rate
        if rate is None:
            raise UsageError(
                f"sink {self.name} needs samples a second; expected sample_rate=..., got none"
            )
        self._rate = rate
