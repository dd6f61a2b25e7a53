"""Responses: what goes over the wire, and what a client's departure does to the decode."""

import asyncio
import io
import json
import math
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from streamvae import ClosedError, UsageError
from streamvae.live import (
    MJPEG,
    Block,
    Broadcast,
    DropOldest,
    Events,
    EventStream,
    JPEGStream,
    MP4Stream,
    Shutdown,
    StreamResponse,
    WebSocketFrames,
    graceful,
)
from streamvae.live._admission import Busy
from streamvae.testing import MemorySink, one_by_one

from ..flow import UNIT, Scene, until, virtual
from .asgi import Visitor, records

FRAMES = (JPEGStream, MJPEG, MP4Stream)

#: Frames of a scene.
ALL = list(range(len(Scene().expected)))


def pixel(jpeg: bytes) -> int:
    """The tag that a picture carries, read from a JPEG."""
    return Image.open(io.BytesIO(jpeg)).convert("L").getpixel((4, 4))


def alike(jpegs: list[bytes], scene: Scene) -> bool:
    """Whether the pictures are those of the scene, to what JPEG makes of them."""
    pairs = zip(jpegs, scene.expected, strict=True)
    return all(abs(pixel(jpeg) - tag) <= 1 for jpeg, tag in pairs)


# What goes over the wire.


@virtual
async def test_jpeg_records() -> None:
    """Each frame is a record with its length, number and time, in a message of bytes of its own."""
    scene = Scene()
    client = await Visitor(JPEGStream(scene.stream(fps=8))).come().ended()
    assert client.status == 200
    assert client.headers["content-type"] == "application/octet-stream"
    found = records(client.body)
    assert [(index, time) for index, time, _ in found] == [(each, each / 8) for each in ALL]
    assert alike([jpeg for _, _, jpeg in found], scene)
    assert client.complete
    assert len(client.messages) == 1 + len(found) + 1
    await scene.nothing_left()
    assert scene.sink.calls == ["open", "close"]


@virtual
async def test_a_record_without_a_time() -> None:
    """Where there is no rate the time is NaN."""
    scene = Scene()
    client = await Visitor(JPEGStream(scene.stream())).come().ended()
    assert all(math.isnan(time) for _, time, _ in records(client.body))
    await scene.nothing_left()


@pytest.mark.parametrize("known", [True, False])
@virtual
async def test_mjpeg(known: bool) -> None:
    """The head of the next part goes out with each picture; the end is well formed."""
    scene = Scene()
    latents = scene.latents if known else one_by_one(scene.latents)
    client = await Visitor(MJPEG(scene.stream(latents))).come().ended()
    assert client.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
    head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    sent = [message["body"] for message in client.messages[1:]]
    assert sent[0].startswith(head)
    assert all(part.endswith(b"\r\n" + head) for part in sent[: len(ALL) - 1])
    body = client.body
    assert body.endswith(b"\r\n--frame--\r\n")
    pictures = body.removesuffix(b"\r\n--frame--\r\n").removeprefix(head).split(b"\r\n" + head)
    if not known:  # nobody knew that it was the last one
        assert pictures.pop() == pictures[-1]
    assert alike(pictures, scene)
    await scene.nothing_left()


@virtual
async def test_mp4(tmp_path: Path) -> None:
    """The body is an MP4 with every frame, and its media type names the codec."""
    scene = Scene()
    client = await Visitor(MP4Stream(scene.stream(fps=8))).come().ended()
    kind = client.headers["content-type"]
    assert kind.startswith('video/mp4; codecs="avc1.')
    assert len(kind) == len('video/mp4; codecs="avc1.64001F"')
    assert client.body[4:8] == b"ftyp"
    assert client.body.count(b"moof") == len(ALL)
    path = tmp_path / "body.mp4"
    path.write_bytes(client.body)
    import av

    with av.open(str(path)) as file:
        assert sum(1 for _ in file.decode(video=0)) == len(ALL)
    await scene.nothing_left()


