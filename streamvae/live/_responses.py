"""Frames as the body of a response: length-prefixed JPEG, MJPEG, fragmented MP4."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import ClassVar

from ._asgi import PATIENCE, Body, StreamResponse
from ._broadcast import Broadcast
from ._hosted import FrameSource, Hosted, OnDisconnect
from ._packets import Packet, PacketFormat
from ._policies import Block, Policy
from ._shutdown import Shutdown
from ._stay import given_back
from ._subscription import Subscription

_RECORD = struct.Struct(">Id")
_LENGTH = struct.Struct(">I")

_PART = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
_LAST = b"--frame--\r\n"


def record(packet: Packet) -> bytes:
    """A JPEG packet for the wire: uint32 frame index, float64 seconds (NaN: unknown), JPEG file.

    Big-endian. A WebSocket message is one record; in a body each has its length before it.
    """
    time = math.nan if packet.time is None else packet.time
    return _RECORD.pack(packet.index, time) + packet.data


class Records:
    """Wraps packets for one client. This one: each as a `record` behind its length.

    Args:
        frames: How many there will be, if that is known.
    """

    def __init__(self, frames: int | None) -> None:
        self._frames = frames

    def kind(self, header: bytes) -> str | None:  # noqa: ARG002
        """The body's media type, where it is known no earlier than with the first packet."""
        return None

    def first(self, header: bytes) -> bytes:  # noqa: ARG002
        """What comes before the first packet."""
        return b""

    def packet(self, packet: Packet) -> bytes:
        """A packet and all that can be sent with it."""
        data = record(packet)
        return _LENGTH.pack(len(data)) + data

    def last(self) -> bytes:
        """What comes after the last packet."""
        return b""


class Parts(Records):
    """Wraps packets as parts of a multipart, each with the head of the next one behind it."""

    def __init__(self, frames: int | None) -> None:
        super().__init__(frames)
        self._shown: Packet | None = None
        self._ended = False

    def first(self, header: bytes) -> bytes:  # noqa: ARG002
        """The head of the first part."""
        return _PART

    def packet(self, packet: Packet) -> bytes:
        """The part, and the head of the next one; the end, if it is known to be the last."""
        self._shown, self._ended = packet, packet.index + 1 == self._frames
        return packet.data + b"\r\n" + (_LAST if self._ended else _PART)

    def last(self) -> bytes:
        """The end: the part whose head has gone out already is the last frame once more."""
        if self._ended or self._shown is None:
            return b""
        return self._shown.data + b"\r\n" + _LAST


class Fragments(Records):
    """Passes on an MP4's beginning and its fragments as they are."""

    def kind(self, header: bytes) -> str | None:
        """With the profile and level of the H.264 in it, which Media Source Extensions need."""
        at = header.find(b"avcC")
        if at < 0:
            return None
        return f'video/mp4; codecs="avc1.{header[at + 5 : at + 8].hex().upper()}"'

    def first(self, header: bytes) -> bytes:
        """Ftyp and moov."""
        return header

    def packet(self, packet: Packet) -> bytes:
        """Moof and mdat."""
        return packet.data


