"""The app behind a real server, on the test's own loop, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from starlette.applications import Starlette

from streamvae.live import _app, _site
from streamvae.testing import TagCodec, tagged_latents


def npy(count: int = 5, *, size: int = 2, start: int = 0) -> bytes:
    """A file of latents for `TagCodec`."""
    return npy_of(tagged_latents(count, size=size, start=start).numpy())


def npy_of(array: np.ndarray) -> bytes:
    """A file of an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


async def until(state: Callable[[], bool]) -> None:
    """Wait for a state that nobody announces."""
    while not state():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


class Served:
    """A server and a client of it."""

    def __init__(self, app: Starlette, client: httpx.AsyncClient, port: int) -> None:
        self.app, self.client, self.port = app, client, port

    @property
    def site(self) -> _site.Site:
        return self.app.state.site

    async def job(self, body: bytes | None = None, **query: str) -> str:
        """Upload, and give the job's id."""
        response = await self.client.post("/decode", content=body or npy(), params=query)
        assert response.status_code == 201, response.text
        return response.json()["id"]

    async def over(self, job: str) -> dict:
        """Wait for its end, and give what is told of it."""
        await self.site.jobs[job].ended()
        return (await self.client.get(f"/jobs/{job}")).json()


@contextlib.asynccontextmanager
async def served(
    app: Starlette | None = None, *, folder: Path | None = None, codec: TagCodec | None = None
) -> AsyncIterator[Served]:
    """The app behind uvicorn on a free port of this machine."""
    app = app or _app.create_app(codec or TagCodec(), folder=folder)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            app, log_level="warning", lifespan="on", ws="websockets-sansio", loop="asyncio"
        )
        server = uvicorn.Server(config)
        # Not `serve`: that takes the process's signals.
        task = asyncio.create_task(server._serve([listening]))
        await until(lambda: server.started or task.done())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield Served(app, client, port)
        finally:
            server.should_exit = True
            await task


@contextlib.contextmanager
def threaded(app: Starlette) -> Iterator[str]:
    """The app behind uvicorn in a thread of its own, for clients that block; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_level="error", lifespan="on", loop="asyncio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listening])))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
