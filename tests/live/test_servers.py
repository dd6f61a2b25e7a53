"""Responses under uvicorn and hypercorn: clients that go, and servers that are told to stop."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client

from streamvae.live import (
    MJPEG,
    Block,
    Broadcast,
    Events,
    JPEGStream,
    Shutdown,
    WebSocketFrames,
    graceful,
)
from streamvae.testing import FakeBackend, MemorySink, stuck_after, tagged_latents

from ..flow import Scene, until
from .asgi import records
from .servers import APPS, SERVERS, Caller, endless, plain, serving


def scene() -> Scene:
    """What a stream needs, with a device that is as fast as the machine."""
    return Scene(backend=FakeBackend(), sink=MemorySink())


def stopped(at: Scene) -> bool:
    """Whether the stream was ended early, and has given its decoder back."""
    return at.sink.calls == ["open", "abort"] and not at.codec.open_decoders


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("server", SERVERS)
async def test_gone_while_waiting(server: str, app: Any) -> None:
    """A client goes while there is no frame to send."""
    at = scene()
    made = await app(lambda: JPEGStream(at.stream(stuck_after(tagged_latents(2)))))
    async with serving(made, server) as port:
        client = await Caller.call(port)
        await client.read(400)
        client.drop()
        await until(lambda: stopped(at), "the decode stops")
    await at.nothing_left()


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("server", SERVERS)
async def test_gone_while_sending(server: str, app: Any) -> None:
    """A client goes in the middle of all that it gets."""
    at = scene()
    made = await app(lambda: JPEGStream(at.stream(endless())))
    async with serving(made, server) as port:
        client = await Caller.call(port)
        await client.read(20_000)
        client.drop()
        await until(lambda: stopped(at), "the decode stops")
    await at.nothing_left()


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("server", SERVERS)
async def test_gone_while_slow(server: str, app: Any) -> None:
    """A client that reads nothing holds the decode of its stream; when it goes, that stops."""
    at = scene()
    made = await app(lambda: JPEGStream(at.stream(endless())))
    async with serving(made, server) as port:
        client = await Caller.call(port)
        await client.read(400)
        await _still(at)
        client.drop()
        await until(lambda: stopped(at), "the decode stops")
    await at.nothing_left()


@pytest.mark.parametrize("server", SERVERS)
async def test_gone_and_finished(server: str) -> None:
    """With on_disconnect="finish" the sink gets every frame, though the server has moved on."""
    at = scene()
    at.backend = FakeBackend(decode=0.01)
    made = await plain(lambda: JPEGStream(at.stream(), on_disconnect="finish"))
    async with serving(made, server) as port:
        client = await Caller.call(port)
        await client.read(400)
        client.drop()
        await until(lambda: at.sink.calls == ["open", "close"], "the sink is complete")
    assert at.sink.tags == at.expected
    await at.nothing_left()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_websocket_that_goes(server: str) -> None:
    """The same over a WebSocket: frames come with credits, and a client that goes is noticed."""
    at = scene()
    made = await plain(lambda: WebSocketFrames(at.stream(endless()), credit=2, policy=Block()))
    async with serving(made, server) as port:
        url = f"ws://127.0.0.1:{port}/"
        async with websockets.asyncio.client.connect(url) as client:
            frames = 0
            async for message in client:
                if isinstance(message, bytes):
                    frames += 1
                    await client.send(f'{{"ack": {int.from_bytes(message[:4], "big")}}}')
                if frames == 20:
                    break
            client.transport.abort()
        await until(lambda: stopped(at), "the decode stops")
    await at.nothing_left()


@pytest.mark.parametrize("server", SERVERS)
async def test_an_error_breaks_the_connection_off(server: str) -> None:
    """No client takes the part before an error for the whole: the last chunk of HTTP is missing."""
    at = scene()
    at.codec.fail_at = 6
    made = await plain(lambda: JPEGStream(at.stream()))
    async with serving(made, server) as port:
        client = await Caller.call(port)
        assert not (await client.rest()).endswith(b"0\r\n\r\n")
        client.drop()
    at.codec.fail_at = None
    await at.nothing_left()


@pytest.mark.parametrize("server", SERVERS)
async def test_clients_that_come_and_go(server: str) -> None:
    """Clients drop at random moments: nothing of them is left, and the next one gets all of it."""
    rng, scenes = random.Random(7), list[Scene]()
    shared = scene()

    def made() -> Any:
        own = scene()
        scenes.append(own)
        stream = own.stream(endless())
        kind = rng.choice([JPEGStream, MJPEG, Events])
        if kind is Events:
            return Events(broadcast, interval=0.01)
        return kind(rng.choice([broadcast, stream]))

    async def client(port: int) -> None:
        caller = await Caller.call(port)
        if rng.random() < 0.7:
            await caller.read(rng.randrange(1, 3000))
        await asyncio.sleep(rng.random() * 0.05)
        caller.drop()

    async with (
        Broadcast(shared.stream(endless())) as broadcast,
        serving(await plain(made), server) as port,
    ):
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(client(port))
        await until(lambda: broadcast.viewers == 0, "no viewer is left")
        for each in scenes:
            await until(lambda each=each: not each.codec.open_decoders, "it is over")
    for each in scenes:
        assert each.sink.calls in ([], ["open", "abort"])
        await each.nothing_left()
    last = scene()
    async with serving(await plain(lambda: JPEGStream(last.stream())), server) as port:
        caller = await Caller.call(port)
        body = await _to_end(caller)
    frames = records(_unchunked(body))
    assert [index for index, _, _ in frames] == list(range(len(last.expected)))
    await last.nothing_left()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_that_stops(server: str) -> None:
    """A shutdown that is begun by hand ends open streams, so that the server's wait is short."""
    at, shutdown = scene(), Shutdown(1.5, margin=1)
    made = await plain(lambda: JPEGStream(at.stream(endless())))
    app = graceful(made, shutdown)
    began = 0.0
    async with serving(app, server) as port:
        client = await Caller.call(port)
        await client.read(400)
        shutdown.begin()
        began = asyncio.get_running_loop().time()
        assert not (await client.rest()).endswith(b"0\r\n\r\n")
        client.drop()
    assert asyncio.get_running_loop().time() - began < 5
    await until(lambda: stopped(at), "the decode stops")
    await at.nothing_left()


