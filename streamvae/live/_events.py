"""Server-sent events: what a stream is, how far it has come, and how it ended."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, replace

import anyio

from .._chunks import StreamInfo
from .._errors import UsageError
from .._stats import StreamStats
from ._asgi import PATIENCE, Body, StreamResponse
from ._broadcast import Broadcast
from ._shutdown import Shutdown
from ._stay import given_back

#: An event: its name, and what its data say as JSON. Without a name: a comment, which keeps alive.
Event = tuple[str, Mapping[str, object]]

#: Chunks of each stage that are told of.
SPANS = 64

#: Seconds without an event after which a comment is sent: proxies close what is silent.
KEEP_ALIVE = 15.0

#: What events say of a stream.
_TOLD = (
    *("family", "kind", "output", "mode", "step", "device", "batch", "frames"),
    *("height", "width", "fps", "exactness", "notes", "latents_shape", "latents_per_chunk"),
)


def info_told(info: StreamInfo) -> dict[str, object]:
    """What is known of a stream, as JSON has it."""
    return {name: getattr(info, name) for name in _TOLD}


def stats_told(stats: StreamStats, spans: int = SPANS) -> dict[str, object]:
    """How far a stream is, as JSON has it: times in seconds, and in a sentence who limits it.

    Args:
        stats: Of the stream.
        spans: How many of each stage's last chunks are in ``timeline``: all of them would be
            megabytes, many times a second, and who listens has heard of the others.
    """
    last = [span for stage in stats.stages if spans for span in stats.of(stage.name)[-spans:]]
    return {
        **asdict(replace(stats, timeline=tuple(last))),
        "bottleneck": stats.bottleneck,
    }


class EventStream(StreamResponse):
    """Events as a browser's ``EventSource`` reads them, for as long as there are any.

    The body, ``text/event-stream``, is ``event: <name>``, ``data: <JSON in one line>`` and an empty
    line for each event. An event without a name goes out as a comment.

    Args:
        events: Called for each client; gives the events it gets, by name and data. When the client
            goes it is cancelled where it waits, or closed: shield what it awaits in a ``finally``.
        headers: Sent besides its own.
        send_timeout: Seconds a client may take nothing before it counts as gone; None: any.
    """

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        events: Callable[[], AsyncGenerator[Event, None]],
        *,
        headers: Mapping[str, str] | None = None,
        send_timeout: float | None = PATIENCE,
    ) -> None:
        super().__init__(headers=headers, send_timeout=send_timeout)
        self._events = events

    async def _fill(self, body: Body, shutdown: Shutdown | None) -> None:
        del shutdown
        # The head goes out at once: the client knows that it is heard.
        await body.write(b": streamvae\n\n")
        async with given_back(self._events()) as events:
            async for name, data in events:
                await body.write(encoded(name, data))


class Events(EventStream):
    """How far a broadcast is, as server-sent events.

    ============  ==================================================================================
    ``info``      what the stream is, once it is opened: family, kind, frames, height, width, fps...
    ``progress``  at most every ``interval`` s, when it has moved: frames, chunks, first_chunk and
                  total in seconds, stages with their times, bottleneck, and viewers
    ``end``       it is complete: the last ``progress`` once more
    ``error``     it failed or was stopped: ``{"error": "<type>", "detail": "<message>"}``
    ============  ==================================================================================

    ``end`` or ``error`` is the last one: close the ``EventSource`` then, or it will connect again.
    Comments come when there was no event for 15 s. Telling is no watching: a broadcast with
    ``on_idle="cancel"`` is not kept running by it.

    Args:
        broadcast: Whose.
        interval: Seconds between two ``progress`` at least.
        headers: Sent besides its own.
        send_timeout: Seconds a client may take nothing before it counts as gone; None: any.

    Raises:
        UsageError: It is no broadcast, or ``interval`` no time.
    """

    def __init__(
        self,
        broadcast: Broadcast,
        *,
        interval: float = 0.25,
        headers: Mapping[str, str] | None = None,
        send_timeout: float | None = PATIENCE,
    ) -> None:
        if not isinstance(broadcast, Broadcast):
            raise UsageError(f"expected a Broadcast to tell of, got {type(broadcast).__name__}")
        if not interval > 0:
            raise UsageError(f"expected interval above 0 s, got {interval!r}")
        super().__init__(
            lambda: told(broadcast, interval), headers=headers, send_timeout=send_timeout
        )


async def told(broadcast: Broadcast, interval: float) -> AsyncGenerator[Event, None]:
    """The events of `Events`, for one client."""
    try:
        yield "info", info_told(await broadcast.opened())
        frames, silence = -1, 0.0
        while not await _over(broadcast, interval if frames >= 0 else 0.0):
            silence += interval
            if broadcast.stats.frames != frames:
                frames, silence = broadcast.stats.frames, 0.0
                yield "progress", _progress(broadcast)
            elif silence >= KEEP_ALIVE:
                silence = 0.0
                yield "", {}
    except Exception as error:  # noqa: BLE001  # whatever ended the stream is told
        yield "error", {"error": type(error).__name__, "detail": str(error)}
    else:
        yield "end", _progress(broadcast)


async def _over(broadcast: Broadcast, seconds: float) -> bool:
    """Whether it ends within ``seconds``; raises what it ended with."""
    with anyio.move_on_after(seconds):
        await broadcast.finished()
        return True
    return False


def _progress(broadcast: Broadcast) -> dict[str, object]:
    return {**stats_told(broadcast.stats), "viewers": broadcast.viewers}


def encoded(name: str, data: Mapping[str, object]) -> bytes:
    """An event for the wire."""
    if not name:
        return b": keep-alive\n\n"
    text = json.dumps(data, separators=(",", ":"), default=str)
    return f"event: {name}\ndata: {text}\n\n".encode()
