"""A viewer's place: the queue that its policy bounds, and what the viewer holds in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import anyio

from streamvae._errors import ClosedError

from ._policies import Block, Policy

T = TypeVar("T")


class Ending:
    """What ends a stream for all of its viewers: nothing to speak of, or an error.

    Whoever raises an error adds frames to its traceback. One that many raise would collect the
    frames of them all, and keep what is in these alive: so each raises it as it was here.

    Args:
        error: None when the stream was complete.
    """

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self._trace = None if error is None else error.__traceback__

    def raise_(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error.with_traceback(self._trace)


class Outlet(Generic[T]):
    """The queue between a track, which offers, and a subscription, which takes.

    Args:
        policy: What is dropped, and who waits, when it is full.

    Attributes:
        policy: As given.
        dropped: What was not given to this viewer since the first that was meant for it.
        header: What comes before the first item; empty for formats without.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.dropped = 0
        self.header = b""
        self._items: deque[T] = deque()
        self._begun = False
        self._torn = True  # only a key may come next
        self._ending: Ending | None = None
        self._reading = False
        self._came = anyio.Event()
        self._freed = anyio.Event()

    @property
    def lossless(self) -> bool:
        """Whether whoever offers waits for room."""
        return isinstance(self.policy, Block)

    @property
    def full(self) -> bool:
        """Whether there is no room, and somebody who may make some."""
        return len(self._items) >= self.policy.room and self._ending is None

    @property
    def dry(self) -> bool:
        """Whether nothing is there and nothing will come."""
        return self._ending is not None and not self._items

    @property
    def thirsty(self) -> bool:
        """Whether a viewer waits for the first key of all."""
        return self._reading and not self._begun

    def offer(self, item: T, *, key: bool) -> None:
        """Queue ``item``; where there is no room, drop what can be missed least.

        After a gap only a key is of use: until it comes, whatever builds on others is dropped too.
        """
        if self._ending is not None or (self._torn and not key):
            self.missed(1)
            return
        self._begun, self._torn = True, False
        self._items.append(item)
        self._came.set()

    def make_room(self, keyed: Callable[[T], bool]) -> None:
        """Drop the oldest, and what builds on it, if there is no room."""
        if not self.full:
            return
        self._items.popleft()
        self.missed(1)
        while self._items and not keyed(self._items[0]):
            self._items.popleft()
            self.missed(1)
        self._torn = not self._items

    def missed(self, count: int) -> None:
        """Count what was not given; before the first that was meant for it nothing is missed."""
        if self._begun:
            self.dropped += count

    async def free(self) -> None:
        """Wait until there is room, or nobody who wants any."""
        while self.full:
            self._freed = anyio.Event()
            await self._freed.wait()

    async def take(self) -> T:
        """The oldest that waits, or the next one.

        Raises:
            StopAsyncIteration: There are no more.
            ClosedError: Somebody else waits here already.
            Exception: What ended it, once everything was taken.
        """
        if self._reading:
            raise ClosedError("expected one reader of a subscription, got two at once")
        self._reading = True
        try:
            while not self._items:
                if self._ending is not None:
                    self._ending.raise_()
                    raise StopAsyncIteration
                self._came = anyio.Event()
                await self._came.wait()
        finally:
            self._reading = False
        item = self._items.popleft()
        self._freed.set()
        return item

    def end(self, ending: Ending, *, discard: bool = False) -> None:
        """Let nothing more come: what waits is taken, then comes ``ending``. The first counts."""
        if self._ending is None:
            self._ending = ending
        if discard:
            self._items.clear()
        self._came.set()
        self._freed.set()


class Subscription(Generic[T]):
    """One viewer's frames or packets, in order: an async context manager and an async iterator.

    It begins at the next frame once it is entered (or first asked), encoded video at the next
    keyframe, and ends with the stream: what waits is given first, then the stream's error, if there
    was one, is raised. It belongs to the loop of its `Broadcast`, and to one reader at a time.

    Made by `Broadcast.frames` and `Broadcast.packets`.

    Attributes:
        policy: What happens when the viewer is slower than the decode.
    """

    def __init__(
        self,
        policy: Policy,
        join: Callable[[Outlet[T]], None],
        leave: Callable[[Outlet[T]], None],
    ) -> None:
        self.policy = policy
        self._outlet: Outlet[T] = Outlet(policy)
        self._join, self._leave = join, leave
        self._dropped: weakref.finalize[..., Subscription[T]] | None = None
        self._closed = False

    @property
    def dropped(self) -> int:
        """Frames that this viewer did not get since its first; each is a gap in ``index``."""
        return self._outlet.dropped

    @property
    def header(self) -> bytes:
        """What the packets need before the first of them: an MP4's beginning (ftyp and moov).

        There when the first packet is; empty before, and for formats that need none.
        """
        return self._outlet.header

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._enter()
        try:
            return await self._outlet.take()
        finally:
            if self._outlet.dry:
                self._gone()

    async def aclose(self) -> None:
        """Leave: nothing more is kept for this viewer. Idempotent, and never waits."""
        self._closed = True
        closed = ClosedError("expected an open subscription, got one that was closed")
        self._outlet.end(Ending(closed), discard=True)
        self._gone()

    def _enter(self) -> None:
        if self._dropped is None:
            if self._closed:
                raise ClosedError("expected an open subscription, got one that was closed")
            self._join(self._outlet)
            # Whoever just drops it has left as well, wherever a collection happens to run.
            loop = asyncio.get_running_loop()
            self._dropped = weakref.finalize(self, _abandon, loop, self._leave, self._outlet)
            self._dropped.atexit = False

    def _gone(self) -> None:
        if self._dropped is not None and self._dropped.detach():
            self._leave(self._outlet)


def _abandon(
    loop: asyncio.AbstractEventLoop, leave: Callable[[Outlet[T]], None], outlet: Outlet[T]
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks with it
        loop.call_soon_threadsafe(leave, outlet)
