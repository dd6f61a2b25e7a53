"""Pictures of a job that goes on: the latest one, for any number of viewers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

from .._chunks import Array


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What a job's latents look like after one of its steps.

    Attributes:
        step: Which one, from 0.
        steps: How many there are; None where the pipeline does not tell.
        data: All of it, as `FrameStream.collect` gives it: uint8, pictures (N, H, W, C), video
            (B, T, H, W, C).
    """

    step: int
    steps: int | None
    data: Array

    @property
    def frame(self) -> Array:
        """One picture to show, (H, W, C): the first one; of a video the one in the middle."""
        first: Array = self.data[0]
        return first[len(first) // 2] if first.ndim == 4 else first


class Shown:
    """The latest picture, for any number of viewers."""

    def __init__(self) -> None:
        self.latest: Picture | None = None
        self.count = 0
        self.over = False
        self.error: Exception | None = None
        self.news = asyncio.Event()

    def publish(self, picture: Picture) -> None:
        """Show the next one."""
        self.latest = picture
        self.count += 1
        self._tell()

    def end(self, error: Exception | None = None) -> None:
        """That was all. Idempotent."""
        if not self.over:
            self.over, self.error = True, error
            self._tell()

    def _tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Viewer:
    """One pass over the pictures."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._seen = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Picture:
        shown = self._shown
        while True:
            if shown.latest is not None and self._seen < shown.count:
                self._seen = shown.count
                return shown.latest
            if shown.over:
                if shown.error is not None:
                    raise shown.error
                raise StopAsyncIteration
            await shown.news.wait()
