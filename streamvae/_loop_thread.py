"""An event loop on a thread of its own, for callers without a loop.

Note [Interrupts and collections]
---------------------------------
ctrl-C may come between any two steps of the calling thread, and a collection may run on any
thread, also on the loop's own or on one that the loop waits for. So nothing here waits for a lock
of Python code: requests travel by a ``deque`` and ``call_soon_threadsafe``, answers by
``SimpleQueue``, both one step each. The thread does not know the `LoopThread` that it serves: when
that is dropped, wherever and for whatever reason, its finalizer leaves a request to stop and waits
for nothing, and the thread cleans up and ends by itself. At exit the threads that are left are
asked to stop and given some time; being daemons they are not joined.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, NoReturn, ParamSpec, TypeVar

from ._errors import ClosedError
from ._locks import renew_after_fork
from ._threads import GRACE

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("streamvae")

#: Seconds between two looks whether the threads have ended.
_LOOK = 0.001
#: Seconds that a call waits at most for streams that were dropped to give their files back.
DROPPED = 30.0


class LoopThread:
    """An asyncio loop on a daemon thread, from now until it is closed or dropped.

    Args:
        enter: Called on the thread before anything else; what it gives is closed when it ends.
        clean_up: Awaited on the loop when it is to stop; then its tasks are cancelled.

    Raises:
        RuntimeError: No thread can be started.
    """

    def __init__(
        self,
        enter: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        clean_up: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        _wait_for_dropped()
        self._served = _Served(enter, clean_up)
        weakref.finalize(self, self._served.drop).atexit = False
        self._thread = threading.Thread(
            target=self._served.serve, name="streamvae loop", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:  # an interrupt, maybe: then it may run
            self._served.stop()
            raise

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``function(...)`` on the loop, in a copy of the calling thread's context.

        Interrupted (ctrl-C), it cancels what it awaits, waits for its end, and raises; interrupted
        again, it does not wait for it.

        Raises:
            ClosedError: The loop has ended, or ends while it is awaited.
        """
        request = _Request(lambda: function(*args, **kwargs))
        try:
            self._served.post(request.begin)
            request.wait()
        except BaseException:
            self._served.post(request.cancel)
            request.wait()
            raise
        return request.result()

    def close(self) -> None:
        """Stop, and return when the thread has cleaned up; on the thread itself, at once."""
        self._served.stop()
        if threading.current_thread() is not self._thread:
            self._served.ended.wait()


