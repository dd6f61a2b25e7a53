"""Sound: convolutions alone, so a window with enough latents around it gives the right samples."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import nn

from streamvae._errors import DeviceError, LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._decoder import StreamDecoder
from ._module import ModuleCodec, check_count, check_decode_is_own, check_shape, clips
from ._reach import Reach

_LATENTS_PER_CHUNK = 128


class Halo(ModuleCodec):
    """A decoder of sound by windows: (B, C, T) to (B, channels of sound, S), floats as decoded.

    A chunk is decoded together with latents kept from before it; samples that later latents can
    still change are held back until those have come, or until the end (`Decoder.drain`).

    A family sets ``channels``, ``sample_rate`` and ``reach``, and decodes a `window`.
    """

    kind: ClassVar[Kind] = "sound"
    layout: str = "BCT"
    axis: ClassVar[int] = 2
    wants_all: ClassVar[bool] = False
    exactness: str = "equal to vae.decode within rounding (at most 2e-6 in float32)"

    channels: int
    sample_rate: int | None
    reach: Reach

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """128 latents a chunk, or as many as asked for: the cut only changes rounding."""
        check_count(latents_per_chunk)
        size = latents_per_chunk or _LATENTS_PER_CHUNK
        return ChunkPlan(size, size)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length, with weights that are there."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()
        if any(getattr(m, "weight_g", torch.empty(0)).is_meta for m in self.module.modules()):
            # torch computes a normalised weight before the hook brings what it is made of, so
            # vae.decode gives noise as well.
            raise DeviceError(
                f"expected {self.family} to have its weights, got them offloaded layer by layer, "
                "which its weight normalisation does not survive; offload it as a whole "
                "(enable_model_cpu_offload)"
            )

    def frames(self, latents: int) -> int:
        """Samples, to the one."""
        return self.reach.total(latents)

    def picture(self, shape: tuple[int, ...]) -> None:  # noqa: ARG002  # sound has no picture
        """None."""
        return

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Once: what waited for latents that did not come."""
        return 1

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Unchanged: the diffusion model works in the decoder's space."""
        return latents

    def decoder(self) -> Decoder:
        """A stream with a window of its own."""
        return _Window(self)

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a window of latents, (B, C, t), as ``vae.decode`` does, slicing and all."""
        self.onload()
        return self.vae.decode(latents, return_dict=False)[0]


class Oobleck(Halo):
    """AutoencoderOobleck."""

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels = self.vae.config["decoder_input_channels"]
        self.sample_rate = self.vae.config["sampling_rate"]
        self.reach = Reach.of(self.vae.decoder)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length, with weights that are there.

        With tiling on, ``vae.decode`` gives the same sound within rounding as long as its tiles
        overlap far enough and no samples are lost between them; then tiling does not matter here.
        """
        super().check(shape)
        overlap = getattr(self.vae, "tile_latent_overlap", 0)
        tiling = getattr(self.vae, "use_tiling", False)  # which older diffusers does not have here
        if tiling and (overlap < max(self.reach.latents) or self.reach.lost):
            raise UsageError(
                f"expected tiles that overlap by at least {max(self.reach.latents)} latents and "
                f"lose no samples while the autoencoder has tiling on, got an overlap of {overlap} "
                f"and {self.reach.lost} samples lost a tile: vae.decode gives another sound than "
                "the one streamed; call vae.disable_tiling()"
            )

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a window, each item on its own if the autoencoder slices, never in tiles."""
        self.onload()
        if self.vae.use_slicing and latents.shape[0] > 1:
            return torch.cat([self.vae.decoder(item) for item in clips(latents)])
        return cast("torch.Tensor", self.vae.decoder(latents))


class _Window(StreamDecoder):
    """One stream's window: the latents that samples to come still depend on."""

    def __init__(self, codec: Halo) -> None:
        self._codec = codec
        self._held: list[torch.Tensor] = []
        self._start = 0  # of the held latents
        self._end = 0  # of the latents that have come
        self._emitted = 0  # samples

    def _push(self, latents: torch.Tensor) -> torch.Tensor | None:
        reach = self._codec.reach
        shape = _without_time(latents)
        if self._held and _without_time(self._held[0]) != shape:
            raise LatentsError(
                "expected every chunk to have the batch and channels of the first, "
                f"{_without_time(self._held[0])}, got {shape}"
            )
        window = torch.cat([*self._held, latents], 2)
        self._end += latents.shape[2]
        samples = self._emit(window, reach.hop * self._end - reach.after)
        keep = max(self._start, (self._emitted - reach.before) // reach.hop)
        # A copy, as torch.cat's is: the giver may write over its latents once the chunk is
        # ready, and a view would keep the whole window alive.
        self._held[:] = [window[:, :, keep - self._start :].clone()]
        self._start = keep
        return samples

    def _emit(self, window: torch.Tensor, until: int) -> torch.Tensor | None:
        if until <= self._emitted:
            return None
        offset = self._codec.reach.hop * self._start
        samples = self._codec.window(window)[..., self._emitted - offset : until - offset]
        self._emitted = until
        return samples

    def _rest(self) -> torch.Tensor | None:
        if not self._held:
            return None
        samples = self._emit(self._held[0], self._codec.reach.total(self._end))
        self._held.clear()
        return samples

    def _clear(self) -> None:
        self._held.clear()


def _without_time(latents: torch.Tensor) -> tuple[int, ...]:
    return (*latents.shape[:2], *latents.shape[3:])
