"""Worker threads: one daemon thread that runs its calls in order, and how flow code awaits it.

A device's launches, its copies and each blocking sink need *the same* thread every time, and none
of them may keep the interpreter from exiting; neither ``ThreadPoolExecutor`` (joined at exit) nor
``anyio.to_thread`` (any thread of a pool) gives that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_running = 0


def _in_child() -> None:
    # Another thread of the parent may have held the lock, and none of its calls run here.
    global _lock, _running
    _lock, _running = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
_here = threading.local()


def calls_running() -> int:
    """How many calls given to workers of this process have neither ended nor parked.

    A virtual clock must stand still while this is not zero.
    """
    with _lock:
        return _running


def _count(change: int) -> None:
    global _running  # noqa: PLW0603  # one number for the whole process
    with _lock:
        _running += change


@contextlib.contextmanager
def parked() -> Iterator[None]:
    """Say that this worker thread waits for the outside world and is not working.

    Nor is any call queued behind it.
    """
    line: _Line | None = getattr(_here, "line", None)
    park = _count if line is None else line.park
    park(-1)
    try:
        yield
    finally:
        park(1)


def counted(call: Callable[P, T]) -> Callable[P, T]:
    """Have ``call``, about to be given to some other thread, count as running from now on."""
    _count(1)

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        finally:
            _count(-1)

    return run


class _Line:
    """The calls that wait for one thread, the one it is in included."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unended = 0
        self._parked = False

    def count(self, change: int) -> None:
        """A call came or ended."""
        with _lock:
            self._unended += change
            self._report(0 if self._parked else change)

    def park(self, change: int) -> None:
        """The call that the thread is in began (-1) or ended (1) to wait for the outside world."""
        with _lock:
            self._parked = change < 0
            self._report(change * self._unended)

    def _report(self, change: int) -> None:
        global _running  # noqa: PLW0603  # one number for the whole process
        _running += change

    def work(self) -> None:
        """Be the thread."""
        _here.line = self
        while (call := self.calls.get()) is not None:
            call()
            del call  # else its results stay alive until the next call


class Worker:
    """One daemon thread that runs calls one after another, started by the first call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._line = _Line()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue ``call`` and return its future; cancelling it works until the call has begun."""
        future: Future[T] = Future()

        with self._start_lock:
            line = self._line

            def run() -> None:
                try:
                    if future.set_running_or_notify_cancel():
                        fulfil(future, lambda: call(*args, **kwargs))
                finally:
                    line.count(-1)

            line.count(1)
            line.calls.put(run)
            if self._thread is None:
                self._thread = threading.Thread(target=line.work, name=self.name, daemon=True)
                self._thread.start()
        return future

    def close(self) -> None:
        """Let the thread end once the calls already queued are done. A later call starts anew."""
        with self._start_lock:
            if self._thread is not None:
                self._line.calls.put(None)
                self._line = _Line()
                self._thread = None


def fulfil(future: Future[T], call: Callable[[], T]) -> None:
    """Run ``call`` and have ``future`` tell what came of it."""
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the awaiting side
        future.set_exception(error)
        del future, call  # its traceback holds this frame, which would hold it: no cycle
    else:
        future.set_result(result)


async def outcome(future: Future[T], *, keep: bool = False) -> T:
    """Await a worker's call.

    Cancelling the wait withdraws a call that has not begun, unless ``keep`` is set; a call that
    has begun always runs to its end on its thread.
    """
    waiting = asyncio.wrap_future(future)
    if not keep:
        return await waiting
    waiting.add_done_callback(_seen)
    return await asyncio.shield(waiting)


def _seen(future: asyncio.Future[T]) -> None:
    """Let what nobody waits for any more raise without asyncio complaining of it."""
    if not future.cancelled():
        future.exception()
