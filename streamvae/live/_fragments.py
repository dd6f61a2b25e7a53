"""An MP4 as a run of fragments, one a frame, each there as soon as its frame is encoded.

FFmpeg's muxer writes a frame's fragment when the *next* frame comes, and has no way (through PyAV)
to be asked for it. So it writes the file's beginning, and the fragments are written here: one of a
single sample is a hundred bytes of boxes (ISO/IEC 14496-12, 8.8).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

#: Of the beginning: no samples in it, and offsets that count from each fragment.
_MOVFLAGS = "empty_moov+default_base_moof"

#: Sample flags: it depends on no other; it depends on others and one cannot begin with it.
_SYNC, _OTHER = 0x02000000, 0x01010000


class Fragments:
    """What `streamvae.sinks._encoder.Encoder` writes to when somebody is watching.

    Attributes:
        header: The beginning of the file (ftyp and moov); there when the encoder is.
        made: Fragments that nobody has taken: whether one can begin with it, and its bytes.
    """

    isom = True

    def __init__(self) -> None:
        self.header = b""
        self.made: list[tuple[bool, bytes]] = []
        self._written = io.BytesIO()
        self._sequence = 0

    def video(self, encoder: str, rate: Fraction, options: dict[str, str]) -> VideoStream:
        """The one track there is."""
        self._rate = rate
        # As fine as FFmpeg's own, and a frame is a whole number of ticks.
        times = -(-10_000 // rate.numerator)
        self._scale, self._ticks = rate.numerator * times, rate.denominator * times
        told = {"movflags": _MOVFLAGS, "video_track_timescale": str(self._scale)}
        self._container = av.open(self._written, "w", format="mp4", options=told)
        stream = self._container.add_stream(encoder, rate=rate, options=options)
        assert isinstance(stream, VideoStream)  # noqa: S101  # the encoder is one of pictures
        return stream

    def ready(self) -> None:
        """Write the beginning."""
        self._container.start_encoding()
        self.header = self._written.getvalue()

    def mux(self, packets: Sequence[Packet[Stream]]) -> None:
        """Make a fragment of each packet."""
        for packet in packets:
            number = round((packet.pts or 0) * packet.time_base * self._rate)
            self._sequence += 1
            data = fragment(
                self._sequence,
                number * self._ticks,
                self._ticks,
                sample(bytes(packet)),
                key=packet.is_keyframe,
            )
            self.made.append((packet.is_keyframe, data))


def sample(stream: bytes) -> bytes:
    """H.264 as MP4 has it, each unit behind its length, from units behind start codes.

    No unit holds a start code, nor ends with a zero: the format sees to it (ITU-T H.264, annex B).
    """
    units = (unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:])
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


def fragment(sequence: int, start: int, ticks: int, data: bytes, *, key: bool) -> bytes:
    """A fragment of one sample.

    Args:
        sequence: Its number in the file, from 1.
        start: When it is shown, in ticks of the track.
        ticks: How long it is shown.
        data: The sample.
        key: Whether one can begin with it.
    """

    def moof(offset: int) -> bytes:
        flags = _SYNC if key else _OTHER
        # default-base-is-moof; then data-offset, and duration, size and flags of each sample.
        run = struct.pack(">IiIII", 1, offset, ticks, len(data), flags)
        track = (
            _full(b"tfhd", 0, 0x020000, struct.pack(">I", 1)),
            _full(b"tfdt", 1, 0, struct.pack(">Q", start)),
            _full(b"trun", 0, 0x000701, run),
        )
        header = _full(b"mfhd", 0, 0, struct.pack(">I", sequence))
        return _box(b"moof", header, _box(b"traf", *track))

    return moof(len(moof(0)) + 8) + _box(b"mdat", data)


def _box(name: bytes, *content: bytes) -> bytes:
    size = 8 + sum(map(len, content))
    return b"".join((struct.pack(">I", size), name, *content))


def _full(name: bytes, version: int, flags: int, content: bytes) -> bytes:
    return _box(name, struct.pack(">I", version << 24 | flags), content)
