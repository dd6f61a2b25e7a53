"""The app's own server, uvicorn: it listens, says where, and ends in time when it is told to."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from .._errors import ClosedError, UsageError
from .._threads import calls_running
from ._shutdown import App, Shutdown, graceful

#: Bytes of one message of a WebSocket: of the latents of one step at most.
MAX_MESSAGE = 64 << 20

#: Of the time for the end: when streams are stopped, when they and connections are over, when
#: threads rest, and when the process is ended whatever it does.
_STOP, _SHARE, _REST, _ALL = 0.35, 0.7, 0.9, 0.97


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
        UsageError: The address is not this machine's, or somebody else listens there.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UsageError(f"expected to listen on {host}:{port}, but: {error}") from error


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # asked, not bound
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(
    app: Starlette, listener: socket.socket, *, grace: float, ready: Callable[[], None]
) -> bool:
    """Serve until SIGTERM or ctrl-C, and return within ``grace`` seconds of it.

    Streams may go on for a third of them and are stopped then; what they have stays as readable
    partial files. A second signal stops them at once. Should anything still hang when the time is
    over, the process is ended all the same.

    Args:
        app: What `streamvae.live.create_app` made.
        listener: Where.
        grace: Seconds.
        ready: Called when requests are answered.

    Returns:
        Whether all threads rest. Else the device still works on what it was given, and the
        interpreter must not be taken down under it: torch would abort the process.

    Raises:
        UsageError: The app could not begin; the reason was logged.
    """
    shutdown = Shutdown(_SHARE * grace, margin=(_SHARE - _STOP) * grace)
    wrapped = graceful(cast("App", app), shutdown)
    config = uvicorn.Config(
        cast("ASGIApp", wrapped),
        lifespan="on",
        log_level="warning",
        access_log=False,  # addresses may carry the token
        server_header=False,
        proxy_headers=False,  # who asks is decided by the peer's own address
        ws_per_message_deflate=False,  # JPEG does not get smaller, only later
        ws_max_size=MAX_MESSAGE,
        timeout_graceful_shutdown=max(1, round(_SHARE * grace)),
    )
    server = _Server(config, ready, grace)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    with _signals_ignored():
        server.run([listener])
    if not server.started:
        raise UsageError("the app could not begin; see above")
    return _rested(until=(server.stopped or time.monotonic()) + _REST * grace)


def _end_after(seconds: float) -> None:
    """End the process in any case: who told it to end may kill it next."""

    def end() -> None:
        os.write(
            2, b"error: streams did not end in time; their partial files are left as they are\n"
        )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _rested(until: float) -> bool:
    """Wait for the threads of streams that were stopped; they take no new work."""
    while calls_running() and time.monotonic() < until:
        time.sleep(0.01)
    return not calls_running()


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Have the signals that uvicorn heard, and sends again at its end, do nothing more."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is worth a line: a connection that ends with its stream is not."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ClosedError)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], grace: float) -> None:
        super().__init__(config)
        self._ready = ready
        self._grace = grace
        #: When it was told to stop, in seconds of `time.monotonic`.
        self.stopped: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopped is None:
            self.stopped = time.monotonic()
            _end_after(_ALL * self._grace)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
