"""What a response shows: somebody's broadcast, or one of its own, which may outlive the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Literal

import anyio

from .._errors import UsageError
from .._stream import FrameStream
from ._broadcast import Broadcast
from ._shutdown import Shutdown, stopped
from ._stay import CLEANUP

logger = logging.getLogger("streamvae")

#: What a decode does when the client is gone.
OnDisconnect = Literal["cancel", "finish"]

#: What frames come from: a broadcast (entered by its owner), a function that waits for one, or a
#: fresh stream (what `Service.stream` returns, too), which is entered, run and closed here.
FrameSource = (
    Broadcast | Callable[[], Awaitable[Broadcast]] | AbstractAsyncContextManager[FrameStream]
)

#: Tasks that outlive their requests: a loop itself keeps none.
_kept: set[asyncio.Task[None]] = set()


class Hosted:
    """A source for one client, and what becomes of it when that one has left.

    Args:
        source: What to show.
        on_disconnect: None: ``"cancel"`` for a stream; a broadcast's own ``on_idle`` decides.
            ``"cancel"`` closes a broadcast unless somebody else is watching.

    Raises:
        UsageError: The source is none, or ``on_disconnect`` is unknown.
    """

    def __init__(self, source: FrameSource, on_disconnect: OnDisconnect | None = None) -> None:
        if on_disconnect not in {None, "cancel", "finish"}:
            raise UsageError(f"expected on_disconnect='cancel' or 'finish', got {on_disconnect!r}")
        if not isinstance(source, Broadcast | AbstractAsyncContextManager) and not callable(source):
            raise UsageError(
                f"expected a Broadcast or a stream to show, got {type(source).__name__}"
            )
        self._source = source
        self._on_disconnect = on_disconnect
        self._broadcast: Broadcast | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._begun = asyncio.Event()

    @property
    def owned(self) -> bool:
        """Whether the stream is run here, for this client."""
        return not isinstance(self._source, Broadcast) and not callable(self._source)

    async def broadcast(self, shutdown: Shutdown | None) -> Broadcast:
        """Wait for it; a stream of its own stands still until `begin`.

        Raises:
            Exception: There is none; or entering the stream failed (a service is `Busy`).
        """
        if isinstance(self._source, Broadcast):
            self._broadcast = self._source
        elif isinstance(self._source, AbstractAsyncContextManager):
            await self._host(self._source, shutdown)
        else:
            self._broadcast = await self._source()
        assert self._broadcast is not None  # noqa: S101  # for mypy
        return self._broadcast

    def begin(self) -> None:
        """Have it run: the client watches, and will miss nothing."""
        self._begun.set()

    async def leave(self, *, gone: bool) -> None:
        """Have the client's departure seen to; bounded, and shielded from whoever is impatient.

        Args:
            gone: Whether it left before the end.
        """
        if self._task is not None:
            if not self._begun.is_set() or (gone and self._on_disconnect != "finish"):
                self._task.cancel()
            elif gone:
                return  # it goes on alone
            with anyio.move_on_after(CLEANUP, shield=True):
                await asyncio.wait([self._task])
        elif gone and self._on_disconnect == "cancel" and self._broadcast is not None:
            if self._broadcast.viewers:
                return
            with anyio.move_on_after(CLEANUP, shield=True):
                await self._broadcast.aclose()

    async def _host(
        self, source: AbstractAsyncContextManager[FrameStream], shutdown: Shutdown | None
    ) -> None:
        task = self._task = asyncio.create_task(self._run(source), name="streamvae hosted")
        task.add_done_callback(self._ended)
        _kept.add(task)
        task.add_done_callback(_kept.discard)
        if shutdown is not None:
            shutdown.watch(task)
            ending = asyncio.create_task(_cancel(task, shutdown), name="streamvae hosted stop")
            task.add_done_callback(lambda _: ending.cancel())
        await self._ready.wait()
        if self._broadcast is None:
            task.result()

    async def _run(self, source: AbstractAsyncContextManager[FrameStream]) -> None:
        """Run the stream; the body of its task, so that one task enters and leaves everything."""
        async with AsyncExitStack() as stack:
            # A broadcast enters a stream itself, once somebody watches; a request must be let in.
            stream = (
                source
                if isinstance(source, FrameStream)
                else await stack.enter_async_context(source)
            )
            broadcast = Broadcast(stream, on_idle=self._on_disconnect or "cancel")
            self._broadcast = broadcast
            self._ready.set()
            await self._begun.wait()
            async with broadcast:
                await broadcast.finished()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Wake who waits; have an error heard that no client is there to be told of."""
        self._ready.set()
        if task.cancelled() or task.exception() is None or self._broadcast is None:
            return
        if self._on_disconnect == "finish" and not self._broadcast.viewers:
            logger.error("a stream whose client is gone failed", exc_info=task.exception())


async def _cancel(task: asyncio.Task[None], shutdown: Shutdown) -> None:
    await stopped(shutdown)
    task.cancel()
