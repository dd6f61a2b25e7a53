"""A client's stay: it ends when all was sent, when the client is gone, or when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal, Protocol, TypeVar

import anyio

from ._shutdown import KEY, Message, Receive, Scope, Send, Shutdown, stopped

#: Why a stay ended.
Ending = Literal["done", "gone", "stopped"]

#: Seconds that giving back may take when a client has gone; a task of its own goes on after them.
CLEANUP = 5.0


class Closing(Protocol):
    """What is given back by awaiting its ``aclose``."""

    async def aclose(self) -> None:
        """Give everything back."""


C = TypeVar("C", bound=Closing)


class GoneError(Exception):
    """Raised by a `Sender` whose client is gone, or has taken nothing for too long."""


class Sender:
    """A server's ``send``, which says that the client is gone in one way.

    uvicorn drops what is sent to a client that has gone, the specification has ``send`` raise
    OSError; and an OSError of a sink (a disk that is full) must not be taken for either.

    Args:
        send: The server's.
        timeout: Seconds that one message may take; None: as long as it likes.
    """

    def __init__(self, send: Send, timeout: float | None) -> None:
        self._send = send
        self._timeout = timeout

    async def __call__(self, message: Message) -> None:
        """Send it.

        Raises:
            GoneError: The client is gone.
        """
        try:
            with anyio.fail_after(self._timeout):
                await self._send(message)
        except OSError as error:  # TimeoutError too
            raise GoneError from error


def shutdown_of(scope: Scope) -> Shutdown | None:
    """What `graceful` has left in the scope."""
    found = scope.get(KEY)
    return found if isinstance(found, Shutdown) else None


def watch(shutdown: Shutdown | None) -> None:
    """Have the server wait for the task that calls this before it stops."""
    task = asyncio.current_task()
    if shutdown is not None and task is not None:
        shutdown.watch(task)


async def stay(
    work: Callable[[], Awaitable[None]],
    hear: Callable[[], Awaitable[None]],
    shutdown: Shutdown | None,
) -> Ending:
    """Do ``work`` until it is done, ``hear`` returns or the server stops; say what came first.

    What is waited for beside the work is waited for in tasks, which have ended when this returns.

    Args:
        work: Sends; cancelled when the client is gone or the server stops.
        hear: Returns when the client is gone; an error of its own ends the stay and is raised.
        shutdown: The server's, if it has one.

    Raises:
        Exception: What ``work`` or ``hear`` raised, but for `GoneError`.
    """
    scope, endings = anyio.CancelScope(), list[Ending]()

    async def end_after(wait: Callable[[], Awaitable[None]], ending: Ending) -> None:
        try:
            await wait()  # made here: a task cancelled before its first step awaits nothing
        finally:
            endings.append(ending)
            scope.cancel()

    hearing = asyncio.create_task(end_after(hear, "gone"), name="streamvae hear")
    stopping = asyncio.create_task(
        end_after(lambda: stopped(shutdown), "stopped"), name="streamvae stop"
    )
    try:
        with scope:
            try:
                await work()
            except GoneError:
                endings.append("gone")
            else:
                endings.append("done")
    finally:
        hearing.cancel()
        stopping.cancel()
        with anyio.move_on_after(CLEANUP, shield=True):
            await asyncio.wait([hearing, stopping])
    if hearing.done() and not hearing.cancelled():
        hearing.result()
    return endings[0]


async def left(receive: Receive) -> None:
    """Return when the client of a request has left it."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def given_back(thing: C) -> AsyncGenerator[C, None]:
    """Have ``thing`` closed on the way out, also where every further wait is cancelled at once.

    Servers and frameworks cancel with scopes (level-triggered): a plain await in a ``finally`` is
    cancelled again. The time is bounded, so that nobody who waits for us waits for ever.
    """
    try:
        yield thing
    finally:
        with anyio.move_on_after(CLEANUP, shield=True):
            await thing.aclose()
