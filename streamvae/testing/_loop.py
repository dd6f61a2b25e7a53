"""An event loop with a virtual clock: sleeping takes no time; it stands while a thread works."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar, TypeVarTuple, Unpack

from streamvae._threads import calls_running, counted, fulfil

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that jumps to the next timer instead of sleeping.

    While a worker thread of streamvae, or a call given to ``run_in_executor``, is working, the
    clock stands: threads live in real time. ``jumps`` lists the sleeps that took no time.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.jumps: list[float] = []
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass at once; what is due by then runs in the next turn, once."""
        self._now += seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As ever, but the clock stands until the call has ended."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                fulfil(future, lambda: func(*args))

        # Told by the call itself, which still counts then: the executor would tell too late.
        super().run_in_executor(executor, counted(run))
        return asyncio.wrap_future(future, loop=self)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002
        """Wait for its threads as long as that takes: a time limit would be over at once.

        Since Python 3.12 `asyncio.Runner` sets one.
        """
        await super().shutdown_default_executor()

    def _jump(self, seconds: float) -> None:
        self._now += seconds
        self.jumps.append(seconds)


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        while calls_running():
            # A call that ends wakes the loop before it stops counting, so nothing is missed; but
            # not every call has somebody to wake, so this must not sleep for long.
            time.sleep(0.00005)
            ready = super().select(0)
            if ready:
                return ready
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            return super().select(None)
        self._jump(timeout)
        return []


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end on a fresh `VirtualLoop`, as ``asyncio.run`` does."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
