"""Sound that cannot be streamed, decoded all the same: at once, when the last latent has come."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from streamvae._errors import LatentsError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._decoder import StreamDecoder
from ._module import ModuleCodec, check_count, check_shape

_LATENTS_PER_CHUNK = 32


class MMAudio(ModuleCodec):
    """MMAudioVAE: (B, C, T) to mel spectrograms (B, bins, 2T), all at once.

    Its attention goes over all time, so that the last latent changes the first mel frame.
    """

    kind: ClassVar[Kind] = "sound"
    layout: ClassVar[str] = "BCT"
    axis: ClassVar[int] = 2
    wants_all: ClassVar[bool] = False
    sample_rate: ClassVar[None] = None  # mel frames a second are no whole number
    exactness: ClassVar[str] = "equal to vae.decode, bit for bit: it is called once, at the end"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        self.channels: int = self.vae.config["latent_channels"]
        #: Bins of a mel frame.
        self.mel: tuple[int, ...] = (self.vae.config["mel_bins"],)

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """As many as asked for, which changes nothing; by default all in one chunk."""
        check_count(latents_per_chunk)
        size = latents_per_chunk or latents or _LATENTS_PER_CHUNK
        return ChunkPlan(size, size)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length."""
        check_shape(shape, self.layout, self.channels)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """That nothing comes before the end, and what."""
        return (
            "every mel frame depends on every latent: all are decoded at once, after the last",
            "mel spectrograms are given; a vocoder makes the sound",
        )

    def frames(self, latents: int) -> int:
        """Mel frames."""
        return 2 * latents

    def picture(self, shape: tuple[int, ...]) -> None:  # noqa: ARG002  # sound has no picture
        """None."""
        return

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Once: everything."""
        return 1

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """``z / scaling_factor``, as the Kandinsky 6 pipeline has it."""
        scale: float = self.vae.config["scaling_factor"]
        return latents / scale

    def decoder(self) -> Decoder:
        """A stream that keeps its latents."""
        return _Kept(self)


class _Kept(StreamDecoder):
    """One stream's latents, until the last has come."""

    def __init__(self, codec: MMAudio) -> None:
        self._codec = codec
        self._held: list[torch.Tensor] = []

    def _push(self, latents: torch.Tensor) -> None:
        if self._held and self._held[0].shape[:2] != latents.shape[:2]:
            raise LatentsError(
                "expected every chunk to have the batch and channels of the first, "
                f"{tuple(self._held[0].shape[:2])}, got {tuple(latents.shape[:2])}"
            )
        self._held.append(latents.clone())  # the giver may write over its own

    def _rest(self) -> torch.Tensor | None:
        if not self._held:
            return None
        latents = torch.cat(self._held, 2)
        self._held.clear()
        self._codec.onload()
        return self._codec.vae.decode(latents, return_dict=False)[0]

    def _clear(self) -> None:
        self._held.clear()
