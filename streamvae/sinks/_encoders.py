"""Several threads that encode pictures side by side."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import ParamSpec, TypeVar

from streamvae._threads import Worker

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")


class Encoders:
    """Daemon threads that take calls in turn, started by the first ones.

    Unlike a ``ThreadPoolExecutor`` they take calls also when the main thread has ended and others
    go on, and are not joined at exit.

    Args:
        count: How many.
        name: Of the sink they are for.
    """

    def __init__(self, count: int, name: str) -> None:
        self._workers = [Worker(f"streamvae encode {name} {index}") for index in range(count)]
        self._turns = itertools.cycle(self._workers)
        self._running: weakref.WeakSet[Future[object]] = weakref.WeakSet()
        # Those of a sink that nobody ended must not wait for ever.
        weakref.finalize(self, _close, self._workers).atexit = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._workers)

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have one of them run ``call``."""
        future = next(self._turns).submit(call, *args, **kwargs)
        self._running.add(future)  # type: ignore[arg-type]  # its result is the caller's alone
        return future

    def map(self, call: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        """Run ``call`` for all of ``items`` side by side and give the results in order."""
        for future in [self.submit(call, item) for item in items]:
            yield future.result()

    def close(self) -> None:
        """Cancel what has not begun, wait for what has, and let the threads end."""
        running = list(self._running)
        for future in running:
            future.cancel()
        wait([future for future in running if not future.cancelled()])
        _close(self._workers)


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        worker.close()
