"""Sound to packets by PyAV."""

from __future__ import annotations

import logging
from fractions import Fraction

import numpy as np
from av import AudioFrame
from av.audio.stream import AudioStream

from streamvae._chunks import Array
from streamvae._errors import UsageError

from ._muxer import Muxer
from ._shared import SharedFile

_log = logging.getLogger("streamvae")

LAYOUTS = {1: "mono", 2: "stereo"}

#: Bits a second for each channel: hard to tell from the original.
BITRATES = {"aac": 96_000, "libopus": 64_000}

#: Rates the encoders take; others become the first.
RATES = {
    "aac": (
        *(48000, 96000, 88200, 64000, 44100, 32000, 24000, 22050, 16000, 12000, 11025),
        *(8000, 7350),
    ),
    "libopus": (48000, 24000, 16000, 12000, 8000),
}


class SoundEncoder:
    """Encodes sound into a track of a file.

    What the encoder puts before the first sample is told to the file (an edit list, a codec delay),
    so that players start with the first sample.

    Args:
        muxer: The file; this is its track of sound.
        encoder: FFmpeg's name of it, ``"aac"`` or ``"libopus"``.
        rate: Samples a second, as given; converted where the encoder does not take it.
        channels: 1 or 2.
        bitrate: Bits a second; None for `BITRATES`.
    """

    def __init__(
        self, muxer: Muxer, encoder: str, rate: int, channels: int, bitrate: int | None
    ) -> None:
        self.pictures = 0
        self._muxer = muxer
        self._rate = rate
        self._layout = LAYOUTS[channels]
        self._given = 0
        self._stream: AudioStream | None = muxer.audio(encoder, kept_rate(encoder, rate))
        context = self._stream.codec_context
        context.layout = self._layout
        context.bit_rate = bitrate or BITRATES[encoder] * channels
        context.open()  # a bad option shows here
        muxer.ready()

    @property
    def begun(self) -> bool:
        """Whether it was given a sample."""
        return self._given > 0

    def encode(self, rows: Array) -> None:
        """Encode samples (n, C), float32; what is beyond [-1, 1] is cut off."""
        assert self._stream is not None  # noqa: S101  # nothing comes after the flush
        planes = np.ascontiguousarray(np.clip(rows.T, -1, 1), np.float32)
        frame = AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
        frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
        frame.pts = self._given
        self._given += len(rows)
        self._muxer.mux(self._stream.encode(frame))

    def flush(self) -> None:
        """Write out what the encoder holds, then `release`."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._muxer.mux(stream.encode(None))

    def release(self) -> None:
        """Let go of the encoder without writing out what it holds."""
        self._stream = None


def kept_rate(encoder: str, rate: int) -> int:
    """Samples a second in the file, for sound of ``rate``."""
    return rate if rate in RATES[encoder] else RATES[encoder][0]


def encoder_into(
    shared: SharedFile, sink: str, rate: int, channels: int, bitrate: int | None
) -> SoundEncoder:
    """An encoder of the file's kind, whose track ``shared`` completes.

    Raises:
        UsageError: Neither mono nor stereo, said in the name of ``sink``.
    """
    if channels not in LAYOUTS:
        raise UsageError(f"sink {sink}: expected 1 or 2 channels, got {channels}")
    encoder = shared.kind.sound
    if (kept := kept_rate(encoder, rate)) != rate:
        _log.info("sink %s: %d Hz become %d Hz, for %s", sink, rate, kept, encoder)
    made = SoundEncoder(shared.writer(), encoder, rate, channels, bitrate)
    shared.add(made)
    return made
