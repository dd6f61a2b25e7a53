"""A sink that keeps nothing: for measuring what the other stages take."""

from __future__ import annotations

from typing import ClassVar

from streamvae._chunks import HostChunk

from ._thread import ThreadSink


class Null(ThreadSink):
    """Takes everything, as it comes, and counts it.

    Args:
        name: What it calls itself.
    """

    takes_bands: ClassVar[bool] = True

    def __init__(self, name: str = "null") -> None:
        super().__init__(name)

    @property
    def committed(self) -> int:
        """Nothing is to be found."""
        return 0

    @property
    def passed(self) -> int:
        """Frames (items, samples) that were taken."""
        return self._accepted

    def put(self, chunk: HostChunk) -> None:
        """Forget a chunk."""
