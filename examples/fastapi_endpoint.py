"""Frames over HTTP while they are decoded, as a moving JPEG that every browser shows.

Serve it with ``uvicorn fastapi_endpoint:app`` and open http://localhost:8000/clip. Run as a
program it asks itself for a clip, then leaves in the middle of another.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from streamvae import Frame, stream_decode
from streamvae.models import default_vae, demo_latents

app = FastAPI()
latents, fps = demo_latents()
vae = default_vae()  # loaded once; any number of streams share it
streams_ended = asyncio.Event()


def jpeg(frame: Frame) -> bytes:
    """One picture as JPEG."""
    file = io.BytesIO()
    frame.to_pil().save(file, "JPEG", quality=85)
    return file.getvalue()


async def parts(count: int) -> AsyncIterator[bytes]:
    """The clip's pictures, each a part of one endless document."""
    try:
        # When the client goes, this generator is closed, and with it the stream.
        async with stream_decode(latents[:, :, :count], vae, fps=fps) as stream:
            async for frame in stream:
                picture = await asyncio.to_thread(jpeg, frame)
                head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
                yield head + picture + b"\r\n"  # noqa: ASYNC119  # a stream may be left anywhere
    finally:
        streams_ended.set()


@app.get("/clip")
async def clip(count: int = latents.shape[2]) -> StreamingResponse:
    """The first ``count`` latents of the clip."""
    return StreamingResponse(parts(count), media_type="multipart/x-mixed-replace; boundary=frame")


async def watch() -> None:
    """Ask for a clip and count its pictures."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://streamvae") as client:
        answer = await client.get("/clip", params={"count": 2})
    pictures = answer.content.split(b"--frame\r\n")[1:]
    print(f"{answer.status_code}: {len(pictures)} pictures, {len(answer.content)} bytes")


async def leave() -> None:
    """Be a client that goes away after the first picture."""
    streams_ended.clear()
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
    await asyncio.wait_for(streams_ended.wait(), 30)
    print(f"the client left after {sent} of {4 * latents.shape[2] - 3} pictures: stopped")


async def main() -> None:
    """Be a client twice."""
    await watch()
    await leave()


if __name__ == "__main__":
    asyncio.run(main())
