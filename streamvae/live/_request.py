"""A request to a service: it waits for its place, decodes, and gives back what it had."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypedDict

from .._errors import ClosedError, StreamVAEError
from .._options import Mode, Progress, SinkLike
from .._pixels import Output
from .._stream import FrameStream, left
from .._tee import OnSinkError
from .._transforms import Transform
from .._turns import Line, Priority, in_line
from ..stages import NonFinite
from ._admission import Place
from ._books import Books, Reason, Running

if TYPE_CHECKING:
    from types import TracebackType


class RequestTimeout(StreamVAEError, TimeoutError):
    """Raised when a request to a service, waiting included, took longer than it may.

    Attributes:
        seconds: How long it may take.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the request did not end within {self.seconds:g} s"


class RequestOptions(TypedDict, total=False):
    """The options of a request: those of `streamvae.stream_decode` that are not the service's."""

    sinks: SinkLike | Iterable[SinkLike]
    fps: float | None
    normalized: bool
    mode: Mode
    latents_per_chunk: int | None
    output: Output
    transform: Transform | None
    queue_size: int
    progress: Progress
    sink_timeout: float
    write_timeout: float | None
    on_sink_error: OnSinkError
    resume: bool
    nonfinite: NonFinite
    call: Mapping[str, object] | None


class Request:
    """What `Service.stream` returns: inside ``async with`` it has a place, and is the stream.

    Entering waits for the place (`position` tells how long the queue is meanwhile) and opens the
    stream; leaving ends that. The place is given back as soon as the stream has ended, inside the
    block or by leaving it. Enter it once.
    """

    def __init__(
        self,
        stream: FrameStream,
        enter: Callable[[Priority], Place],
        settle: Callable[[Place], Awaitable[None]],
        books: Books,
        *,
        priority: Priority,
        timeout: float | None,
    ) -> None:
        self._stream = stream
        self._enter = enter
        self._settle = settle
        self._books = books
        self._priority: Priority = priority
        self._timeout = timeout
        self._place: Place | None = None
        self._running: Running | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked: float | None = None

    @property
    def position(self) -> int:
        """Its place in the queue: 1 for the next one; 0 once it is let in, and before it asks."""
        return 0 if self._place is None else self._place.position

    async def __aenter__(self) -> FrameStream:
        """Wait for a place, and open the stream.

        Raises:
            Busy: No more may wait, or the service is draining.
            RequestTimeout: Its time was over.
            LatentsError: They are no latents that can be decoded here, or do not fit in memory.
            Exception: Opening failed; see `streamvae.stream_decode`.
        """
        if self._asked is not None:
            raise ClosedError("expected a fresh request, got one that was entered before")
        now = self._asked = asyncio.get_running_loop().time()
        deadline = None if self._timeout is None else now + self._timeout
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                await self._admitted()
                await self._stream._open()
        except BaseException as error:
            await self._give_up(error, expired=scope.expired())
            if scope.expired() and isinstance(error, TimeoutError):
                raise RequestTimeout(self._timeout or 0.0) from None
            raise
        if deadline is not None and self._running is not None:
            self._timer = _expiry(self._running, deadline, RequestTimeout(deadline - now))
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left(_reason(error))
        await left(self._stream.aclose(), error)

    async def _admitted(self) -> None:
        """Get a place, and start the stream's task in the line of its priority."""
        self._place = self._enter(self._priority)
        await self._settle(self._place)
        await self._place.given()
        loop = asyncio.get_running_loop()
        with in_line(Line(self._priority)):
            run = self._stream._start()
        self._running = Running(
            weakref.ref(self._stream),
            run.task,
            run.supervisor,
            self._place,
            self._priority,
            asked=self._asked or 0.0,
            given=loop.time(),
        )
        self._books.began(self._running)

    async def _give_up(self, error: BaseException, *, expired: bool) -> None:
        reason: Reason = "timeout" if expired else _reason(error)
        self._left(reason)
        if self._running is not None:
            await left(self._stream.aclose(), error)
        elif self._place is not None:
            self._place.leave()
            if expired or isinstance(error, asyncio.CancelledError):
                self._books.gave_up("timeout" if expired else "waiting")

    def _left(self, reason: Reason) -> None:
        if self._running is not None:
            self._running.reason = self._running.reason or reason


def _reason(error: BaseException | None) -> Reason:
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "left"


def _expiry(running: Running, deadline: float, error: RequestTimeout) -> asyncio.TimerHandle:
    """End the stream at ``deadline``; does not keep it."""
    loop = asyncio.get_running_loop()
    return loop.call_at(deadline, running.end, "timeout", error)
