"""An async callable as a sink."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import ClosedError


class CallSink:
    """Awaits ``call`` with each chunk and ignores what comes back; errors end the stream."""

    def __init__(self, call: Callable[[HostChunk], Awaitable[object]]) -> None:
        self._call = call
        self._state = "new"
        self._committed = 0

    @property
    def name(self) -> str:
        """The callable's own name."""
        return str(getattr(self._call, "__qualname__", type(self._call).__name__))

    @property
    def committed(self) -> int:
        """Frames (items, samples) the callable has returned from."""
        return self._committed

    async def open(self, info: StreamInfo) -> None:  # noqa: ARG002  # any stream will do
        """Nothing to check."""
        self._expect("new")
        self._state = "open"

    async def write(self, chunk: HostChunk) -> None:
        """Await the callable with ``chunk``."""
        self._expect("open")
        await self._call(chunk)
        self._committed += len(chunk)

    async def close(self) -> None:
        """Refuse further chunks."""
        if self._state != "closed":
            self._expect("open")
            self._state = "closed"

    async def abort(self) -> None:
        """Refuse further chunks. Nothing is kept, so nothing is left to tidy."""
        if self._state != "closed":
            self._state = "aborted"

    def _expect(self, state: str) -> None:
        if self._state != state:
            raise ClosedError(f"sink {self.name}: expected it {state}, it is {self._state}")
