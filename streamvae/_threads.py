"""Worker threads: one daemon thread that runs its calls in order, and how flow code awaits it.

A device's launches, its copies and each blocking sink need *the same* thread every time, and none
of them may keep the interpreter from exiting; neither ``ThreadPoolExecutor`` (joined at exit) nor
``anyio.to_thread`` (any thread of a pool) gives that.

Note [Threads at exit]
----------------------
A daemon thread that comes back from C++ while the interpreter is torn down is unwound through code
that may not be, and the process aborts. So calls get some time to end before that (`GRACE`): calls
that wait behind them are cancelled, and a call that takes longer is left by ``SystemExit`` as soon
as it is between two steps of Python. Only a thread that is stuck in one call of C is abandoned.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from ._errors import as_error
from ._locks import fork_safe_lock, renew_after_fork

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds, twice, that calls get to end at exit: first by themselves, then by ``SystemExit``.
GRACE = 1.0
#: Seconds between two looks whether they have.
_LOOK = 0.001


class _Place:
    """Where a call runs: a worker's thread, or somebody else's."""

    def __init__(self) -> None:
        self.parked = False


class _Here(threading.local):
    """What the thread is running, innermost last."""

    def __init__(self) -> None:
        self.places: list[_Place] = []


class _Process:
    """The calls and the threads of this process."""

    def __init__(self) -> None:
        #: One entry for each call that has not ended: where it is, or will be. Finalizers submit
        #: calls, so none is counted under a lock: see Note [Locks and finalizers] in ``_locks``.
        self.unended: deque[_Place] = deque()
        self.threads: dict[threading.Thread, Worker] = {}
        self.exiting = False
        renew_after_fork(self, _Process._renew)
        atexit.register(self.end)

    def refuses(self) -> bool:
        """Whether no call may begin any more: a thread would die in the middle of it.

        What the main thread does on its way out, it waits for itself.
        """
        return sys.is_finalizing() or (self.exiting and threading.current_thread().daemon)

    def end(self) -> None:
        """Cancel calls that wait, and wait for those that run. See Note [Threads at exit]."""
        self.exiting = True
        with _lock:
            threads = dict(self.threads)
        threads.pop(threading.current_thread(), None)
        for worker in threads.values():
            worker.withdraw()
        with contextlib.suppress(KeyboardInterrupt):  # somebody is in a hurry
            self._wait(threads)
        with contextlib.suppress(KeyboardInterrupt):
            for thread in threads:
                if thread in self.threads:
                    _interrupt(thread)
            self._wait(threads)

    def _wait(self, threads: dict[threading.Thread, Worker]) -> None:
        """Wait for `GRACE` seconds at most; not for those that wait for the outside world.

        Not by ``join()``: interrupted, it takes the thread for one that has ended (Python 3.11).
        """
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and any(
            thread in self.threads and not worker.parked for thread, worker in threads.items()
        ):
            time.sleep(_LOOK)

    def _renew(self) -> None:
        """Forget the calls and the threads that run in the parent."""
        self.unended.clear()
        self.unended.extend(_here.places)
        for thread in set(self.threads) - {threading.current_thread()}:
            del self.threads[thread]


_here = _Here()
#: Held while it is decided whether a worker has a thread.
_lock = fork_safe_lock()
_process = _Process()


def calls_running() -> int:
    """How many calls given to workers of this process have neither ended nor parked.

    A virtual clock must stand still while this is not zero.
    """
    return sum(not place.parked for place in _process.unended.copy())


@contextlib.contextmanager
def parked() -> Iterator[None]:
    """Say that this worker thread waits for the outside world and is not working.

    Nor is any call queued behind it.
    """
    place = _here.places[-1] if _here.places else _Place()
    place.parked = True
    try:
        yield
    finally:
        place.parked = False


@contextlib.contextmanager
def _at(place: _Place) -> Iterator[None]:
    """Be there for a call, which ends with this."""
    _here.places.append(place)
    try:
        yield
    finally:
        _here.places.pop()
        _process.unended.remove(place)


def counted(call: Callable[P, T]) -> Callable[P, T]:
    """Have ``call``, about to be given to some other thread, count as running from now on."""
    place = _Place()
    _process.unended.append(place)

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _at(place):
            return call(*args, **kwargs)

    return run


class _Call(Generic[T]):
    """A call that waits for a worker's thread."""

    def __init__(self, place: _Place, call: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._place = place
        self._call = call

    def run(self) -> None:
        """Run it, unless it was cancelled."""
        with _at(self._place):
            future, call = self.future, self._call
            del self.future, self._call  # an error's traceback holds this frame: no cycle
            if future.set_running_or_notify_cancel():
                fulfil(future, call)

    def withdraw(self) -> None:
        """Cancel it."""
        self.future.cancel()
        self.future.set_running_or_notify_cancel()
        _process.unended.remove(self._place)

    def refuse(self, error: Exception) -> None:
        """Have its future tell ``error``: no thread can be had for it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
        _process.unended.remove(self._place)


class Worker(_Place):
    """One daemon thread that runs calls one after another, started by the first call."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._calls: queue.SimpleQueue[_Call[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        renew_after_fork(self, Worker._renew)

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue ``call`` and return its future; cancelling it works until the call has begun.

        A finalizer may do it. When the interpreter exits the future is one that was cancelled;
        where the system gives no thread, it tells the error of that.
        """
        queued = _Call(self, partial(call, *args, **kwargs))  # no closure: see `clear_frames`
        future = queued.future
        _process.unended.append(self)
        if _process.refuses():
            queued.withdraw()
            return future
        self._calls.put(queued)  # type: ignore[arg-type]  # its result is the future's alone
        if self._thread is None:
            with _lock:
                self._serve()
        return future

    def close(self) -> None:
        """Let the thread end once the calls already queued are done. A later call starts anew.

        A finalizer may do it.
        """
        self._calls.put(None)

    def withdraw(self) -> None:
        """Cancel the calls that have not begun, and let the thread end."""
        for call in self._queued():
            call.withdraw()
        self._calls.put(None)

    def _queued(self) -> Iterator[_Call[object]]:
        """Take the calls that have not begun out of the queue."""
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    yield call

    def _serve(self) -> None:
        """Start the thread, if there is none.

        It is registered once it runs, by itself too: an interrupt here leaves no thread that is
        registered and was never started, nor one that runs and is unknown.
        """
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        try:
            thread.start()
        except Exception as error:  # noqa: BLE001  # "can't start new thread": no call may wait
            for call in self._queued():
                call.refuse(error)
        else:
            self._register(thread)

    def _register(self, thread: threading.Thread) -> bool:
        """Have ``thread`` be the one, unless there is another; whether it is."""
        with _lock:
            if self._thread is None:
                self._thread = thread
                _process.threads[thread] = self
            return self._thread is thread

    def _work(self) -> None:
        """Be the thread."""
        own = threading.current_thread()
        if not self._register(own):  # a finalizer was quicker
            return
        try:
            while (call := self._calls.get()) is not None or not self._over(own):
                if call is not None:
                    call.run()
                del call  # else its results stay alive until the next call
        finally:
            del _process.threads[own]
            if self._thread is own:
                self._thread = None

    def _over(self, own: threading.Thread) -> bool:
        """Whether the thread is to end: a call that comes after this starts another."""
        with _lock:
            # In this order: `submit` queues its call first, and then looks for a thread.
            self._thread = None
            if self._calls.empty() or self._thread is not None:
                return True
            self._thread = own
            return False

    def _renew(self) -> None:
        """Be without the calls of the parent, and without its thread, unless this is that one."""
        here = self in _here.places
        self._calls = queue.SimpleQueue()
        self._thread = threading.current_thread() if here else None
        self.parked = self.parked and here


def _interrupt(thread: threading.Thread) -> None:
    """Have ``thread`` raise ``SystemExit`` before its next step."""
    import ctypes

    ident, error = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, error)


def fulfil(future: Future[T], call: Callable[[], T]) -> None:
    """Run ``call`` and have ``future`` tell what came of it: its result, or an error.

    This is the one way from a thread to whoever awaits it, so nothing passes that would end the
    awaiting task, or hang it, instead of failing: see `ControlFlowError`.
    """
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the awaiting side
        future.set_exception(as_error(error))
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
