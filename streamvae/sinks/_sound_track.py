"""The sound of a video file: a sink of its own that fills the same file."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import UsageError
from streamvae._identity import Identity

from ._codecs import expect_encoder
from ._shared import SharedFile
from ._thread import ThreadSink

if TYPE_CHECKING:
    from ._sound_encoder import SoundEncoder

#: Seconds of a packet of sound at most: one that straddles a keyframe may come after it.
_PACKET = Fraction(1, 20)


class SoundTrack(ThreadSink):
    """Takes the sound for a `VideoFile`, which makes it: `VideoFile.sound_track`.

    AAC in MP4, MOV and Matroska, Opus in WebM; mono or stereo. The file is complete when both are
    closed, in whichever order, and each may end before the other. Neither waits for the other:
    what comes too early is held, encoded, until the other is as far.

    Args:
        name: What it calls itself.
        shared: The file.
        bitrate: Bits a second.
    """

    def __init__(self, name: str, shared: SharedFile, bitrate: int | None) -> None:
        super().__init__(name)
        self._shared = shared
        self._bitrate = bitrate
        self._rate = 0
        self._channels = 0
        self._encoder: SoundEncoder | None = None

    @property
    def committed(self) -> int:
        """Samples that are in the file with the frames that are; all once it is closed."""
        muxer = self._shared.muxer
        if muxer is None:
            return 0
        if muxer.whole:
            return self._accepted
        return min(self._accepted, max(0, math.floor((muxer.until - _PACKET) * self._rate)))

    async def identify(self, identity: Identity) -> None:
        """Do nothing: the file's manifest is the pictures'."""

    async def resume(self, info: StreamInfo) -> int:
        """`open`, and make the track anew, as the pictures are."""
        self._shared.put_aside()
        await self.open(info)
        return 0

    async def recheck(self, chunk: HostChunk) -> bool:  # noqa: ARG002  # nothing is there
        """Never asked, as nothing is gone on with."""
        return False

    def start(self, info: StreamInfo) -> None:
        """Refuse what is no sound of one clip, and a PyAV without the encoder.

        Raises:
            UsageError: As `VideoFile.start`, too.
        """
        if info.kind != "sound" or info.output == "device":
            raise UsageError(
                f"sink {self.name} keeps sound on the host, got {info.kind}, {info.output!r}"
            )
        if info.sample_rate is None:
            raise UsageError(f"sink {self.name} needs a sample rate, got none")
        self._expect_one(info.batch or 1)
        import av

        encoder = self._shared.kind.sound
        expect_encoder(encoder, av.codecs_available, av.__version__)
        self._rate = info.sample_rate
        self._shared.enter(self)

    def put(self, chunk: HostChunk) -> None:
        """Encode a chunk."""
        self._expect_one(chunk.data.shape[0])
        if chunk.start != self._accepted:
            raise UsageError(
                f"sink {self.name}: expected the chunk at {self._accepted}, got {chunk.start}"
            )
        rows = chunk.data[0]
        encoder = self._encoder = self._encoder or self._begin(rows.shape[1])
        if rows.shape[1] != self._channels:
            raise UsageError(
                f"sink {self.name}: expected {self._channels} channels, got {rows.shape[1]}"
            )
        encoder.encode(rows)

    def finish(self) -> None:
        """Complete the track, and the file when its pictures are."""
        if self._encoder is None:
            self._shared.writer().ready(comes=False)
        else:
            self._encoder.flush()
        self._shared.end(self)

    def stop(self) -> None:
        """Stop filling the file, which is completed as far as it is when both have."""
        self._shared.stop(self)

    def _begin(self, channels: int) -> SoundEncoder:
        from ._sound_encoder import encoder_into

        self._channels = channels
        return encoder_into(self._shared, self.name, self._rate, channels, self._bitrate)

    def _expect_one(self, batch: int) -> None:
        if batch != 1:
            raise UsageError(f"sink {self.name} keeps one clip; expected batch 1, got {batch}")
