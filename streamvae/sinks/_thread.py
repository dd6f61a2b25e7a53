"""Blocking code as a sink: its calls run one after another on one thread that is the sink's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from streamvae._caller import CallerContext, caller
from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import ClosedError
from streamvae._threads import Worker, outcome

P = ParamSpec("P")
T = TypeVar("T")

#: Where a sink stands. The two last are said when all is done: `abort` trusts them unasked.
State = Literal["new", "open", "failed", "closed", "aborted"]


class ThreadSink:
    """Base of sinks written as blocking code. Override `start`, `put`, `finish` and `stop`.

    These four never run at the same time and always on the same daemon thread, which starts with
    `open` and ends after `close` or `abort`. They run in a copy of the stream's context (what one
    of them sets there the next one finds) and under the autocast, on the CUDA device and stream of
    the stream's caller. Breaking off an await withdraws a call that has not
    begun; one that has begun runs to its end, and whatever comes later waits for it there. So
    `abort` is right at any moment, also while a `write` nobody awaits any more is still at work.

    Args:
        name: What the sink calls itself in errors; its thread is named after it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._worker = Worker(f"streamvae sink {name}")
        self._caller: CallerContext | None = None  # made by the first call
        self._state: State = "new"  # changed on the thread only, once it has started
        self._started = False
        self._accepted = 0
        # A sink nobody ended (its loop died) must not leave its thread waiting for ever.
        weakref.finalize(self, self._worker.close).atexit = False

    def start(self, info: StreamInfo) -> None:
        """Check that this stream can be kept, get ready. Leave nothing behind when raising."""

    def put(self, chunk: HostChunk) -> None:
        """Keep a chunk."""

    def finish(self) -> None:
        """Complete. When it raises, `stop` follows."""

    def stop(self) -> None:
        """Keep what was accepted, let go of everything; after `start`, a failed `put` too."""

    @property
    def name(self) -> str:
        """What it calls itself in errors."""
        return self._name

    @property
    def committed(self) -> int:
        """Frames (items, samples) that would be found now, should the process die."""
        return self._accepted

    async def open(self, info: StreamInfo) -> None:
        """Run `start`.

        Raises:
            ClosedError: The sink has served a stream already.
        """
        self._enter("new")
        await outcome(self._submit(self._open, info))

    async def write(self, chunk: HostChunk) -> None:
        """Run `put`.

        Raises:
            ClosedError: The sink is not open, or an earlier write failed.
        """
        self._enter("open")
        await outcome(self._submit(self._write, chunk))

    async def close(self) -> None:
        """Run `finish`. A second close does nothing.

        Raises:
            ClosedError: The sink is not open, or a write failed: truncation is no success.
        """
        if self._state == "closed":
            return
        self._enter("open")
        await outcome(self._submit(self._close))

    async def abort(self) -> None:
        """Run `stop`, in any state; after `close` or `abort` it does nothing.

        Breaking off the await does not withdraw it.
        """
        if not self._started:
            self._state = "aborted"
        elif self._state not in {"closed", "aborted"}:
            await outcome(self._submit(self._abort), keep=True)

    def _submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self._started = True
        self._caller = self._caller or caller()
        return self._worker.submit(self._run, self._caller, partial(call, *args, **kwargs))

    def _run(self, context: CallerContext, call: Callable[[], T]) -> T:
        try:
            return context.run(call)
        finally:
            if self._state in {"closed", "aborted"}:
                self._caller = None  # with all that its variables hold
                self._worker.close()

    def _enter(self, state: State) -> None:
        """Refuse on the loop what needs no thread; the rest is known on the thread only."""
        if not self._started or self._state in {"closed", "aborted"}:
            self._expect(state)

    def _expect(self, state: State) -> None:
        if self._state != state:
            hint = "; make a new one for each stream" if state == "new" else ""
            raise ClosedError(f"sink {self.name}: expected it {state}, it is {self._state}{hint}")

    def _open(self, info: StreamInfo) -> None:
        self._expect("new")
        try:
            self.start(info)
        except BaseException:
            self._state = "aborted"
            raise
        self._state = "open"

    def _write(self, chunk: HostChunk) -> None:
        self._expect("open")
        self._state = "failed"  # unless it succeeds
        try:
            self.put(chunk)
        except BaseException as error:
            self._explain(error)
            raise
        self._accepted += len(chunk)
        self._state = "open"

    def _close(self) -> None:
        if self._state == "closed":  # by a close nobody awaited to its end
            return
        self._expect("open")
        self._state = "failed"  # unless it succeeds
        try:
            self.finish()
        except BaseException as error:
            self._explain(error)
            raise
        self._state = "closed"

    def _abort(self) -> None:
        if self._state in {"closed", "aborted"}:  # by a call nobody awaited to its end
            return
        try:
            if self._state != "new":
                self.stop()
        finally:
            self._state = "aborted"

    def _explain(self, error: BaseException) -> None:
        error.add_note(f"In sink {self.name}, {self.committed} committed before.")
