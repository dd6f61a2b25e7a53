"""Frames over HTTP while they are decoded: an endpoint in twenty lines.

Serve it with ``uvicorn fastapi_endpoint:app``: http://localhost:8000/clip moves in every browser.
Run as a program it asks itself for a clip, then leaves in the middle of another.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from streamvae.live import MJPEG, Service
from streamvae.models import demo_latents

service = Service(max_streams=4)  # one autoencoder for everybody; who comes fifth waits
latents, fps = demo_latents()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Load the weights with the app, and let streams end with it."""
    async with service:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/clip", response_model=None)
async def clip(count: int = latents.shape[2]) -> MJPEG:
    """The first ``count`` latents of the clip; a client who leaves stops the decode."""
    return MJPEG(service.stream(latents[:, :, :count], fps=fps))


async def watch() -> None:
    """Ask for a clip and count its pictures."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://streamvae") as client:
        answer = await client.get("/clip", params={"count": 2})
    pictures = answer.content.count(b"Content-Type: image/jpeg")
    print(f"{answer.status_code}: {pictures} pictures, {len(answer.content)} bytes")


async def leave() -> None:
    """Be a client that goes away after the first picture."""
    gone = asyncio.Event()
    sent = 0

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal sent
        if message.get("body"):
            sent += 1
            gone.set()

    scope = {"type": "http", "method": "GET", "path": "/clip", "query_string": b"", "headers": []}
    await app({**scope, "asgi": {"spec_version": "2.3"}}, receive, send)
    everything = 4 * latents.shape[2] - 3
    print(f"left after {sent} of {everything} pictures: {service.active} streams go on")


async def main() -> None:
    """Be a client twice."""
    async with app.router.lifespan_context(app):
        await watch()
        await leave()


if __name__ == "__main__":
    asyncio.run(main())
