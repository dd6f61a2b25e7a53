"""Many clients who come and go as they like, and what is left of them: nothing."""

import asyncio
import random
from pathlib import Path

from streamvae.testing import TagCodec

from .serving import Served, npy, served, until

CLIENTS = 500
AT_ONCE = 60

HEADS = {
    "jpegs": "GET /jobs/{job}/frames.jpegs?policy=latest HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "mjpeg": "GET /jobs/{job}/frames.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "mp4": "GET /jobs/{job}/frames.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "events": "GET /jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "socket": "GET /jobs/{job} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "live": "GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "upload": "POST /decode?name=part HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Length: {length}\r\n\r\n",
    "nonsense": "GET /jobs/{job}/frames.jpegs HT",
}


async def come_and_go(server: Served, job: str, dice: random.Random, body: bytes) -> None:
    """Ask for something, take a part of it or nothing, and break off."""
    kind = dice.choice(list(HEADS))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(HEADS[kind].format(job=job, length=len(body)).encode())
        if kind == "upload":
            writer.write(body[: dice.randrange(len(body))])
        if dice.random() < 0.7:
            async with asyncio.timeout(dice.random() * 0.1):
                while await reader.read(dice.choice((10, 1000, 100_000))):
                    pass
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()


async def test_five_hundred_clients_come_and_go(tmp_path: Path) -> None:
    """However they break off, no task, file, slot or job is left, and the next job is right."""
    dice, codec, body = random.Random(7), TagCodec(), npy(16, size=32)
    async with served(folder=tmp_path, codec=codec) as server:
        before = asyncio.all_tasks()
        room = asyncio.Semaphore(AT_ONCE)
        job = ""

        async def client() -> None:
            async with room:
                await come_and_go(server, job, dice, body)

        for _ in range(5):  # jobs, one after another, that clients are cut off from
            job = await server.job(npy(300), start="viewer", on_idle="cancel")
            await asyncio.gather(*(client() for _ in range(CLIENTS // 5)))
        await server.client.delete(f"/jobs/{job}")
        await server.client.aclose()
        await until(lambda: server.site.uploads.active == 0 and server.site.jobs.open == 0)
        await until(lambda: not asyncio.all_tasks() - before)
        await server.site.jobs.settled()
        service = server.site.service
        assert service.active == service.waiting == 0
        assert codec.open_decoders == 0
        assert not list(tmp_path.glob(".uploads-*/*"))
    async with served(codec=codec) as server:
        told = await server.over(await server.job(body))
        assert (told["state"], told["frames"]) == ("done", 16)