def run_on_loop_thread(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await ``function(...)`` on a loop on a thread that is there as long as that takes."""
    thread = LoopThread()
    try:
        return thread.call(function, *args, **kwargs)
    finally:
        thread.close()


class _Signal:
    """Something that happens once, for one thread to wait for."""

    def __init__(self) -> None:
        self._happened = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Have it happen."""
        self._happened = True
        self._wake.put(None)

    def wait(self) -> None:
        """Return when it has happened."""
        if not self._happened:
            self._wake.get()
            self._wake.put(None)  # for another one who waits


class _Request(Generic[T]):
    """A call that a thread waits for, and its outcome."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call: Callable[[], Awaitable[T]] | None = call
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[T] | None = None
        self._answered = _Signal()
        self._outcome: Callable[[], T] = _closed

    def wait(self) -> None:
        """Return when it is answered."""
        self._answered.wait()

    def result(self) -> T:
        """What came of it."""
        outcome, self._outcome = self._outcome, _closed
        try:
            return outcome()
        finally:
            del outcome  # an error's traceback holds this frame: no cycle

    def begin(self) -> None:
        """Begin, on the loop."""
        call, self._call = self._call, None
        if call is not None:
            self._task = asyncio.get_running_loop().create_task(
                _awaited(call), context=self._context
            )
            self._task.add_done_callback(self._answer)

    def cancel(self) -> None:
        """Have it end soon."""
        if self._task is not None:
            self._task.cancel()
        elif self._call is not None:  # interrupted before it was posted: it will never begin
            self.refuse(None)

    def refuse(self, error: BaseException | None) -> None:
        """Answer that the loop has ended, and by what, unless this has been answered."""
        if self._call is not None:
            self._call = None
            self._outcome = functools.partial(_closed, error)
            self._answered.set()

    def _answer(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # so that asyncio does not complain where nobody asks any more
            self._outcome = task.result
        self._task = None
        self._answered.set()


class _Served:
    """What a loop's thread knows of those it serves."""

    def __init__(
        self,
        enter: Callable[[], contextlib.AbstractContextManager[object]],
        clean_up: Callable[[], Awaitable[object]] | None,
    ) -> None:
        self.ended = _Signal()
        self._enter, self._clean_up = enter, clean_up
        self._posted: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._error: BaseException | None = None
        self.over = self.dropped = False
        renew_after_fork(self, _Served._renew)

    def post(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on the loop, soon; from any thread, and from finalizers."""
        self._posted.append(call)
        if self.over:  # by now, or for long: nobody else may look
            self._refuse()
        elif (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # closed just now
                loop.call_soon_threadsafe(self._run_posted)

    def stop(self) -> None:
        """Have the thread clean up and end, and do not wait for it."""
        self.post(self._stop)

    def drop(self) -> None:
        """`stop` what nobody will close: for a finalizer."""
        self.dropped = True
        self.stop()

    def serve(self) -> None:
        """Be the thread."""
        _serving.add(self)
        try:
            with self._enter(), asyncio.Runner() as runner:
                runner.run(self._until_stopped())
        except BaseException as error:  # noqa: BLE001  # whoever asks next gets it
            self._error = error
        finally:
            self._loop = self._clean_up = None
            self.over = True
            self._refuse()
            _serving.discard(self)
            self.ended.set()

    async def _until_stopped(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            self._run_posted()  # what was posted before there was a loop
            await self._stopping.wait()
            if self._clean_up is not None:
                await self._clean_up()
        except Exception:  # noqa: BLE001  # the stream's own, which nobody asks for any more
            _log.warning("a stream that was left did not end well", exc_info=True)
        finally:
            self._loop = None  # what is posted from now on is refused: nobody would end it

    def _run_posted(self) -> None:
        with contextlib.suppress(IndexError):
            while self._loop is not None:
                self._posted.popleft()()

    def _refuse(self) -> None:
        """Answer what nobody will run."""
        with contextlib.suppress(IndexError):
            while True:
                owner = getattr(self._posted.popleft(), "__self__", None)
                if isinstance(owner, _Request):
                    owner.refuse(self._error)

    def _stop(self) -> None:
        if self._stopping is not None:
            self._stopping.set()

    def _renew(self) -> None:
        """Be over: in a forked child there is no such thread."""
        self.over = True
        self._loop = None
        _serving.discard(self)
        self.ended.set()
        self._refuse()


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


def _closed(error: BaseException | None = None) -> NoReturn:
    if isinstance(error, Exception):
        raise error
    raise ClosedError("expected a loop that is running, got one that has ended") from error


#: Those whose threads run.
_serving: set[_Served] = set()


def _wait_for_dropped() -> None:
    """Wait for streams that were dropped: who comes next may want their files."""
    _wait_while(lambda: any(served.dropped for served in list(_serving)), DROPPED)


def _stop_all() -> None:
    """Have the threads end before the interpreter does; those that take long are left alone."""
    for served in list(_serving):
        served.stop()
    with contextlib.suppress(KeyboardInterrupt):  # somebody is in a hurry
        _wait_while(lambda: bool(_serving))


def _wait_while(condition: Callable[[], bool], seconds: float = GRACE) -> None:
    """Not by ``join()``: interrupted, it takes the thread for one that has ended (Python 3.11)."""
    deadline = time.monotonic() + seconds
    while condition() and time.monotonic() < deadline:
        time.sleep(_LOOK)


# After the hook of `_threads`, whose workers are needed to clean up: hooks run last one first.
atexit.register(_stop_all)
