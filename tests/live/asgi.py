"""A client of an ASGI app without a server: it sees every message, and is as slow as it likes."""

import asyncio
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from ..flow import until


@dataclass
class Visitor:
    """One client. `come` has the app answer it in a task; `ended` waits for that.

    ``takes``: messages it takes before it stalls (None: all). ``broken``: its connection fails as
    the specification has it, by an OSError of ``send``.
    """

    app: Any
    kind: str = "http"
    method: str = "GET"
    query: bytes = b""
    takes: int | None = None
    broken: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._taking = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.inside = 0

    def come(self) -> "Visitor":
        """Send the request."""
        first = {"type": "http.request", "body": b"", "more_body": False}
        self.say(first if self.kind == "http" else {"type": "websocket.connect"})
        scope = {"type": self.kind, "path": "/", "query_string": self.query, "headers": []}
        scope |= {"method": self.method} if self.kind == "http" else {}
        self.task = asyncio.create_task(self.app(scope | self.extra, self._receive, self._send))
        return self

    def say(self, message: dict[str, Any]) -> None:
        """Let the app hear it."""
        self._incoming.put_nowait(message)

    def ack(self, index: int) -> None:
        """Acknowledge frames up to ``index``."""
        self.say({"type": "websocket.receive", "text": json.dumps({"ack": index})})

    def leave(self) -> None:
        """Go."""
        self.say({"type": f"{self.kind}.disconnect"})

    def take(self) -> None:
        """Take all that comes from now on."""
        self.takes = None
        self._taking.set()

    async def ended(self) -> "Visitor":
        """Wait until the app is done with it; raises what it raised."""
        assert self.task is not None
        await self.task
        return self

    async def got(self, count: int) -> None:
        """Wait until so many messages have come."""
        await until(lambda: len(self.messages) >= count, f"{count} messages")

    async def _receive(self) -> dict[str, Any]:
        return await self._incoming.get()

    async def _send(self, message: dict[str, Any]) -> None:
        if self.broken and len(self.messages) >= 2:
            raise ConnectionResetError("the client is gone")
        self.inside += 1
        try:
            if self.takes is not None and len(self.messages) >= self.takes:
                await self._taking.wait()
        finally:
            self.inside -= 1
        assert isinstance(message.get("body", b""), bytes)
        self.messages.append(message)

    @property
    def status(self) -> int:
        """Of the response."""
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        """All of it so far."""
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def complete(self) -> bool:
        """Whether the body's end has come."""
        return self.messages[-1].get("more_body") is False

    @property
    def told(self) -> list[dict[str, Any]]:
        """Events that came over the WebSocket."""
        texts = (message.get("text") for message in self.messages)
        return [json.loads(text) for text in texts if text]

    @property
    def shown(self) -> list[int]:
        """Indices of the frames that came over the WebSocket."""
        records = (message.get("bytes") for message in self.messages)
        return [struct.unpack(">I", data[:4])[0] for data in records if data]


def records(body: bytes) -> list[tuple[int, float, bytes]]:
    """Index, time and JPEG of each record of a body."""
    found = []
    while body:
        (length,) = struct.unpack(">I", body[:4])
        record, body = body[4 : 4 + length], body[4 + length :]
        assert len(record) == length, "a record is cut off"
        found.append((*struct.unpack(">Id", record[:12]), record[12:]))
    return found