def test_ffmpeg_reads_mjpeg(tmp_path: Path) -> None:
    """A reader of motion JPEG finds every frame."""
    import av

    async def body() -> bytes:
        scene = Scene()
        return (await Visitor(MJPEG(scene.stream())).come().ended()).body

    path = tmp_path / "body.mjpeg"
    path.write_bytes(asyncio.run(body()))
    found = 0
    with av.open(str(path), format="mpjpeg") as file, suppress(av.error.InvalidDataError):
        for packet in file.demux(video=0):  # which takes the end for a part that is broken
            found += packet.size > 0
    assert found == len(ALL)


@virtual
async def test_through_httpx() -> None:
    """A client library reads the body as it is."""
    scene = Scene()
    transport = httpx.ASGITransport(JPEGStream(scene.stream()))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        answer = await http.get("/")
    assert [index for index, _, _ in records(answer.content)] == ALL
    assert "content-length" not in answer.headers
    await scene.nothing_left()


@virtual
async def test_many_clients_of_one_broadcast() -> None:
    """One response serves any number of clients, each from the next frame on."""
    scene = Scene()
    async with Broadcast(scene.stream()) as broadcast:
        response = JPEGStream(broadcast, policy=DropOldest(64))
        clients = [Visitor(response).come() for _ in range(5)]
        for client in clients:
            await client.ended()
    assert all([index for index, _, _ in records(one.body)] == ALL for one in clients)
    await scene.nothing_left()


@virtual
async def test_head() -> None:
    """HEAD is answered, and nothing is decoded."""
    scene = Scene()
    client = await Visitor(JPEGStream(scene.stream()), method="HEAD").come().ended()
    assert client.status == 200
    assert client.body == b""
    assert scene.sink.calls == []


@virtual
async def test_headers_and_background() -> None:
    """Headers are added or replaced, and the framework's background task runs at the end."""
    scene, ran = Scene(), list[str]()

    async def background() -> None:
        ran.append("background")

    response = JPEGStream(scene.stream(), headers={"Cache-Control": "private", "X-Job": "7"})
    response.background = background
    client = await Visitor(response).come().ended()
    assert client.headers["cache-control"] == "private"
    assert client.headers["x-job"] == "7"
    assert ran == ["background"]
    await scene.nothing_left()


# A client that goes.


def visits() -> list[Any]:
    """Each kind of response, over HTTP and WebSocket."""
    return [*FRAMES, WebSocketFrames]


def visitor(response: Any, **options: Any) -> Visitor:
    """A client that fits it."""
    kind = "websocket" if isinstance(response, WebSocketFrames) else "http"
    return Visitor(response, kind, **options)


@pytest.mark.parametrize("make", visits())
@virtual
async def test_cancel(make: Any) -> None:
    """When the client of a stream goes, the decode stops and the sinks are told so."""
    scene = Scene()
    client = visitor(make(scene.stream(fps=8), **_all(make))).come()
    await client.got(3)
    client.leave()
    await client.ended()
    assert scene.sink.calls == ["open", "abort"]
    assert len(scene.sink.tags) < len(scene.expected)
    await scene.nothing_left()
    await scene.next_is_right()


@pytest.mark.parametrize("make", visits())
@virtual
async def test_finish(make: Any) -> None:
    """With on_disconnect="finish" it goes on to its sinks, and the request is over meanwhile."""
    scene = Scene()
    client = visitor(make(scene.stream(fps=8), on_disconnect="finish", **_all(make))).come()
    await client.got(3)
    client.leave()
    await client.ended()
    assert scene.sink.calls == ["open"]
    await until(lambda: "close" in scene.sink.calls, "the sink is complete")
    assert scene.sink.tags == scene.expected
    await scene.nothing_left()


