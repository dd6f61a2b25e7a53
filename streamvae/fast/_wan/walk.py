"""One stream's way through a rebuilt decoder, chunk by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from streamvae._errors import UsageError
from streamvae.codecs import Walk, WalkDecoder

from .freshness import Look
from .networks import LATENTS, Rebuilt
from .step import ChunkDecoder, Histories, most_latents

if TYPE_CHECKING:
    from .codec import StepCodec


class StepWalk:
    """One walk's histories, made with its first chunk. See `streamvae.codecs.Walk`.

    Args:
        codec: Whose.

    Attributes:
        quantises: Whether pixels are given as levels, where the head can: uint8, as
            `streamvae._pixels.quantise` makes them.
        finite: Whether the last chunk's pixels were numbers before that; a bool on the device.
    """

    def __init__(self, codec: StepCodec) -> None:
        self.quantises = False
        self.finite: torch.Tensor | None = None
        self._codec = codec
        self._built: Rebuilt | None = None
        self._histories: Histories | None = None
        self._fallback: Walk | None = None

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next latents."""
        if self._fallback is not None:
            return self._fallback.push(latents)
        if self._built is not None:
            return self._decode(latents, first=False)
        if latents.shape[2] != 1:
            raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
        return self._begin(latents)

    def _begin(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the first latent.

        Whether weights have changed since they were rebuilt is found out while the device decodes
        as if they had not: it takes as long as a small picture does.
        """
        look = Look(latents.device)
        self._built = self._codec.latest(latents.device)
        given = None if self._built is None else self._decode(latents, first=True)
        built = self._codec.rebuilt(latents.device, look)
        if built is not None and built is self._built:
            return given
        del given
        self._histories, self._built = None, built
        if built is not None:
            return self._decode(latents, first=True)
        self._fallback = self._codec.fallback()
        return self._fallback.push(latents)

    def _decode(self, latents: torch.Tensor, *, first: bool) -> torch.Tensor:
        assert self._built is not None  # noqa: S101  # the caller has seen it
        with torch.autocast(latents.device.type, enabled=False):  # kernels have one dtype
            return self._decode_in(self._built, latents, first=first)

    def _decode_in(self, built: Rebuilt, latents: torch.Tensor, *, first: bool) -> torch.Tensor:
        network, kernels = built.network, built.kernels
        latents = latents.to(network.dtype)
        batch, _, count, height, width = latents.shape
        if self._histories is None:
            chunk = min(LATENTS, most_latents(network))
            size = (height, width)
            self._histories = Histories(network, batch, size, chunk, latents.device)
        rate, sides = 1 if first else network.rate, (height * network.scale, width * network.scale)
        dtype = torch.uint8 if self.quantises and network.head.quantises else network.dtype
        pixels = latents.new_empty(batch, count * rate, *sides, network.head.width, dtype=dtype)
        self.finite = None  # floats are looked at by whoever gets them
        if dtype is torch.uint8:
            self.finite = torch.ones((), dtype=torch.bool, device=latents.device)
        for clip, inputs in enumerate(self._histories.inputs):
            decoder = ChunkDecoder(network, inputs, kernels.fused_channels, first=first)
            for start in range(0, count, LATENTS):
                stop = min(start + LATENTS, count)
                hidden = latents[clip, :, start:stop]
                decoder.decode(hidden, pixels[clip, start * rate : stop * rate], self.finite)
        return pixels[..., : network.head.channels].permute(0, 4, 1, 2, 3)

    def drain(self) -> None:
        """Nothing is held back."""

    def clear(self) -> None:
        """Let go of all state."""
        self._histories = self._built = self.finite = None
        if self._fallback is not None:
            self._fallback.clear()


class Uint8Decoder(WalkDecoder):
    """A stream that gives levels where pictures are decoded whole, pixels where in tiles.

    See `streamvae.abc.Uint8Decoder`.
    """

    @property
    def finite(self) -> torch.Tensor | None:
        """Whether the last chunk's pixels were numbers; None where that was not looked for."""
        flags = [cast("StepWalk", walk).finite for one in self._clips for walk in one.walks()]
        found = [flag for flag in flags if flag is not None]
        return torch.stack(found).all() if len(found) > 1 else next(iter(found), None)

    def _start(self, latents: torch.Tensor, clip: tuple[int, ...]) -> None:
        super()._start(latents, clip)
        for one in self._clips:
            for walk in one.walks():
                cast("StepWalk", walk).quantises = one.grid is None
