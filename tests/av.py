"""What tests of video with sound share: a codec of sound without weights, and a scene of both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from streamvae import AVStream, Frame, stream_decode_av
from streamvae.abc import ChunkPlan
from streamvae.testing import FakeBackend, TagCodec, tagged_latents

from .flow import UNIT, no_task_left, no_thread_left, until


class Beeps(TagCodec):
    """Sound whose every sample says which latent it came from.

    Latents are (B, 1, T). Latent ``t`` of value ``v`` gives ``hop`` samples of ``v + t``, in both
    channels.

    Args:
        hop: Samples of every latent.
        rate: Samples a second.
        fail_at: As for `TagCodec`.
    """

    family = "Beeps"
    kind = "sound"
    layout = "BCT"

    def __init__(
        self, hop: int = 960, rate: int | None = 24000, *, fail_at: int | None = None
    ) -> None:
        super().__init__(fail_at=fail_at)
        self.hop = hop
        self.sample_rate = rate

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:
        """As many as asked for."""
        return ChunkPlan(latents_per_chunk or 4, latents_per_chunk or 4)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any."""

    def frames(self, latents: int) -> int:
        """Samples."""
        return self.hop * latents

    def picture(self, shape: tuple[int, ...]) -> None:
        """None."""

    def decoder(self) -> _Beeping:
        """A decoder that has seen nothing."""
        self.open_decoders += 1
        return _Beeping(self)


class _Beeping:
    def __init__(self, codec: Beeps) -> None:
        self._codec = codec
        self._seen = 0
        self._closed = False

    def begin(self, latents: torch.Tensor) -> None:
        """Nothing is done to all latents at once."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        end = self._seen + latents.shape[2]
        if self._codec.fail_at is not None and self._codec.fail_at < end:
            raise ValueError(f"latent {self._codec.fail_at} was to fail")
        values = latents + torch.arange(self._seen, end)
        self._seen = end
        return values.repeat_interleave(self._codec.hop, 2).expand(-1, 2, -1)

    def drain(self) -> None:
        return

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._codec.open_decoders -= 1


def silence(count: int, *, batch: int = 1) -> torch.Tensor:
    """Latents (batch, 1, count) for `Beeps`: zeros."""
    return torch.zeros(batch, 1, count)


@dataclass
class AVScene:
    """A device and two codecs, as a stream of both would find them: 24 frames, 25 latents a second.

    Attributes:
        frames: Of the video, from 8 latents a second of 3 frames each.
        latents: Of the sound.
    """

    latents: tuple[int, int] = (12, 36)
    rate: float = 24.0
    backend: FakeBackend = field(
        default_factory=lambda: FakeBackend(decode=10 * UNIT, download=3 * UNIT)
    )
    video: TagCodec = field(default_factory=lambda: TagCodec(8))
    audio: Beeps = field(default_factory=Beeps)

    def stream(self, **options: Any) -> AVStream:
        """A stream of both."""
        given = {"fps": self.rate, "backend": self.backend} | options
        latents = tagged_latents(self.latents[0]), silence(self.latents[1])
        return stream_decode_av(*latents, (self.video, self.audio), **given)

    @property
    def frames(self) -> int:
        """Of the whole video."""
        return self.video.frames(self.latents[0])

    @property
    def samples(self) -> int:
        """Of all the sound."""
        return self.audio.frames(self.latents[1])

    async def nothing_left(self) -> None:
        """Every task, thread, turn, slot and decoder was given back."""
        await no_task_left()
        no_thread_left()
        await until(lambda: not (self.backend.unfinished or self.backend.copying), "the device")
        codecs = self.video, self.audio
        await until(lambda: not any(codec.open_decoders for codec in codecs), "the decoders")

    def check(self, seen: list[Frame]) -> None:
        """Frames and blocks are in time order, none left out, each with all sound before it."""
        pictures = [frame.index for frame in seen if not frame.is_sound]
        assert pictures == list(range(len(pictures)))
        heard = 0
        for before, frame in zip([None, *seen], seen, strict=False):
            assert before is None or (before.time or 0) <= (frame.time or 0)
            if frame.is_sound:
                assert frame.index == heard
                heard += len(frame.data)
        assert Counter(frame.time is None for frame in seen)[True] == 0