@pytest.mark.parametrize("make", visits())
@virtual
async def test_a_client_that_takes_nothing_and_goes(make: Any) -> None:
    """It is noticed that a client goes while a message waits for it to be taken."""
    scene = Scene()
    client = visitor(make(scene.stream(fps=8), **_all(make)), takes=2).come()
    await until(lambda: client.inside == 1 and len(client.messages) == 2, "it takes nothing")
    now, began = asyncio.get_running_loop().time, asyncio.get_running_loop().time()
    client.leave()
    await client.ended()
    assert now() - began < 1
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@pytest.mark.parametrize("make", visits())
@virtual
async def test_a_connection_that_breaks(make: Any) -> None:
    """An OSError of ``send`` is a client that is gone, and no failure."""
    scene = Scene()
    await visitor(make(scene.stream(fps=8), **_all(make)), broken=True).come().ended()
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@pytest.mark.parametrize("make", visits())
@virtual
async def test_a_client_that_takes_nothing_for_long(make: Any) -> None:
    """After ``send_timeout`` it counts as gone."""
    scene = Scene()
    response = make(scene.stream(fps=8), send_timeout=5.0, **_all(make))
    await visitor(response, takes=2).come().ended()
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@pytest.mark.parametrize("make", visits())
@virtual
async def test_a_task_that_is_cancelled(make: Any) -> None:
    """A server that cancels the request's task (its patience is over) has everything back."""
    scene = Scene()
    client = visitor(make(scene.stream(fps=8), **_all(make))).come()
    await client.got(3)
    assert client.task is not None
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.ended()
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@virtual
async def test_a_broadcast_with_other_viewers_goes_on() -> None:
    """Only the last client's departure closes somebody else's broadcast, where that was asked."""
    scene = Scene()
    async with Broadcast(scene.stream()) as broadcast:
        response = JPEGStream(broadcast, on_disconnect="cancel")
        first, second = Visitor(response).come(), Visitor(response).come()
        await first.got(3)
        first.leave()
        await first.ended()
        assert not scene.sink.calls[1:]
        second.leave()
        await second.ended()
        assert scene.sink.calls == ["open", "abort"]
        with pytest.raises(ClosedError):
            await broadcast.finished()
    await scene.nothing_left()


@virtual
async def test_a_broadcast_is_left_alone() -> None:
    """Without on_disconnect the broadcast's own ``on_idle`` decides: here it goes on."""
    scene = Scene()
    async with Broadcast(scene.stream()) as broadcast:
        client = Visitor(JPEGStream(broadcast)).come()
        await client.got(3)
        client.leave()
        await client.ended()
        await broadcast.finished()
    assert scene.sink.tags == scene.expected
    await scene.nothing_left()


@virtual
async def test_a_client_that_goes_before_the_first_frame() -> None:
    """While a place or the first frame is waited for, a departure is noticed too."""
    entered = list[str]()

    @asynccontextmanager
    async def queue():
        entered.append("waiting")
        try:
            await asyncio.sleep(3600)
            yield
        finally:
            entered.append("left")

    client = Visitor(JPEGStream(queue())).come()
    await until(lambda: bool(entered), "it waits")
    client.leave()
    await client.ended()
    assert entered == ["waiting", "left"]
    assert client.messages == []


# What goes wrong.


@virtual
async def test_an_error_before_the_first_frame() -> None:
    """It is raised before anything was sent, so that the framework can answer it."""
    scene = Scene()
    scene.codec.fail_at = 0
    client = Visitor(JPEGStream(scene.stream())).come()
    with pytest.raises(ValueError, match="latent 0 was to fail"):
        await client.ended()
    assert client.messages == []
    scene.codec.fail_at = None
    await scene.nothing_left()


@virtual
async def test_an_error_in_the_middle() -> None:
    """The frames before it are sent, and the body does not end as a complete one would."""
    scene = Scene()
    scene.codec.fail_at = 5
    client = Visitor(JPEGStream(scene.stream())).come()
    with pytest.raises(ValueError, match="latent 5 was to fail"):
        await client.ended()
    assert [index for index, _, _ in records(client.body)] == ALL[: scene.codec.frames(5)]
    assert not client.complete
    scene.codec.fail_at = None
    await scene.nothing_left()


