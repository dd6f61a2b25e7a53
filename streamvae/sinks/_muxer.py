"""One container and its tracks: packets in, and how many pictures a reader would find."""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

import av
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from streamvae._locks import fork_safe_lock

from ._codecs import Container
from ._output import Output

_log = logging.getLogger("streamvae")

S = TypeVar("S", bound=Stream)

#: Seconds that FFmpeg waits for a packet of one track while those of another gather.
_PATIENCE = 10


class Muxer:
    """A file with one track of pictures, one of sound, or both; safe to use from two threads.

    The tracks are named beforehand: nothing is written before all of them are there, since what
    they are stands at the file's beginning. The packets of until then wait here.

    Args:
        file: Empty, writable, seekable.
        container: What kind of file.
        settle: Called when a fragment is in the file, before it counts.
        tracks: How many there will be.
    """

    def __init__(
        self,
        file: io.FileIO,
        container: Container,
        *,
        settle: Callable[[], None],
        tracks: int = 1,
    ) -> None:
        #: Pictures in whole fragments; a reader finds them, should the process die.
        self.committed = 0
        #: Seconds up to which all tracks are in whole fragments.
        self.until = Fraction(0)
        self.closed = False
        #: Whether it is closed, with all that it was given.
        self.whole = False
        self._lock = fork_safe_lock()
        self._output = Output(file, settle)
        self._container = av.open(
            self._output, "w", format=container.format, options=dict(container.options)
        )
        #: Whether it is of the family of MP4.
        self.isom = "movflags" in container.options
        self._awaited, self._several = tracks, tracks > 1
        self._rate = Fraction(1)
        self._behind = container.behind
        self._early: list[Packet[Stream]] = []
        self._keyframes: deque[tuple[Fraction, int]] = deque()

    def video(self, encoder: str, rate: Fraction, options: dict[str, str]) -> VideoStream:
        """A track of pictures, to be set up before `ready`."""
        with self._lock:
            stream = self._container.add_stream(encoder, rate=rate, options=options)
            self._rate = rate
        assert isinstance(stream, VideoStream)  # noqa: S101  # the encoder is one of pictures
        return stream

    def audio(self, encoder: str, rate: int) -> AudioStream:
        """A track of sound, to be set up before `ready`."""
        with self._lock:
            stream = self._container.add_stream(encoder, rate=rate)
        assert isinstance(stream, AudioStream)  # noqa: S101  # the encoder is one of sound
        return stream

    def ready(self, *, comes: bool = True) -> None:
        """Count one track as set up, or as one that will not come after all."""
        with self._lock:
            self._awaited -= 1
            self._several = self._several and comes
            if self._awaited == 0:
                self._begin()

    def mux(self, packets: Sequence[Packet[Stream]]) -> None:
        """Write packets, those of a track in the order of decoding.

        Raises:
            OSError: The file takes no more.
        """
        with self._lock:
            for packet in packets:
                if self._awaited:
                    self._early.append(packet)
                else:
                    self._write(packet)

    def close(self, pictures: int) -> None:
        """Write the index; ``pictures`` is how many there are in all. No more tracks will come."""
        with self._lock:
            self._begin()
            self._container.close()
            self.committed = pictures
            self.closed = self.whole = True

    def salvage(self, finish: Callable[[], None]) -> None:
        """Complete by ``finish``; where it fails, or a write has failed before, keep fragments."""
        if self.closed:
            return
        try:
            if not self._output.closed:
                finish()
        except Exception:  # noqa: BLE001  # PyAV's errors have no base of their own
            _log.debug("only whole fragments are kept", exc_info=True)
        if not self.closed:
            with self._lock:
                self._output.cut()
                self._container.close()  # sees that the output is closed, and writes no trailer
                self.closed = True

    def _begin(self) -> None:
        """Write what has waited for all tracks to be there."""
        self._awaited = 0
        early, self._early = self._early, []
        for packet in early:
            self._write(packet)

    def _write(self, packet: Packet[Stream]) -> None:
        shown, base = packet.pts or 0, packet.time_base
        time = Fraction(shown if packet.dts is None else packet.dts) * base
        pictures = isinstance(packet.stream, VideoStream)
        if pictures and packet.is_keyframe and shown > 0:
            self._keyframes.append((time, round(shown * base * self._rate)))
        self._container.mux(packet)
        if self._behind and time >= self.until + self._behind + 1:
            self._output.mark()
            self.until = time - self._behind
        # Groups of pictures are closed: a keyframe that is out has sent all before it out. With a
        # second track it is out when the other is beyond it, or when FFmpeg is tired of waiting.
        late = _PATIENCE if self._several and pictures else 0
        while self._keyframes and (not self._several or time > self._keyframes[0][0] + late):
            until, count = self._keyframes.popleft()
            self._output.mark()
            self.until, self.committed = until, count
