"""``.m4a`` and ``.opus``: sound that people play, in little room."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import MissingDependencyError, UsageError

from ._codecs import SOUNDS, expect_encoder
from ._durable import Sync
from ._shared import SharedFile
from ._sound_file import SoundFile

if TYPE_CHECKING:
    from ._sound_encoder import SoundEncoder


class AudioFile(SoundFile):
    """Sound in AAC (``.m4a``) or Opus (``.opus``): mono or stereo, clipped to [-1, 1].

    Rates that the encoder does not take become 48 kHz, which the log says: AAC takes 48, 44.1, 24
    kHz and others, Opus 48, 24, 16, 12 and 8. What is under ``.partial`` plays, also after a kill:
    `committed` counts samples, and lags 3 seconds or 4 behind what was accepted.

    Args:
        path: Where to.
        bitrate: Bits a second; by default 96,000 for each channel (AAC) or 64,000 (Opus).
        sample_rate: Samples a second of the sound; by default the stream's.
        overwrite: Whether a file of that name may be replaced.
        sync: As for `FileSink`.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: An option is out of range, or the suffix is neither.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        bitrate: int | None = None,
        sample_rate: int | None = None,
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        super().__init__(path, sample_rate=sample_rate, overwrite=overwrite, sync=sync)
        if find_spec("av") is None:
            raise MissingDependencyError("av", "writing AAC and Opus", "video")
        suffix = self.path.suffix.lower()
        if suffix not in SOUNDS:
            raise UsageError(f"expected a path ending in {' or '.join(SOUNDS)}, got {suffix!r}")
        if bitrate is not None and bitrate < 1:
            raise UsageError(f"expected bitrate to be at least 1, got {bitrate}")
        self._bitrate = bitrate
        self._shared = SharedFile(self._partial, SOUNDS[suffix])
        self._encoder: SoundEncoder | None = None

    @property
    def committed(self) -> int:
        """Samples that a reader finds for sure; all of them once the file is closed."""
        muxer = self._shared.muxer
        if muxer is None:
            return 0
        if muxer.whole:
            return self._accepted
        return min(self._accepted, math.floor(muxer.until * self._rate))

    def check(self, info: StreamInfo) -> None:
        """Refuse pictures, several pieces of sound, a missing sample rate or encoder."""
        super().check(info)
        import av

        expect_encoder(self._shared.kind.sound, av.codecs_available, av.__version__)

    def start(self, info: StreamInfo) -> None:
        """Check the stream and the place, as `FileSink` does."""
        self.check(info)
        self._info = info
        self._shared.enter(self)

    def put(self, chunk: HostChunk) -> None:
        """Encode a chunk."""
        rows = self.rows(chunk)
        encoder = self._encoder = self._encoder or self._begin(rows.shape[1])
        encoder.encode(rows)

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            UsageError: There was no sound, so nobody knows of how many channels.
        """
        if self._encoder is None:
            raise UsageError(f"sink {self.name}: expected at least one sample, got none")
        self._encoder.flush()
        self._shared.end(self)

    def stop(self) -> None:
        """Complete what there is; where that fails, keep whole fragments or pages."""
        self._shared.stop(self)

    def _begin(self, channels: int) -> SoundEncoder:
        from ._sound_encoder import encoder_into

        return encoder_into(self._shared, self.name, self._rate, channels, self._bitrate)
