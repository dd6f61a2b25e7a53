"""Sinks that are slow, stuck or failing, and one that remembers."""

from __future__ import annotations

import asyncio
import threading

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._threads import Worker, outcome, parked


class MemorySink:
    """Remembers what happened to it: ``calls``, ``indices`` of chunks, frames' ``tags``, ``info``.

    A tag is a frame's first number; of sound each sample has one, its first channel's.

    Args:
        seconds: How long each write takes, in the loop's clock.
        fail_at: Raise OSError instead of taking the chunk of this index.
        fail_open: Raise OSError when opened.
        fail_close: Raise OSError when closed.
        name: What it calls itself.
    """

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        fail_at: int | None = None,
        fail_open: bool = False,
        fail_close: bool = False,
        name: str = "memory",
    ) -> None:
        self.name = name
        self.committed = 0
        self.calls: list[str] = []
        self.tags: list[int] = []
        self.indices: list[int] = []
        self.info: StreamInfo | None = None
        self._seconds = seconds
        self._fail_at = fail_at
        self._fail_open = fail_open
        self._fail_close = fail_close

    async def open(self, info: StreamInfo) -> None:
        """Remember ``info``."""
        self.calls.append("open")
        if self._fail_open:
            raise OSError("the sink was to fail when opened")
        self.info = info

    async def write(self, chunk: HostChunk) -> None:
        """Remember the chunk's index and its frames' first numbers (of sound, its samples')."""
        if chunk.index == self._fail_at:
            raise OSError(f"the sink was to fail at chunk {chunk.index}")
        if self._seconds:
            await asyncio.sleep(self._seconds)
        self.indices.append(chunk.index)
        steps = chunk.data.shape[0] * chunk.data.shape[1]
        self.tags += chunk.data.reshape(steps, -1)[:, 0].tolist()
        self.committed += len(chunk)

    async def close(self) -> None:
        """Remember that the stream was complete."""
        self.calls.append("close")
        if self._fail_close:
            raise OSError("the sink was to fail when closed")

    async def abort(self) -> None:
        """Remember that it was not."""
        self.calls.append("abort")


class StuckSink(MemorySink):
    """A sink whose thread hangs in a call, as on a dead network share, until `release`.

    Args:
        stuck_at: Index of the chunk it hangs at; every later call queues up behind it.
        name: What it calls itself, and its thread.
    """

    def __init__(self, stuck_at: int = 0, *, name: str = "stuck") -> None:
        super().__init__(name=name)
        self._stuck_at = stuck_at
        self._released = threading.Event()
        self._worker = Worker(f"streamvae sink {name}")
        #: Set as soon as the sink hangs.
        self.stuck = threading.Event()

    def release(self) -> None:
        """Let the hanging call return."""
        self._released.set()

    async def write(self, chunk: HostChunk) -> None:
        """Hang at the chosen chunk."""
        await outcome(self._worker.submit(self._write, chunk.index))
        await super().write(chunk)

    async def abort(self) -> None:
        """Queue up behind the hanging call."""
        future = self._worker.submit(self.calls.append, "abort")
        self._worker.close()
        await outcome(future, keep=True)

    async def close(self) -> None:
        """Complete, and let the thread go."""
        await super().close()
        self._worker.close()

    def _write(self, index: int) -> None:
        if index == self._stuck_at:
            with parked():
                self.stuck.set()
                self._released.wait()
