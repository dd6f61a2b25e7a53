"""Stages joined by bounded queues. Knows neither torch nor frames.

Closing is the whole protocol: a worker closes both its ends on the way out. The end of the stream
runs down as a closed queue; "nobody wants more" runs up, as a closed queue for a stage that has
something to pass on and as a cancelled scope for one that still waits. An ordinary exception is
kept and raised once the queues ran dry: frames first, then the error.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ._errors import ClosedError, clear_frames
from ._log import Visit
from ._stats import StageTimes

A = TypeVar("A")
B = TypeVar("B")


class Pipeline:
    """Wires stages with `connect`, runs them with `run`, lets go of everything with `close`.

    Args:
        queue_size: Room in each queue.
        clock: Seconds, for the stages' books.
        visit: Gives, by its name, where a stage's visits are kept.
    """

    def __init__(
        self,
        queue_size: int = 2,
        clock: Callable[[], float] = time.monotonic,
        visit: Callable[[str], Visit] = lambda _: Visit(),
    ) -> None:
        self._queue_size = queue_size
        self._clock = clock
        self._visit = visit
        self._workers: list[_Worker[Any, Any]] = []
        self._error: Exception | None = None

    @property
    def times(self) -> list[StageTimes]:
        """The stages' books, in order; they go on changing while the pipeline runs."""
        return [worker.times for worker in self._workers]

    @property
    def depths(self) -> dict[str, int]:
        """Things in the queue behind each stage, by its name."""
        return {
            worker.times.name: worker.receive.statistics().current_buffer_used
            for worker in self._workers
        }

    def connect(
        self,
        name: str,
        stage: Callable[[AsyncIterator[A]], AsyncGenerator[B, None]],
        upstream: AsyncIterable[A],
        passed: Callable[[B], None] | None = None,
    ) -> MemoryObjectReceiveStream[B]:
        """Put ``stage`` behind ``upstream`` and return the queue of what it gives. Starts nothing.

        ``passed`` is called with everything the stage gives, before it is queued.
        """
        send, receive = anyio.create_memory_object_stream[B](self._queue_size)
        before = next((worker for worker in self._workers if worker.receive is upstream), None)
        inlet = _Inlet(upstream, StageTimes(name), self._visit(name), self._clock)
        self._workers.append(_Worker(stage, inlet, send, receive, before=before, passed=passed))
        return receive

    async def run(self) -> None:
        """Run every stage to its end.

        Raises:
            Exception: The first error of a stage, as it was raised, with a note naming the stage
                and the chunk; what was made before it has been passed on.
            ClosedError: Somebody cancelled a stage's task alone: this is no end of the stream.
        """
        try:
            async with anyio.create_task_group() as group:
                for worker in self._workers:
                    group.start_soon(self._work, worker, name=f"streamvae {worker.times.name}")
        finally:
            # A worker that was cancelled before its first step has closed nothing.
            for worker in self._workers:
                worker.send.close()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if group.cancel_scope.cancel_called:
            raise ClosedError("expected every stage to run to its end, got one cancelled")

    def close(self) -> None:
        """Close every queue and drop what is in it. Idempotent; works without a running loop."""
        for worker in self._workers:
            worker.send.close()
            _discard(worker.receive)

    async def _work(self, worker: _Worker[Any, Any]) -> None:
        with worker.scope:
            try:
                await worker.run(self._clock)
            except BaseException as error:
                # Whoever keeps the traceback (for a cancellation, a cycle of anyio's) must not
                # pin chunks or slots.
                clear_frames(error)
                if not isinstance(error, Exception):
                    raise
                error.add_note(worker.place())
                if self._error is None:
                    self._error = error
            finally:
                worker.leave()


class _Inlet(Generic[A]):
    """A stage's input, which keeps the stage's book of waiting."""

    def __init__(
        self,
        upstream: AsyncIterable[A],
        times: StageTimes,
        visit: Visit,
        clock: Callable[[], float],
    ) -> None:
        self._items = aiter(upstream)
        self._queue = upstream if isinstance(upstream, MemoryObjectReceiveStream) else None
        self._clock = clock
        self.times = times
        self.visit = visit
        self.received = 0
        self.waiting = False

    def __aiter__(self) -> _Inlet[A]:
        return self

    async def __anext__(self) -> A:
        began = self.visit.asked = self._clock()
        self._look()
        self.waiting = True
        try:
            item = await anext(self._items)
        except StopAsyncIteration:
            self.waiting = False
            raise
        finally:
            self.visit.begin = self._clock()
            self.times.waiting_input += self.visit.begin - began
        self.waiting = False
        self.received += 1
        return item

    def _look(self) -> None:
        """Note how many chunks are there already."""
        queue = self._queue
        self.visit.queued = 0 if queue is None else queue.statistics().current_buffer_used
        self.times.came(self.visit.queued, self.received + 1)


class _Worker(Generic[A, B]):
    """One stage between its two queues."""

    def __init__(
        self,
        stage: Callable[[AsyncIterator[A]], AsyncGenerator[B, None]],
        inlet: _Inlet[A],
        send: MemoryObjectSendStream[B],
        receive: MemoryObjectReceiveStream[B],
        *,
        before: _Worker[Any, A] | None,
        passed: Callable[[B], None] | None,
    ) -> None:
        self.stage = stage
        self.inlet = inlet
        self.times = inlet.times
        self.send = send
        self.receive = receive
        self.before = before
        self.passed = passed
        self.scope = anyio.CancelScope()

    async def run(self, clock: Callable[[], float]) -> None:
        """Pass on everything the stage gives, until it ends or nobody wants more."""
        began = clock()
        try:
            async with contextlib.aclosing(self.stage(self.inlet)) as items:
                async for item in items:
                    if self.passed is not None:
                        self.passed(item)
                    sending = clock()
                    try:
                        await self.send.send(item)
                    except anyio.BrokenResourceError:
                        return
                    finally:
                        self.inlet.visit.resumed = clock()
                        self.times.waiting_output += self.inlet.visit.resumed - sending
                        del item  # else it lives on while the next one is made
                    if self.scope.cancel_called:
                        return  # taken by a stage that was leaving, and dropped
                    self.times.chunks += 1
                    self.times.note(clock() - began)
        finally:
            self.times.note(clock() - began)

    def place(self) -> str:
        """Where the stage is, for people."""
        if self.inlet.waiting:
            return f"While stage {self.times.name!r} waited for chunk {self.inlet.received}."
        return f"While stage {self.times.name!r} worked on chunk {self.inlet.received - 1}."

    def leave(self) -> None:
        """Close both ends, and wake the stage before, which works for nobody now."""
        self.send.close()
        if self.before is not None:
            self.before.scope.cancel()
            _discard(self.before.receive)


def _discard(queue: MemoryObjectReceiveStream[Any]) -> None:
    """Close ``queue`` and let go of what is in it, which a closed queue would keep."""
    with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
        while True:
            queue.receive_nowait()
    queue.close()
