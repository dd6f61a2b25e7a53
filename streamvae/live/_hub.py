"""All who watch one broadcast, and what is made for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from streamvae._chunks import HostChunk

from ._subscription import Ending, Outlet
from ._tracks import Form, Track

T = TypeVar("T")

#: Which form of the frames, of which clip of the batch (None: of all).
Key = tuple[str, int | None]


class Hub:
    """Puts viewers onto tracks, one for each form that somebody wants, and chunks into these.

    Args:
        left: Called when the last viewer has left while there is more to come.
    """

    def __init__(self, left: Callable[[], None]) -> None:
        #: Whether there is nothing more to come; then there is what ended it.
        self.over = False
        self._left = left
        self.ending = Ending()
        self._tracks: dict[Key, Track[Any]] = {}
        self._viewers: dict[Outlet[Any], Track[Any]] = {}
        self._group: TaskGroup | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    def join(self, key: Key, form: Callable[[], Form[T]], outlet: Outlet[T]) -> None:
        """Give ``outlet`` what is made from the next chunk on."""
        if self.over:
            outlet.end(self.ending)
            return
        track = self._tracks.get(key)
        if track is None or track.over:
            track = self._tracks[key] = Track(form())
            if self._group is not None:
                self._group.start_soon(track.run, name=f"streamvae viewers of {key[0]}")
        track.outlets.append(outlet)
        self._viewers[outlet] = track

    def leave(self, outlet: Outlet[Any]) -> None:
        """Give it nothing more, and make nothing that nobody wants. Idempotent."""
        track = self._viewers.pop(outlet, None)
        if track is None:
            return
        track.leave(outlet)
        if not self._viewers and not self.over:
            self._left()

    async def run(self, read: Callable[[], Awaitable[Exception | None]]) -> None:
        """Have tracks run while ``read`` does, which puts chunks, and until they gave everything.

        What ``read`` returns is what viewers get after the last frame.
        """
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                for key, track in self._tracks.items():
                    group.start_soon(track.run, name=f"streamvae viewers of {key[0]}")
                self.ending = Ending(await read())
                self.over = True
                for track in self._tracks.values():
                    track.finish(self.ending)
        finally:
            self._group = None

    async def put(self, chunk: HostChunk) -> None:
        """Hand a chunk to each track; waits for nobody but viewers who block."""
        # Whoever waits must not keep it from those who do not.
        for track in sorted(self._tracks.values(), key=lambda track: track.lossless):
            await track.put(chunk)

    def end(self, error: BaseException | None) -> None:
        """End all queues that have not ended; what waits in them can still be taken."""
        if error is not self.ending.error:
            self.ending = Ending(error)
        self.over = True
        for outlet in self._viewers:
            outlet.end(self.ending)
