"""One decode over WebSockets, to somebody quick and somebody slow: neither waits for the other.

The server has at most four frames on their way to each: a client acknowledges a frame when it has
dealt with it, and meanwhile newer frames take the place of older ones.
"""

import asyncio
import contextlib
import json
import socket
import struct

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from streamvae import stream_decode
from streamvae.live import Broadcast, WebSocketFrames
from streamvae.models import demo_latents

latents, fps = demo_latents()
broadcast = Broadcast(stream_decode(latents[:, :, :5, :8, :14], fps=fps))


class Watch:
    """The endpoint: frames of the broadcast, four unacknowledged at most."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client."""
        await WebSocketFrames(broadcast, credit=4)(scope, receive, send)


app = Starlette(routes=[WebSocketRoute("/watch", Watch())])


async def client(url: str, *, slow: bool) -> list[int]:
    """Watch, and return the numbers of the frames that came."""
    seen = []
    async with connect(url, max_size=None) as connection:
        async for message in connection:
            if isinstance(message, str):  # progress, as JSON
                continue
            index, _time = struct.unpack(">Id", message[:12])  # then the JPEG
            seen.append(index)
            if slow:
                await broadcast.finished()  # it deals with its first frame until all is decoded
            with contextlib.suppress(ConnectionClosedOK):  # that was the last one
                await connection.send(json.dumps({"ack": index}))
    return seen


async def both() -> None:
    """Return when both watch: it begins then, so that neither misses its beginning."""
    while broadcast.viewers < 2:  # noqa: ASYNC110  # a broadcast tells nobody who comes
        await asyncio.sleep(0.01)


async def main() -> None:
    """Serve and be both clients."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/watch"
        # Compression makes no JPEG smaller, and takes time.
        config = uvicorn.Config(app, log_level="warning", ws_per_message_deflate=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        watching = [asyncio.create_task(client(url, slow=slow)) for slow in (False, True)]
        await asyncio.wait_for(both(), 30)
        async with broadcast:
            quick, slow = await asyncio.gather(*watching)
        print(f"quick: {len(quick)} of {broadcast.stats.frames} frames")
        print(f"slow:  {len(slow)}, the last one among them: {slow}")
        server.should_exit = True
        await serving


asyncio.run(main())
