"""A codec without weights, whose every pixel says which latent of which stream it came from."""

from __future__ import annotations

import torch

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan


class TagCodec:
    """A video codec whose frames are tags: which latent they are of, and its place in the stream.

    Latents are (B, 1, T, h, w), float32; pictures are (8h, 8w) grey. Latent ``t`` of value ``v``
    gives ``frames_per_latent`` frames (the first latent one), all of the byte
    ``(v + number of latents seen) % 251``, so that a frame out of order, from another stream or
    from a decoder that lost its state, is another byte.

    Args:
        frames_per_latent: Frames of every latent but the first.
        held: Latents the decoder holds back and gives when drained, one each time.
        fail_at: Raise ValueError when the latent of this index comes.
    """

    family = "TagCodec"
    kind: Kind = "video"
    layout = "BCTHW"
    axis = 2
    channels = 1
    device = torch.device("cpu")
    dtype = torch.float32
    sample_rate: int | None = None
    exactness = "Frames are tags."
    wants_all = False
    needs_length = False

    def __init__(
        self, frames_per_latent: int = 1, *, held: int = 0, fail_at: int | None = None
    ) -> None:
        self.frames_per_latent = frames_per_latent
        self.held = held
        self.fail_at = fail_at
        #: Decoders made and not closed.
        self.open_decoders = 0

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """One latent, then as many as asked for."""
        if mode == "exact" and latents_per_chunk == 13:
            raise UsageError("expected any latents_per_chunk but 13, got 13")
        return ChunkPlan(1, latents_per_chunk or 1)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """None."""
        return ()

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse anything but (B, 1, T, h, w)."""
        if len(shape) != 5 or shape[1] != 1 or 0 in shape:
            raise LatentsError(f"expected latents of shape (B, 1, T, h, w), got {shape}")

    def frames(self, latents: int) -> int:
        """1 + (latents - 1) * frames_per_latent."""
        return 1 + (latents - 1) * self.frames_per_latent

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Eight times the latents' size."""
        return shape[3] * 8, shape[4] * 8

    def drains(self, latents: int) -> int:
        """As many as are held back."""
        return min(self.held, latents)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """One more."""
        return latents + 1

    def decoder(self) -> TagDecoder:
        """A decoder that has seen nothing."""
        self.open_decoders += 1
        return TagDecoder(self)

    def expected(self, latents: torch.Tensor) -> list[int]:
        """The byte of each frame that a right stream of ``latents`` gives (batch item 0)."""
        tags: list[int] = []
        for seen, value in enumerate(latents[0, 0, :, 0, 0].tolist()):
            times = 1 if seen == 0 else self.frames_per_latent
            tags += [int(value + seen) % 251] * times
        return tags


class TagDecoder:
    """One stream's state over a `TagCodec`: how many latents it has seen, and those held back."""

    def __init__(self, codec: TagCodec) -> None:
        self._codec = codec
        self._seen = 0
        self._given = 0
        self._held: list[torch.Tensor] = []
        self._closed = False

    def begin(self, latents: torch.Tensor) -> None:
        """Nothing is done to all latents at once."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Tag the latents' frames; hold the newest back if the codec does."""
        if self._closed:
            raise ClosedError("expected an open decoder, got a closed one")
        for step in range(latents.shape[2]):
            if self._seen == self._codec.fail_at:
                raise ValueError(f"latent {self._seen} was to fail")
            self._held.append((latents[:, :, step] + self._seen) % 251)
            self._seen += 1
        ready = len(self._held) - self._codec.held
        return self._give(ready) if ready > 0 else None

    def drain(self) -> torch.Tensor | None:
        """Give one latent's frames."""
        return self._give(1)

    def close(self) -> None:
        """Forget everything."""
        if not self._closed:
            self._closed = True
            self._held.clear()
            self._codec.open_decoders -= 1

    def _give(self, latents: int) -> torch.Tensor:
        frames: list[torch.Tensor] = []
        for _ in range(latents):
            tag = self._held.pop(0)
            times = 1 if self._given == 0 else self._codec.frames_per_latent
            frames += [tag] * times
            self._given += 1
        tags = torch.stack(frames, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        # Through quantise() the byte comes back exactly: (x / 2 + 1 / 2) * 255 = tag.
        return (tags / 255 * 2 - 1).expand(-1, 3, -1, -1, -1)