@virtual
async def test_an_error_that_no_client_is_there_to_see(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that fails after its client has left is in the log."""
    scene = Scene(sink=MemorySink(fail_at=9))
    client = Visitor(JPEGStream(scene.stream(), on_disconnect="finish")).come()
    await client.got(3)
    client.leave()
    await client.ended()
    await until(lambda: bool(caplog.records), "it is logged")
    assert caplog.records[0].getMessage() == "a stream whose client is gone failed"
    await scene.nothing_left()


@virtual
async def test_an_error_of_the_disk_is_no_departure() -> None:
    """An OSError of a sink is raised, though one of ``send`` is not."""
    scene = Scene(sink=MemorySink(fail_at=3))
    client = Visitor(JPEGStream(scene.stream())).come()
    with pytest.raises(OSError, match="the sink was to fail at chunk 3"):
        await client.ended()
    await scene.nothing_left()


@pytest.mark.parametrize("make", [JPEGStream, WebSocketFrames])
@virtual
async def test_a_busy_service(make: Any) -> None:
    """A service that has no room is answered with 503, and when to come again."""

    @asynccontextmanager
    async def busy():
        raise Busy(2.5)
        yield

    client = await visitor(make(busy())).come().ended()
    if make is JPEGStream:
        assert client.status == 503
        assert client.headers["retry-after"] == "3"
        assert client.complete
    else:
        assert client.told[-1] == {
            "event": "error",
            "error": "Busy",
            "detail": "the service is full; try again in 2 s",
            "retry_after": 2.5,
        }
        assert client.messages[-1]["code"] == 1013


@virtual
async def test_busy_after_the_first_byte() -> None:
    """What cannot be answered any more is raised."""

    class Late(StreamResponse):
        async def _fill(self, body: Any, shutdown: Any) -> None:
            await body.write(b"x")
            raise Busy(1)

    client = Visitor(Late()).come()
    with pytest.raises(Busy):
        await client.ended()
    assert client.body == b"x"
    assert not client.complete


@virtual
async def test_a_stream_is_shown_once() -> None:
    """A second client of a stream's response gets an error, not half of the frames."""
    scene = Scene()
    response = JPEGStream(scene.stream())
    await Visitor(response).come().ended()
    with pytest.raises(ClosedError):
        await Visitor(response).come().ended()
    await scene.nothing_left()


@virtual
async def test_a_function_that_is_awaited_for_a_broadcast() -> None:
    """A source may be waited for; a departure meanwhile is noticed."""
    scene, asked = Scene(), asyncio.Event()
    async with Broadcast(scene.stream()) as broadcast:

        async def found() -> Broadcast:
            await asked.wait()
            return broadcast

        patient, other = Visitor(JPEGStream(found)).come(), Visitor(JPEGStream(found)).come()
        other.leave()
        await other.ended()
        asked.set()
        await patient.ended()
    assert other.messages == []
    assert patient.complete
    await scene.nothing_left()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JPEGStream(42), "expected a Broadcast or a stream to show, got int"),
        (
            lambda: MJPEG(Scene().stream(), on_disconnect="stop"),
            "expected on_disconnect='cancel' or 'finish', got 'stop'",
        ),
        (
            lambda: MP4Stream(Scene().stream(), send_timeout=0),
            "expected send_timeout above 0 s or None, got 0",
        ),
        (lambda: Events(42), "expected a Broadcast to tell of, got int"),
        (lambda: Events(Broadcast(Scene().stream()), interval=0), "expected interval above 0 s"),
        (lambda: WebSocketFrames(42), "expected a Broadcast or a stream to show, got int"),
        (lambda: WebSocketFrames(Scene().stream(), credit=65), "expected credit in 1..64, got 65"),
        (lambda: WebSocketFrames(Scene().stream(), interval=0), "expected interval above 0 s"),
        (lambda: WebSocketFrames(Scene().stream(), send_timeout=0), "expected send_timeout"),
        (lambda: Shutdown(-1), "expected grace and margin of 0 s or more, got -1 and 2"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    """What is wrong is said before any client has come."""
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("make", [JPEGStream, WebSocketFrames])
@virtual
async def test_the_wrong_kind_of_request(make: Any) -> None:
    """A request that a response is not for is refused by an error that names it."""
    kind = "websocket" if make is JPEGStream else "http"
    with pytest.raises(UsageError, match=f"'{kind}'"):
        await Visitor(make(Scene().stream()), kind).come().ended()


# Events.


@virtual
async def test_events() -> None:
    """Info, progress as it moves, the end: as EventSource reads them."""
    scene = Scene()
    async with Broadcast(scene.stream(fps=8)) as broadcast:
        client = await Visitor(Events(broadcast, interval=4 * UNIT)).come().ended()
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = _events(client.body)
    names = [name for name, _ in events]
    assert names[0] == "info"
    assert set(names[1:-1]) == {"progress"}
    assert names[-1] == "end"
    assert events[0][1]["frames"] == len(ALL)
    assert events[0][1]["fps"] == 8
    counts = [data["frames"] for name, data in events if name == "progress"]
    assert counts == sorted(set(counts))
    assert events[-1][1]["frames"] == len(ALL)
    assert [stage["name"] for stage in events[-1][1]["stages"]] == ["decode", "download", "persist"]
    assert client.complete
    await scene.nothing_left()


@virtual
async def test_events_of_a_failure() -> None:
    """The error is the last event, and the body is complete: it was told."""
    scene = Scene()
    scene.codec.fail_at = 4
    async with Broadcast(scene.stream()) as broadcast:
        client = await Visitor(Events(broadcast)).come().ended()
    name, data = _events(client.body)[-1]
    assert (name, data) == ("error", {"error": "ValueError", "detail": "latent 4 was to fail"})
    assert client.complete
    scene.codec.fail_at = None
    await scene.nothing_left()


@virtual
async def test_events_keep_a_silent_connection_alive() -> None:
    """A comment comes every 15 s while nothing happens, and a departure is noticed."""
    scene = Scene(sink=MemorySink(seconds=3600))
    async with Broadcast(scene.stream()) as broadcast:
        client = Visitor(Events(broadcast)).come()
        await until(lambda: client.body.count(b": keep-alive\n\n") == 2, "it", seconds=100)
        client.leave()
        await client.ended()
    await scene.nothing_left()


@virtual
async def test_events_of_ones_own() -> None:
    """Anything can be told; the generator is closed when the client goes."""
    closed = list[bool]()

    async def ticks():
        try:
            yield "tick", {"n": 1}
            await asyncio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.1)
            closed.append(True)

    client = Visitor(EventStream(ticks)).come()
    await client.got(3)
    client.leave()
    await client.ended()
    assert _events(client.body) == [("tick", {"n": 1})]
    assert closed == [True]


