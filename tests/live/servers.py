"""Real servers on a loop of the test, apps around responses, and clients that are just sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import torch
import uvicorn

from ..flow import until

SERVERS = ("uvicorn", "hypercorn")


@contextlib.asynccontextmanager
async def serving(app: Any, server: str) -> AsyncIterator[int]:
    """Serve on a free port of this machine, which is given; stop at the end."""
    listening = socket.create_server(("127.0.0.1", 0))
    # Small buffers: a client that does not read is felt after some hundred frames.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    listening.setblocking(False)
    port = listening.getsockname()[1]
    serve = _uvicorn if server == "uvicorn" else _hypercorn
    async with serve(app, listening):
        yield port


@contextlib.asynccontextmanager
async def _uvicorn(app: Any, listening: socket.socket) -> AsyncIterator[None]:
    options: dict[str, Any] = {"log_config": None, "ws": "websockets-sansio"}
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **options))
    task = asyncio.create_task(server._serve([listening]))  # `serve` would take the signals
    await until(lambda: server.started or task.done(), "it listens")
    try:
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def _hypercorn(app: Any, listening: socket.socket) -> AsyncIterator[None]:
    config, stop = hypercorn.config.Config(), asyncio.Event()
    config.bind = [f"fd://{listening.detach()}"]
    config.graceful_timeout = 5
    config.errorlog = config.accesslog = None
    serve = hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
    task = asyncio.create_task(serve)
    try:
        yield
    finally:
        stop.set()
        await task


async def plain(response: Callable[[], Any]) -> Any:
    """No framework."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        await response()(scope, receive, send)

    return app


async def starlette(response: Callable[[], Any]) -> Any:
    """Starlette, with a middleware that takes every response through a stream of its own."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.routing import Route

    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    async def endpoint(request: Any) -> Any:
        return response()

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]
    return Starlette(routes=[Route("/", endpoint)], middleware=middleware)


async def fastapi(response: Callable[[], Any]) -> Any:
    """FastAPI, likewise."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    async def endpoint():
        return response()

    @app.middleware("http")
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return app


APPS = (plain, starlette, fastapi)


class Caller:
    """A client; it reads only when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def call(cls, port: int, path: str = "/") -> "Caller":
        """Send a request."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return cls(reader, writer)

    async def read(self, count: int) -> bytes:
        """Read so many bytes, head included."""
        return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Read all there is until the connection ends."""
        found = b""
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(1 << 16):
                found += data
        return found

    def drop(self) -> None:
        """Be gone, without a word."""
        self.writer.transport.abort()


async def endless(size: int = 4) -> AsyncIterator[torch.Tensor]:
    """Latents for ever, as fast as they are wanted."""
    step = 0
    while True:
        yield torch.full((1, 1, 1, size, size), float(step % 200))
        step += 1
