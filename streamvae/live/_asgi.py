"""What all responses are: ASGI callables that are responses of Starlette and FastAPI, too."""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Self, TypeVar

from .._errors import ClosedError, UsageError
from ._admission import SOONEST, Busy
from ._shutdown import Message, Receive, Scope, Send, Shutdown
from ._stay import GoneError, Sender, left, shutdown_of, stay, watch

R = TypeVar("R")

#: Seconds that a client may take nothing before it counts as gone.
PATIENCE = 60.0


class StreamResponse(abc.ABC):
    """A streamed body, sent while it is made, until its end or the client's.

    It is an ASGI callable: ``await response(scope, receive, send)`` in any framework, or returned
    from an endpoint of Starlette or FastAPI as it is. An error before the first byte is raised, so
    that the framework answers it; later it is raised too, and the server breaks the connection off,
    so that no client takes a part for the whole: so it is with `ClosedError` when the server stops
    first. A service that is `Busy`, or a server about to stop, gives 503 with Retry-After.

    Args:
        headers: Sent besides its own.
        send_timeout: Seconds a client may take nothing before it counts as gone; None: any.

    Attributes:
        status_code: 200.
        raw_headers: As ASGI has them: lower-case names and values, as bytes.
        background: Awaited when it is over and nothing failed, as Starlette has it.

    Raises:
        UsageError: ``send_timeout`` is no time.
    """

    media_type = "application/octet-stream"
    charset = "utf-8"

    def __new__(cls, *_args: object, **_options: object) -> Self:
        """Make one that FastAPI knows, where FastAPI is: it turns what it does not know to JSON."""
        starlette = sys.modules.get("starlette.responses")
        return object.__new__(cls if starlette is None else _kin(cls, starlette.Response))

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        send_timeout: float | None = PATIENCE,
    ) -> None:
        if send_timeout is not None and not send_timeout > 0:
            raise UsageError(f"expected send_timeout above 0 s or None, got {send_timeout!r}")
        own = {
            "content-type": self.media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # nginx would gather frames
            "x-content-type-options": "nosniff",
        }
        given = {name.lower(): value for name, value in (headers or {}).items()}
        self.status_code = 200
        self.raw_headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in (own | given).items()
        ]
        self.background: Callable[[], Awaitable[None]] | None = None
        self._send_timeout = send_timeout

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> object:
        """Let FastAPI have it as the return annotation of an endpoint: nothing is checked."""
        return {"type": "any"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            UsageError: It is no HTTP request.
            ClosedError: The server stopped before the end.
            Exception: What the stream raised.
        """
        if scope["type"] != "http":
            raise UsageError(f"expected an HTTP request, got ASGI scope {scope['type']!r}")
        shutdown = shutdown_of(scope)
        body = Body(Sender(send, self._send_timeout), self.status_code, self.raw_headers)
        with contextlib.suppress(GoneError):
            if scope.get("method") == "HEAD":
                await body.finish()
            elif shutdown is not None and shutdown.stopping:
                await body.refuse(Busy(shutdown.grace, "draining"))
            else:
                watch(shutdown)
                await self._answer(body, receive, shutdown)
        if self.background is not None:
            await self.background()

    async def _answer(self, body: Body, receive: Receive, shutdown: Shutdown | None) -> None:
        """Send the body until an end of it."""
        ending = await stay(lambda: self._filled(body, shutdown), lambda: left(receive), shutdown)
        if ending == "stopped":
            if body.started:
                raise ClosedError("the server stopped before the stream's end")
            await body.refuse(Busy(SOONEST, "draining"))

    async def _filled(self, body: Body, shutdown: Shutdown | None) -> None:
        try:
            await self._fill(body, shutdown)
        except Busy as busy:
            if body.started:
                raise
            await body.refuse(busy)
        else:
            await body.finish()

    @abc.abstractmethod
    async def _fill(self, body: Body, shutdown: Shutdown | None) -> None:
        """Send all there is; cancelled when the client is gone or the server stops."""


class Body:
    """The way to a client: the response's head when the first bytes are there, then the bytes.

    Args:
        send: The client's.
        status: Of the response.
        headers: Of the response; may be changed until the first bytes are written.
    """

    def __init__(self, send: Sender, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._status = status
        self.headers = headers
        self.started = False

    async def write(self, data: bytes) -> None:
        """Send some, as a message of its own."""
        await self._start(self._status, self.headers)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """Send the end."""
        await self._start(self._status, self.headers)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, busy: Busy) -> None:
        """Answer that there is no room, and when to come again."""
        text = f"{busy}\n".encode()
        after = str(max(1, math.ceil(busy.retry_after))).encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(text)).encode()),
            (b"retry-after", after),
            (b"cache-control", b"no-store"),
        ]
        await self._start(503, headers)
        await self._send({"type": "http.response.body", "body": text, "more_body": False})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not self.started:
            self.started = True
            start: Message = {"type": "http.response.start", "status": status, "headers": headers}
            await self._send(start)


@functools.cache
def _kin(cls: type[R], response: type) -> type[R]:
    """``cls`` as a subclass of the framework's response as well, by which it is known there."""
    if issubclass(cls, response):
        return cls
    members = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, response), members)