def _events(body: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in body.decode().split("\n\n"):
        if block.startswith("event: "):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# WebSockets.


@virtual
async def test_websocket() -> None:
    """Info, frames, progress and the end; a client that answers gets every frame."""
    scene = Scene()
    client = Visitor(WebSocketFrames(scene.stream(fps=8), policy=Block()), "websocket").come()
    answered = 0
    while not client.task.done():
        await asyncio.sleep(UNIT)
        if client.shown and client.shown[-1] >= answered:
            client.ack(client.shown[-1])
            answered = client.shown[-1] + 1
    await client.ended()
    assert client.messages[0]["type"] == "websocket.accept"
    assert client.shown == ALL
    assert client.told[0]["event"] == "info"
    assert client.told[-1]["event"] == "end"
    assert client.told[-1]["dropped"] == 0
    assert client.messages[-1] == {"type": "websocket.close", "code": 1000, "reason": ""}
    await scene.nothing_left()


@pytest.mark.parametrize(("query", "credit"), [(b"", 3), (b"credit=7", 7), (b"credit=999", 3)])
@virtual
async def test_credits(query: bytes, credit: int) -> None:
    """No more frames go out unanswered than the client's credit; the newest comes after that."""
    scene = Scene()
    async with Broadcast(scene.stream()) as broadcast:
        response = WebSocketFrames(broadcast, credit=3)
        client = Visitor(response, "websocket", query=query).come()
        await broadcast.finished()
        await until(lambda: len(client.shown) == credit, "its credit is used up")
        await asyncio.sleep(10)
        assert client.shown == ALL[:credit]
        client.ack(client.shown[0])
        await until(lambda: len(client.shown) > credit, "one more")
        client.ack(client.shown[-1])
        await client.ended()
    assert client.shown == [*ALL[:credit], ALL[-1]], "the newest, and what is between is missed"
    assert client.told[-1]["dropped"] == len(ALL) - credit - 1
    await scene.nothing_left()


@pytest.mark.parametrize("said", ['{"ack": true}', "ack", "[1]", '{"nak": 1}', None, "[" * 100_000])
@virtual
async def test_a_client_that_says_anything_else(said: str | None) -> None:
    """It is told so and sent away, and nothing fails."""
    scene = Scene()
    client = Visitor(WebSocketFrames(scene.stream()), "websocket").come()
    await client.got(2)
    client.say({"type": "websocket.receive", "text": said, "bytes": b"x"})
    await client.ended()
    last = client.messages[-1]
    assert (last["code"], last["reason"]) == (1008, 'expected {"ack": <frame index>}')
    await scene.nothing_left()


@virtual
async def test_a_websocket_whose_stream_fails() -> None:
    """The client is told what happened, and the server too."""
    scene = Scene()
    scene.codec.fail_at = 2
    client = Visitor(WebSocketFrames(scene.stream()), "websocket").come()
    with pytest.raises(ValueError, match="latent 2 was to fail"):
        await client.ended()
    told = {"event": "error", "error": "ValueError", "detail": "latent 2 was to fail"}
    assert client.told[-1] == told
    assert client.messages[-1]["code"] == 1011
    scene.codec.fail_at = None
    await scene.nothing_left()


@virtual
async def test_a_websocket_that_is_gone_at_once() -> None:
    """A client that never connects costs nothing."""
    scene = Scene()
    client = Visitor(WebSocketFrames(scene.stream()), "websocket")
    client.leave()
    await client.come().ended()
    assert client.messages == []
    assert scene.sink.calls == []


# The end of the server.


@pytest.mark.parametrize("make", visits())
@virtual
async def test_shutdown(make: Any) -> None:
    """Open streams may run on for grace less margin, then they are ended; no new one is opened."""
    shutdown, scene = Shutdown(60, margin=10), Scene(sink=MemorySink(seconds=40))
    app = graceful(make(scene.stream(fps=8), **_all(make)), shutdown, signals=())
    client = (
        visitor(app).come() if make is not WebSocketFrames else Visitor(app, "websocket").come()
    )
    await until(lambda: shutdown.open == 2, "the client and its stream")
    clock, began = asyncio.get_running_loop().time, asyncio.get_running_loop().time()
    shutdown.begin()
    assert shutdown.stopping
    late = (
        await Visitor(graceful(JPEGStream(Scene().stream()), shutdown, signals=())).come().ended()
    )
    assert late.status == 503
    assert late.headers["retry-after"] == "60"
    await shutdown.over()
    assert 50 <= clock() - began < 60
    assert scene.sink.calls == ["open", "abort"]
    if make is WebSocketFrames:
        assert client.messages[-1]["code"] == 1001
    elif client.messages:
        with pytest.raises(ClosedError, match="the server stopped"):
            await client.ended()
        assert not client.complete
    await scene.nothing_left()


@virtual
async def test_a_client_that_still_waits_when_the_server_stops() -> None:
    """It is told to come again: nothing was sent to it yet."""
    shutdown, scene = Shutdown(60), Scene(sink=MemorySink(seconds=3600))
    client = Visitor(graceful(JPEGStream(scene.stream()), shutdown, signals=())).come()
    await until(lambda: scene.sink.calls == ["open"], "it waits")
    await shutdown.over()
    assert (await client.ended()).status == 503
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@virtual
async def test_what_does_not_end_in_time() -> None:
    """After the grace time a task is cancelled, and left to the server."""
    shutdown, ended = Shutdown(10), list[str]()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    task = asyncio.create_task(stubborn())
    shutdown.watch(task)
    await shutdown.over()
    assert asyncio.get_running_loop().time() == 10
    await asyncio.wait([task])
    assert ended == ["cancelled"]


@pytest.mark.parametrize("fails", [True, False])
@virtual
async def test_lifespan(fails: bool) -> None:
    """Signals are taken when the lifespan begins, and given back when it ends, however it does."""
    before, sent = signal.getsignal(signal.SIGUSR1), list[str]()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        if fails:
            await send({"type": "lifespan.startup.failed"})
            return
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    calls = list[int]()
    signal.signal(signal.SIGUSR1, lambda number, _: calls.append(number))
    mine = signal.getsignal(signal.SIGUSR1)
    try:
        wrapped = graceful(app, signals=[signal.SIGUSR1])
        task = asyncio.create_task(wrapped({"type": "lifespan"}, heard.get, send))
        heard.put_nowait({"type": "lifespan.startup"})
        await until(lambda: bool(sent), "it begins")
        if not fails:
            assert signal.getsignal(signal.SIGUSR1) is not mine
            signal.raise_signal(signal.SIGUSR1)
            await until(lambda: wrapped.shutdown.stopping, "it has heard")
            assert calls == [signal.SIGUSR1], "the server's own handler hears it, too"
            heard.put_nowait({"type": "lifespan.shutdown"})
        await task
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


@virtual
async def test_a_lifespan_that_is_cancelled() -> None:
    """Signals are given back then, too; a handler that somebody else has set since stays."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    before = signal.getsignal(signal.SIGUSR1)
    mine, others = lambda *_: None, lambda *_: None
    try:
        for later, expected in ((None, mine), (others, others)):
            signal.signal(signal.SIGUSR1, mine)
            wrapped = graceful(app, signals=[signal.SIGUSR1])
            task = asyncio.create_task(wrapped({"type": "lifespan"}, None, None))
            await asyncio.sleep(1)
            if later is not None:
                signal.signal(signal.SIGUSR1, later)
            task.cancel()
            await asyncio.wait([task])
            assert signal.getsignal(signal.SIGUSR1) is expected
    finally:
        signal.signal(signal.SIGUSR1, before)


@virtual
async def test_a_shutdown_that_finds_nothing() -> None:
    """It is over at once; and twice is no worse."""
    shutdown = Shutdown(60)
    await shutdown.over()
    await shutdown.over()
    assert asyncio.get_running_loop().time() == 0


@virtual
async def test_a_shutdown_waits_for_streams_that_end() -> None:
    """What ends by itself within the grace time is complete."""
    shutdown, scene = Shutdown(60), Scene()
    client = Visitor(graceful(JPEGStream(scene.stream()), shutdown, signals=())).come()
    await client.got(2)
    await shutdown.over()
    assert (await client.ended()).complete
    assert scene.sink.calls == ["open", "close"]
    await scene.nothing_left()


@virtual
async def test_a_second_signal() -> None:
    """Whoever asks twice does not wait."""
    shutdown, scene = Shutdown(3600), Scene(sink=MemorySink(seconds=40))
    app = graceful(JPEGStream(scene.stream(), on_disconnect="finish"), shutdown, signals=())
    client = Visitor(app).come()
    await until(lambda: bool(client.messages), "a frame", seconds=100)
    shutdown.begin()
    shutdown.begin()
    await shutdown.over()
    with pytest.raises(ClosedError):
        await client.ended()
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


# In other people's apps.


def test_no_framework_is_imported() -> None:
    """The responses work where no framework is installed."""
    program = (
        "import sys; from streamvae.live import JPEGStream, WebSocketFrames, graceful, Events; "
        "print([name for name in sys.modules if name in ('starlette', 'fastapi', 'uvicorn')])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert printed.stdout == "[]\n"


@pytest.mark.parametrize("annotated", [True, False])
@virtual
async def test_fastapi(annotated: bool) -> None:
    """An endpoint of FastAPI returns a response as it is, also with a middleware around it."""
    import fastapi

    scene, app, ran = Scene(), fastapi.FastAPI(), list[str]()

    async def endpoint(tasks: fastapi.BackgroundTasks):
        tasks.add_task(ran.append, "background")
        return MJPEG(scene.stream())

    if annotated:
        endpoint.__annotations__["return"] = MJPEG
    app.get("/video")(endpoint)

    @app.middleware("http")
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        answer = await http.get("/video")
        assert (await http.get("/openapi.json")).status_code == 200
    assert answer.content.endswith(b"--frame--\r\n")
    assert ran == ["background"]
    await scene.nothing_left()


@virtual
async def test_starlette() -> None:
    """A response is a route of Starlette; an isinstance of both."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Mount, WebSocketRoute

    scene = Scene()
    async with Broadcast(scene.stream()) as broadcast:
        pictures = JPEGStream(broadcast)
        assert isinstance(pictures, Response)
        assert isinstance(pictures, JPEGStream)
        assert isinstance(pictures, StreamResponse)
        assert type(JPEGStream(broadcast)) is type(pictures) is type(type(pictures)(broadcast))
        pictures.headers["x-more"] = "1"
        sockets = WebSocketRoute("/ws", WebSocketFrames(broadcast))
        app = Starlette(routes=[sockets, Mount("/frames", pictures)])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
            answer = await http.get("/frames/")
    assert answer.headers["x-more"] == "1"
    assert records(answer.content)
    await scene.nothing_left()


def _all(make: Any) -> dict[str, Any]:
    """So that a WebSocket's client without answers is still being served."""
    return {"credit": 64, "policy": Block()} if make is WebSocketFrames else {}
