"""Latents one by one in, frames out, over one WebSocket: for models that are still generating."""

from __future__ import annotations

import io
import json
import math
from collections.abc import AsyncGenerator

import anyio
import numpy as np
import torch

from .._errors import LatentsError
from ._broadcast import Broadcast
from ._credits import UnwelcomeError
from ._headers import LatentsHeader, declared_header, parse_header
from ._job import Job, Order
from ._problems import Problem
from ._query import Query
from ._shutdown import Message, Receive, Scope, Send
from ._site import Site
from ._sockets import WebSocketFrames

#: Latents that may wait for the decoder; then the client is not heard until it has taken one.
_ROOM = 4

#: Seconds without latents after which the stream ends: it holds a place that others wait for.
PATIENCE = 300.0


class LiveSocket:
    """One client of ``WS /live``; an ASGI callable.

    The client sends latents, each a binary message: a ``.npy`` or ``.safetensors`` file of (B, C,
    t, h, w), or raw little-endian numbers after a text message that says what they are,
    ``{"dtype": "float16", "shape": [1, 16, 1, 60, 104]}``. ``{"end": true}`` is the end; whoever
    just leaves stops the decode. ``{"ack": index}`` acknowledges frames.

    The server sends ``{"event": "job", ...}``, the job that others may watch as well, and then what
    `WebSocketFrames` sends. It reads no faster than it decodes: a client that is too fast waits.

    Args:
        site: What requests share.
        query: ``name``, ``fps``, ``credit``.
    """

    def __init__(self, site: Site, query: Query) -> None:
        self._site = site
        self._name, self._fps = query.name("live"), query.fps(site.settings.fps)
        self._raw: LatentsHeader | None = None
        self._put, self._taken = anyio.create_memory_object_stream[torch.Tensor](_ROOM)
        self._came = anyio.Event()
        self._job: Job | None = None
        self._complete = False
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client."""
        self._send = send

        async def heard() -> Message:
            """The next message that is not latents; these are taken."""
            while (message := await receive())["type"] == "websocket.receive":
                if not await self._take(message):
                    break
            return message

        try:
            await WebSocketFrames(self._broadcast)(scope, heard, send)
        finally:
            self._put.close()
            self._taken.close()
            # One that was told the end ends by itself: its file is being completed.
            if self._job is not None and not self._complete:
                await self._site.jobs.stop(self._job)

    async def _broadcast(self) -> Broadcast:
        """Make a job as soon as there are latents."""
        await self._came.wait()
        order = Order(
            self._name,
            self._latents(),
            self._fps,
            normalized=self._site.settings.normalized,
            on_idle="cancel",
        )
        self._job = self._site.jobs.add(order)
        text = json.dumps({"event": "job", **self._job.told()})
        await self._send({"type": "websocket.send", "text": text})
        return await self._job.broadcast()

    async def _latents(self) -> AsyncGenerator[torch.Tensor, None]:
        while True:
            try:
                with anyio.fail_after(PATIENCE):
                    latents = await self._taken.receive()
            except anyio.EndOfStream:
                return
            except TimeoutError:
                raise LatentsError(f"expected latents within {PATIENCE:g} s, got none") from None
            yield latents
            del latents

    async def _take(self, message: Message) -> bool:
        """Take latents or what is said of them; false for what is none of that."""
        data = message.get("bytes")
        if isinstance(data, bytes):
            try:
                latents = self._read(data)
            except Problem as problem:
                raise UnwelcomeError(problem.detail) from None
            try:
                await self._put.send(latents)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise UnwelcomeError("expected no more latents: the stream is over") from None
            self._came.set()
            return True
        return self._said(message.get("text"))

    def _said(self, text: object) -> bool:
        try:
            said = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            return False
        if not isinstance(said, dict):
            return False
        if said.get("end") is True:
            if not self._came.is_set():
                raise UnwelcomeError("expected latents before the end, got none")
            self._complete = True
            self._put.close()
            return True
        if "shape" in said:
            try:
                self._raw = declared_header(said.get("dtype"), said["shape"])
                self._site.check(self._raw)
            except Problem as problem:
                raise UnwelcomeError(problem.detail) from None
            return True
        return False

    def _read(self, data: bytes) -> torch.Tensor:
        if len(data) > self._site.settings.max_upload:
            raise Problem(413, f"expected {self._site.settings.max_upload} bytes at most")
        header = self._raw or parse_header(data, complete=True)
        assert header is not None  # noqa: S101  # a complete file has one, or is refused
        if len(data) != header.size:
            raise Problem(400, f"expected {header.size} bytes of latents, got {len(data)}")
        self._site.check(header)
        return _tensor(data, header)


def _tensor(data: bytes, header: LatentsHeader) -> torch.Tensor:
    """The latents, in memory of their own."""
    if header.format == "npy":
        array = np.load(io.BytesIO(data), allow_pickle=False)
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        return torch.from_numpy(native)
    # Of a .safetensors file, the library's own reader knows which part it is.
    if header.format == "safetensors":
        from safetensors.torch import load

        tensors = load(data)
        return tensors["latents"] if "latents" in tensors else next(iter(tensors.values()))
    count = math.prod(header.shape)
    return torch.frombuffer(bytearray(data), dtype=header.dtype, count=count).view(header.shape)