class FrameResponse(StreamResponse):
    """A response that shows frames; its subclasses say how they go over the wire.

    The first byte is sent with the first frame. Give it a `Broadcast`, which may have many
    viewers; or a fresh stream (of `streamvae.stream_decode` or `Service.stream`), which is decoded
    for this client, at its pace, once; or a function that is awaited for a broadcast.

    Args:
        source: Where frames come from.
        policy: What happens when the client is slower than the decode. None: for a stream `Block`
            (every frame; decode and sinks wait for the client), for a broadcast what
            `Broadcast.packets` takes by default.
        on_disconnect: What the decode does when the client is gone: ``"cancel"`` (it stops within
            one chunk) or ``"finish"`` (it goes on to its sinks). None: a stream is cancelled, a
            broadcast does what its ``on_idle`` says. A broadcast with other viewers is never
            cancelled.
        clip: Which item of a batch of clips.
        headers: Sent besides its own.
        send_timeout: Seconds a client may take nothing before it counts as gone; None: any.

    Raises:
        UsageError: The source is none, or an option is unknown.
    """

    _format: ClassVar[PacketFormat] = "jpeg"
    _wrap: ClassVar[type[Records]] = Records

    def __init__(
        self,
        source: FrameSource,
        *,
        policy: Policy | None = None,
        on_disconnect: OnDisconnect | None = None,
        clip: int = 0,
        headers: Mapping[str, str] | None = None,
        send_timeout: float | None = PATIENCE,
    ) -> None:
        super().__init__(headers=headers, send_timeout=send_timeout)
        Hosted(source, on_disconnect)  # refuse what is none now, not at the first client
        self._source = source
        self._on_disconnect = on_disconnect
        self._policy = policy
        self._clip = clip

    async def _fill(self, body: Body, shutdown: Shutdown | None) -> None:
        hosted, gone = Hosted(self._source, self._on_disconnect), True
        try:
            broadcast = await hosted.broadcast(shutdown)
            policy = Block() if self._policy is None and hosted.owned else self._policy
            packets = broadcast.packets(self._format, policy, clip=self._clip)
            async with given_back(packets), packets:
                hosted.begin()
                await self._show(body, packets, broadcast)
            gone = False
        finally:
            await hosted.leave(gone=gone)

    async def _show(self, body: Body, packets: Subscription[Packet], broadcast: Broadcast) -> None:
        wrap: Records | None = None
        async for packet in packets:
            before = b""
            if wrap is None:
                wrap = self._wrap(broadcast.info.frames)
                before = wrap.first(packets.header)
                _typed(body, wrap.kind(packets.header))
            await body.write(before + wrap.packet(packet))
        if wrap is not None and (after := wrap.last()):
            await body.write(after)


def _typed(body: Body, kind: str | None) -> None:
    if kind is not None:
        others = [item for item in body.headers if item[0] != b"content-type"]
        body.headers = [(b"content-type", kind.encode("latin-1")), *others]


class JPEGStream(FrameResponse):
    """JPEG frames with their numbers, for a page that draws them (``fetch``) and for programs.

    The body, ``application/octet-stream``, is records, all numbers big-endian:

    ========  ======================================================================
    uint32    length of what follows of this record: 12 and the bytes of the JPEG
    uint32    frame index; a gap is what a slow client missed
    float64   seconds from the start; NaN where the stream has no ``fps``
    bytes     a JPEG file
    ========  ======================================================================

    It is complete if the body ends as HTTP has it (the last chunk), and broken off otherwise.
    """

    media_type = "application/octet-stream"


class MJPEG(FrameResponse):
    r"""JPEG frames for ``<img src=...>``: motion JPEG, without a line of JavaScript.

    The body is ``multipart/x-mixed-replace``; a part is ``--frame``, ``Content-Type: image/jpeg``
    and a JPEG file. Browsers paint a part when the next one begins, so the head of the next is sent
    with each, and no Content-Length. The last frame is followed by the end, ``--frame--``; where
    that it was the last was not known in time (latents that come one by one), it comes twice.
    """

    media_type = "multipart/x-mixed-replace; boundary=frame"
    _wrap = Parts


class MP4Stream(FrameResponse):
    """Fragmented MP4 (H.264), for Media Source Extensions and for players.

    The body is one MP4: ftyp and moov, then moof and mdat for each frame. Its media type names
    profile and level, ``video/mp4; codecs="avc1.64001F"``, as ``addSourceBuffer`` wants them. A
    client that is too slow for its policy misses frames until the next keyframe. Needs PyAV
    (``pip install 'streamvae[video]'``) and the stream's ``fps``.
    """

    media_type = "video/mp4"
    _format = "mp4"
    _wrap = Fragments
