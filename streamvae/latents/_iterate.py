"""Latents that come one by one, from an iterable or an async iterable."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Future

import numpy as np
import torch

from .._caller import CallerContext, ThreadState
from .._threads import Worker, outcome
from ._source import Item, Mark, Piece, to_tensor, viewable

#: Seconds that an iterable's own clean-up is waited for; it then goes on alone, on its thread.
CLEANUP = 1.0


class IterableSource:
    """A sync iterable, read on a daemon thread of its own, one item ahead.

    ``iter``, every ``next`` and the iterator's ``close`` run on that thread, with the thread state
    of whoever made the source and in a copy of the context of the task that reads it first. What
    ``next`` does counts as work: a virtual clock stands still during it. A stand-in that waits for
    the outside world says so with `streamvae._threads.parked`; were every ``next`` parked, the
    clock could run on while an item is being made, and virtual times would depend on the machine.
    """

    def __init__(self, given: Iterable[Item], mark: Mark) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype: torch.dtype | None = None
        self._reader = _Reader(given, mark)
        self._worker = Worker("streamvae-latents")
        self._state = ThreadState.capture()
        self._caller: CallerContext | None = None  # made by the first read
        self._reading: Future[Piece | None] | None = None
        self._started = False
        self._ended = False
        weakref.finalize(self, self._worker.close).atexit = False

    async def open(self) -> None:
        """Do nothing: nothing can be known beforehand."""

    async def piece(self, axis: int, wanted: int) -> Piece | None:  # noqa: ARG002  # as it comes
        """Give the next item. A cancelled wait ends the source: its item is lost."""
        if self._ended:
            return None
        self._started = self._ended = True  # ended, unless this call comes back with an item
        caller = self._caller = self._caller or CallerContext(self._state)
        reading = self._reading or self._worker.submit(caller.run, self._reader.read)
        self._reading = reading  # where the thread is, should this wait be broken
        piece = await outcome(reading)
        self._reading = None
        if piece is not None:
            self._reading = self._worker.submit(caller.run, self._reader.read)
            self._ended = False
        return piece

    async def aclose(self) -> None:
        """Close the iterator on its thread and end the thread.

        Waited for unless the thread is inside ``next``: the iterator is then closed as soon as
        that comes back, and until then the thread is all that is left.
        """
        started, self._started, self._ended = self._started, False, True
        reader, self._reader = self._reader, _Reader((), self._reader.mark)
        reading, self._reading = self._reading, None
        caller, self._caller = self._caller, None
        if not started or caller is None:
            return
        inside = reading is not None and not reading.done() and not reading.cancel()
        closing = self._worker.submit(caller.run, reader.close)
        self._worker.close()
        if inside:
            return
        waiting = asyncio.wrap_future(closing)
        await asyncio.wait({waiting}, timeout=CLEANUP)
        if waiting.done():
            waiting.result()


class _Reader:
    """The part of an `IterableSource` that lives on its thread."""

    def __init__(self, given: Iterable[Item], mark: Mark) -> None:
        if isinstance(given, (list, tuple)):
            given = _emptying(deque(given))  # so that what was used is not held
        self._given: Iterable[Item] | None = given
        self._iterator: Iterator[Item] | None = None
        self._count = 0
        self.mark = mark

    def read(self) -> Piece | None:
        """Give the next piece, None after the last."""
        try:
            if self._given is not None:
                self._iterator, self._given = iter(self._given), None
            if self._iterator is None:
                return None
            item = next(self._iterator)
        except StopIteration:  # never into a future, where it would be lost
            self._iterator = None
            return None
        tensor = to_tensor(item, self._count)
        self._count += 1
        return Piece(tensor, self.mark(tensor))

    def close(self) -> None:
        """Close the iterator, if it can be closed."""
        iterator, self._iterator, self._given = self._iterator, None, None
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _emptying(items: deque[Item]) -> Iterator[Item]:
    while items:
        yield items.popleft()


class AsyncIterableSource:
    """An async iterable: a model that is still generating. Its iterator is closed at the end."""

    def __init__(self, given: AsyncIterable[Item], mark: Mark) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype: torch.dtype | None = None
        self._given: AsyncIterable[Item] | None = given
        self._iterator: AsyncIterator[Item] | None = None
        self._mark = mark
        self._count = 0
        self._worker = Worker("streamvae-latents")
        weakref.finalize(self, self._worker.close).atexit = False

    async def open(self) -> None:
        """Do nothing: nothing can be known beforehand."""

    async def piece(self, axis: int, wanted: int) -> Piece | None:  # noqa: ARG002  # as it comes
        """Give the next item."""
        iterator = self._begun()
        if iterator is None:
            return None
        try:
            item = await anext(iterator)
        except StopAsyncIteration:
            return None
        if isinstance(item, np.ndarray) and not viewable(item):
            tensor = await outcome(self._worker.submit(to_tensor, item, self._count))
        else:
            tensor = to_tensor(item, self._count)
        self._count += 1
        return Piece(tensor, self._mark(tensor))

    async def aclose(self) -> None:
        """Close the iterator, if it can be closed."""
        iterator, self._iterator = self._begun(), None
        self._worker.close()
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()

    def _begun(self) -> AsyncIterator[Item] | None:
        if self._given is not None:
            self._iterator, self._given = aiter(self._given), None
        return self._iterator