PROGRAM = """
import asyncio, socket, sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from streamvae import VideoFile, stream_decode
from streamvae.live import JPEGStream, Shutdown, graceful
from streamvae.testing import TagCodec
from tests.live.servers import endless

server, folder = sys.argv[1:3]
made = 0

async def slow():
    async for latent in endless(4):
        yield latent
        await asyncio.sleep(0.02)

async def app(scope, receive, send):
    global made
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    made += 1
    sink = VideoFile(f"{folder}/{made}.mp4", 25)
    stream = stream_decode(slow(), TagCodec(), sinks=sink, fps=25)
    await JPEGStream(stream, on_disconnect="finish")(scope, receive, send)

app = graceful(app, Shutdown(GRACE, margin=1.5))
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    if server == "uvicorn":
        import uvicorn
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=60)
        uvicorn.Server(config).run([listening])
    else:
        from hypercorn.asyncio import serve
        from hypercorn.config import Config
        config = Config()
        config.bind = [f"fd://{listening.fileno()}"]
        config.graceful_timeout = 60
        config.loglevel = "CRITICAL"
        asyncio.run(serve(app, config))
"""

#: Seconds of the server that is told to stop.
GRACE = 3.0


@pytest.mark.parametrize("server", SERVERS)
async def test_sigterm(server: str, tmp_path: Path) -> None:
    """With ten streams open it exits within its grace time, and what they wrote can be read."""
    import av

    program = PROGRAM.replace("GRACE", str(GRACE))
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, server, str(tmp_path), str(root)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    clients, now = list[Caller](), asyncio.get_running_loop().time
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        clients += await asyncio.gather(*(Caller.call(port) for _ in range(10)))
        for client in clients[:8]:
            await client.read(3000)
        for client in clients[:2]:
            client.drop()  # these go on alone, for their sinks
        process.send_signal(signal.SIGTERM)
        began = now()
        for client in clients[2:8]:  # the other two take nothing
            assert not (await client.rest()).endswith(b"0\r\n\r\n")
        await asyncio.wait_for(process.wait(), 30)
        took = now() - began
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for client in clients:
            client.drop()
    assert took < GRACE + 0.5  # and the interpreter's own end
    partial = sorted(tmp_path.glob("*.mp4.partial"))
    assert len(partial) == 10
    for path in partial:
        with av.open(str(path), format="mp4") as file:
            assert sum(1 for _ in file.decode(video=0)) > 5


async def _still(at: Scene) -> None:
    """Wait until the decode stands still."""
    before = -1
    while len(at.sink.tags) != before:
        before = len(at.sink.tags)
        await asyncio.sleep(0.1)


async def _to_end(caller: Caller) -> bytes:
    """All of a response on a connection that stays open."""
    found = b""
    while not found.endswith(b"0\r\n\r\n"):
        found += await caller.reader.read(1 << 16)
    caller.drop()
    return found


def _unchunked(raw: bytes) -> bytes:
    """The body of a response in chunks."""
    _, _, raw = raw.partition(b"\r\n\r\n")
    body = b""
    while raw:
        length, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(length, 16)], raw[int(length, 16) + 2 :]
    return body
