"""What a server does with open streams when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import FrameType

import anyio

from .._errors import UsageError

#: ASGI's own nouns, as its specification has them.
Scope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where `graceful` leaves the `Shutdown` for the responses of the same request.
KEY = "streamvae.shutdown"


class Shutdown:
    """The end of a server's streams: told once, and over within ``grace`` seconds.

    Servers wait for open responses before they stop, and a stream may stay open for hours. So when
    a shutdown begins, no new stream is opened (503 with Retry-After), open ones may run on for
    ``grace - margin`` seconds, and then they are ended: decoding stops within one chunk, sinks
    leave what they have as readable partial files. `graceful` begins it when SIGTERM comes.

    Args:
        grace: Seconds from its beginning until everything is over.
        margin: Seconds of these kept for giving things back; half of ``grace`` at most.

    Raises:
        UsageError: A time is negative.
    """

    def __init__(self, grace: float = 10.0, *, margin: float = 2.0) -> None:
        if grace < 0 or margin < 0:
            raise UsageError(
                f"expected grace and margin of 0 s or more, got {grace:g} and {margin:g}"
            )
        self.grace = grace
        self._margin = min(margin, grace / 2)
        self._began: float | None = None
        self._begun = asyncio.Event()
        self._expired = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def stopping(self) -> bool:
        """Whether it has begun."""
        return self._began is not None

    @property
    def open(self) -> int:
        """Tasks of streams and of clients that have not ended."""
        return len(self._tasks)

    def begin(self) -> None:
        """Begin; once begun, end at once what still runs. Call it on the loop."""
        if self._began is None:
            loop = asyncio.get_running_loop()
            self._began = loop.time()
            self._begun.set()
            loop.call_later(self.grace - self._margin, self._expired.set)
        else:
            self._expired.set()

    async def begun(self) -> None:
        """Wait until it has begun."""
        await self._begun.wait()

    async def expired(self) -> None:
        """Wait until streams must end."""
        await self._expired.wait()

    def watch(self, task: asyncio.Task[object]) -> None:
        """Have ``task`` waited for before the server may stop."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def over(self) -> None:
        """Wait until every stream and client has ended, or ``grace`` is used up; begin it if need.

        What is still there then is cancelled, and left to the server.
        """
        if self._began is None:
            self.begin()
        assert self._began is not None  # noqa: S101  # for mypy
        await self._all_done(until=self._began + self.grace)
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    async def _all_done(self, until: float) -> None:
        now = asyncio.get_running_loop().time
        while waited := self._tasks - {asyncio.current_task()}:
            left = until - now()
            if left <= 0:
                return
            await asyncio.wait(waited, timeout=left)


class graceful:  # noqa: N801  # it reads as what it does to an app
    """Wrap an ASGI app so that SIGTERM ends its open streams in time: ``app = graceful(app)``.

    Under uvicorn and hypercorn alike: both install their signal handlers before the app's lifespan
    begins, and wait for open responses before it ends; so the handler is chained when the
    lifespan begins (or at the first request, with the lifespan off), the server's own is called
    after it, and the lifespan does not end before the streams have. A second signal ends them at
    once. In a thread other than the main one no signal can be had: call ``shutdown.begin``.

    A client that stays connected and reads nothing holds a connection open on the server's side
    after its stream has ended: give the server a limit too (uvicorn
    ``--timeout-graceful-shutdown``, hypercorn ``graceful_timeout``), above ``grace``.

    Args:
        app: Any ASGI app.
        shutdown: What to begin; None for one of 10 s. Also there as the attribute ``shutdown``.
        signals: Which begin it.
    """

    def __init__(
        self,
        app: App,
        shutdown: Shutdown | None = None,
        *,
        signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        self.app = app
        self.shutdown = Shutdown() if shutdown is None else shutdown
        self._hooks = [_Hook(each, self.shutdown) for each in signals]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app."""
        for hook in self._hooks:
            hook.install()
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self.app({**scope, KEY: self.shutdown}, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hear() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.shutdown.over()
            return message

        async def tell(message: Message) -> None:
            if message["type"] in {"lifespan.startup.failed", "lifespan.shutdown.complete"}:
                self._unhook()
            await send(message)

        try:
            await self.app({**scope, KEY: self.shutdown}, hear, tell)
        except asyncio.CancelledError:
            self._unhook()
            raise

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _Hook:
    """A signal handler put before the one that is there.

    Where the loop handles the signal (hypercorn), the handler that is there is a dummy, and the
    loop hears of the signal through its wake-up socket all the same.
    """

    def __init__(self, number: signal.Signals, shutdown: Shutdown) -> None:
        self._number = number
        self._shutdown = shutdown
        self._before: Callable[[int, FrameType | None], object] | int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Put it there, unless it is there already or this is not the main thread."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        before = signal.getsignal(self._number)
        # A handler that was not set from Python (None) could not be put back.
        if callable(before):
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(self._number, self._handle)
                self._before = before

    def remove(self) -> None:
        """Put back what was there, unless somebody else has meanwhile."""
        if self._before is not None and signal.getsignal(self._number) == self._handle:
            signal.signal(self._number, self._before)
        self._before = None
        self._loop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._shutdown.begin)
        if callable(self._before):
            self._before(number, frame)


async def stopped(shutdown: Shutdown | None) -> None:
    """Wait until streams must end; for ever where nobody says so."""
    await (anyio.sleep_forever() if shutdown is None else shutdown.expired())
