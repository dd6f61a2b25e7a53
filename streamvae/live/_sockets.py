"""Frames over a WebSocket, as fast as the client takes them and never faster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Mapping
from urllib.parse import parse_qs

import anyio

from .._errors import UsageError
from ._admission import Busy
from ._asgi import PATIENCE
from ._broadcast import Broadcast
from ._credits import Credits, UnwelcomeError, heard
from ._events import info_told, stats_told
from ._hosted import FrameSource, Hosted, OnDisconnect
from ._packets import Packet
from ._policies import Latest, Policy
from ._responses import record
from ._shutdown import Receive, Scope, Send, Shutdown
from ._stay import GoneError, Sender, given_back, shutdown_of, stay, watch
from ._subscription import Subscription

#: The most frames that a client may be given without an answer, whatever it asks for.
MOST = 64

#: Codes that a WebSocket is closed with.
_NORMAL, _GOING_AWAY, _UNWELCOME, _FAILED, _LATER = 1000, 1001, 1008, 1011, 1013

#: Bytes of a close frame's reason.
_REASON = 123


class WebSocketFrames:
    """JPEG frames over a WebSocket, with credits; an ASGI callable for ``websocket`` scopes.

    The server sends binary messages, one frame each, numbers big-endian: uint32 frame index,
    float64 seconds from the start (NaN where the stream has no ``fps``), JPEG file. Its text
    messages are JSON: ``{"event": "info", ...}`` before the first frame, ``{"event": "progress",
    "frames": ..., "dropped": ..., ...}`` now and then (as `Events` has them), at last
    ``{"event": "end", ...}`` or ``{"event": "error", "error": <type>, "detail": <message>}``.

    The client answers each frame it has dealt with by the text message ``{"ack": <index>}``, which
    stands for all before it as well. At most ``credit`` frames are unanswered; meanwhile newer
    frames take the place of older ones, and what is missed is a gap in the index. So a client that
    is slow, or a tab that is asleep, gets few frames, and none of them late. The client may ask for
    another bound by ``?credit=``, 1 to 64.

    It is closed with 1000 at the end, 1011 when the stream fails, 1013 when a service is `Busy`
    (the error says ``retry_after``), 1001 when the server stops, 1008 when the client says anything
    else. Turn compression off in the server (uvicorn
    ``--ws-per-message-deflate false``): JPEG does not get any smaller.

    Args:
        source: Where frames come from, as in `JPEGStream`.
        credit: Frames unanswered at most, unless the client asks for another bound.
        policy: What happens when the client is slower than the decode.
        interval: Seconds between two ``progress`` at least.
        on_disconnect: As in `JPEGStream`.
        clip: Which item of a batch of clips.
        send_timeout: Seconds a client may take nothing before it counts as gone; None: any.

    Raises:
        UsageError: The source is none, or an option is out of range.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        credit: int = 4,
        policy: Policy = Latest(),  # noqa: B008  # frozen
        interval: float = 0.25,
        on_disconnect: OnDisconnect | None = None,
        clip: int = 0,
        send_timeout: float | None = PATIENCE,
    ) -> None:
        if isinstance(credit, bool) or credit not in range(1, MOST + 1):
            raise UsageError(f"expected credit in 1..{MOST}, got {credit!r}")
        if not interval > 0:
            raise UsageError(f"expected interval above 0 s, got {interval!r}")
        if send_timeout is not None and not send_timeout > 0:
            raise UsageError(f"expected send_timeout above 0 s or None, got {send_timeout!r}")
        Hosted(source, on_disconnect)  # refuse what is none now, not at the first client
        self._source = source
        self._credit = credit
        self._policy = policy
        self._interval = interval
        self._on_disconnect = on_disconnect
        self._clip = clip
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client.

        Raises:
            UsageError: It is no WebSocket.
            Exception: What the stream raised, once the client was told.
        """
        if scope["type"] != "websocket":
            raise UsageError(f"expected a WebSocket, got ASGI scope {scope['type']!r}")
        shutdown = shutdown_of(scope)
        watch(shutdown)
        line = _Line(Sender(send, self._send_timeout))
        with contextlib.suppress(GoneError):
            if (await receive())["type"] != "websocket.connect":
                return
            await line.accept()
            account = Credits(_asked(scope, self._credit))
            await self._served(line, account, receive, shutdown)

    async def _served(
        self, line: _Line, account: Credits, receive: Receive, shutdown: Shutdown | None
    ) -> None:
        try:
            ending = await stay(
                lambda: self._fill(line, account, shutdown),
                lambda: heard(receive, account),
                shutdown,
            )
        except UnwelcomeError as error:
            await line.close(_UNWELCOME, str(error))
        except Busy as busy:
            await line.tell("error", {**_failed(busy), "retry_after": busy.retry_after})
            await line.close(_LATER, str(busy))
        except Exception as error:
            await line.tell("error", _failed(error))
            await line.close(_FAILED, type(error).__name__)
            raise
        else:
            if ending == "done":
                await line.close(_NORMAL)
            elif ending == "stopped":
                await line.close(_GOING_AWAY, "the server stops")

    async def _fill(self, line: _Line, account: Credits, shutdown: Shutdown | None) -> None:
        hosted, gone = Hosted(self._source, self._on_disconnect), True
        try:
            broadcast = await hosted.broadcast(shutdown)
            packets = broadcast.packets("jpeg", self._policy, clip=self._clip)
            async with given_back(packets), packets:
                hosted.begin()
                await self._show(line, account, packets, broadcast)
            gone = False
        finally:
            await hosted.leave(gone=gone)

    async def _show(
        self,
        line: _Line,
        account: Credits,
        packets: Subscription[Packet],
        broadcast: Broadcast,
    ) -> None:
        await line.tell("info", info_told(await broadcast.opened()))
        progress = _Progress(broadcast, packets, self._interval)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                packet = await _next(packets, account, self._interval)
                if packet is not None:
                    account.sent(packet.index)
                    await line.show(packet)
                if progress.due():
                    await line.tell("progress", progress.told())
        await line.tell("end", progress.told())


class _Line:
    """What the server says over a WebSocket."""

    def __init__(self, send: Sender) -> None:
        self._send = send

    async def accept(self) -> None:
        """Open it."""
        await self._send({"type": "websocket.accept"})

    async def tell(self, event: str, data: Mapping[str, object]) -> None:
        """Send an event."""
        text = json.dumps({"event": event, **data}, separators=(",", ":"), default=str)
        await self._send({"type": "websocket.send", "text": text})

    async def show(self, packet: Packet) -> None:
        """Send a frame."""
        await self._send({"type": "websocket.send", "bytes": record(packet)})

    async def close(self, code: int, reason: str = "") -> None:
        """Close it."""
        short = reason.encode()[:_REASON].decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": code, "reason": short})


def _failed(error: Exception) -> dict[str, object]:
    return {"error": type(error).__name__, "detail": str(error)}


class _Progress:
    """When to tell how far it is, and what."""

    def __init__(
        self, broadcast: Broadcast, packets: Subscription[Packet], interval: float
    ) -> None:
        self._broadcast, self._packets, self._interval = broadcast, packets, interval
        self._now = asyncio.get_running_loop().time
        self._told, self._frames = -math.inf, -1

    def due(self) -> bool:
        """Whether it has moved, and was not told of just now; notes that it will be."""
        now, frames = self._now(), self._broadcast.stats.frames
        if frames == self._frames or now - self._told < self._interval:
            return False
        self._told, self._frames = now, frames
        return True

    def told(self) -> dict[str, object]:
        """All that is told."""
        watching = {"viewers": self._broadcast.viewers, "dropped": self._packets.dropped}
        return {**stats_told(self._broadcast.stats), **watching}


async def _next(packets: Subscription[Packet], account: Credits, seconds: float) -> Packet | None:
    """The newest frame as soon as one may be sent; None if there is none within ``seconds``.

    Raises:
        StopAsyncIteration: There are no more.
    """
    with anyio.move_on_after(seconds):
        await account.room()  # first of all: the longer it takes, the newer is the frame
        return await anext(packets)
    return None


def _asked(scope: Scope, default: int) -> int:
    """The bound that the client has asked for; what is none is not heard."""
    query = scope.get("query_string", b"")
    text = query.decode("latin-1") if isinstance(query, bytes) else ""
    asked = parse_qs(text).get("credit", [""])[0]
    return (
        int(asked) if asked.isdecimal() and len(asked) < 4 and 1 <= int(asked) <= MOST else default
    )
