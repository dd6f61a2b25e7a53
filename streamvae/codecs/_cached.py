"""Cached causal video: every convolution keeps its last two frames, so time is walked in one go."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import ClassVar, Protocol, cast

import torch
from torch import nn

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._module import Autoencoder, ModuleCodec, check_count, check_decode_is_own, check_shape, clips

#: What one convolution keeps: frames, a mark of diffusers' own, or nothing yet.
Cache = list[torch.Tensor | str | None]


class _Tiles(Protocol):
    tile_sample_min_height: int
    tile_sample_min_width: int
    spatial_compression_ratio: int


class CachedCausal(ModuleCodec):
    """AutoencoderKLWan (2.1 and 2.2-5B) and AutoencoderKLQwenImage: (B, C, T, h, w) to frames.

    The first latent gives one frame, each later one as many as the decoder upsamples time by.
    ``vae.decode`` walks the same way, but with its caches on the module; here each stream has
    its own, so that any number of them (and ``vae.decode`` itself) can share the weights.
    """

    kind: ClassVar[Kind] = "video"
    layout: ClassVar[str] = "BCTHW"
    axis: ClassVar[int] = 2
    sample_rate: ClassVar[None] = None
    #: ``vae.decode`` has one convolution over all latents first. It looks at one latent at a time,
    #: but torch picks its algorithm, and so its rounding, by the size of the whole.
    wants_all: ClassVar[bool] = True
    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode (chunks of more than one latent, and on a CPU latents "
        "that come one by one: within rounding, about 5e-6 in float32)"
    )

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        config = self.vae.config
        self.channels: int = config["z_dim"]
        steps = len(config["dim_mult"]) - 1
        # The decoder goes the encoder's way back, and its last block does not upsample.
        upsampled_in_time = list(config["temperal_downsample"])[::-1][:steps]
        self._frames_per_latent: int = 2 ** sum(upsampled_in_time)
        patch: int | None = config.get("patch_size")
        self._scale: int = 2**steps * (patch or 1)
        self._unpatch = None if patch is None else _unpatchify(base, patch)
        self._says_first = base.__name__ == "AutoencoderKLWan"

    def plan(self, latents_per_chunk: int | None, mode: str) -> ChunkPlan:
        """The first latent alone, then one at a time; any number in fast mode."""
        check_count(latents_per_chunk)
        rest = latents_per_chunk or 1
        if mode == "exact" and rest != 1:
            raise UsageError(
                f"expected latents_per_chunk=1 in exact mode, since chunks of {rest} differ from "
                f"vae.decode by rounding (about 3e-6 in float32), got {rest}; pass mode='fast'"
            )
        return ChunkPlan(1, rest)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length, any size; not larger than a tile while spatial tiling is on."""
        check_shape(shape, self.layout, self.channels)
        if self.vae.use_tiling:
            tiles = cast("_Tiles", self.vae)
            height = tiles.tile_sample_min_height // tiles.spatial_compression_ratio
            width = tiles.tile_sample_min_width // tiles.spatial_compression_ratio
            if shape[3] > height or shape[4] > width:
                raise UsageError(
                    f"expected latents within one tile ({height}, {width}) while the autoencoder "
                    f"has tiling on, got {tuple(shape[3:])}: tiles are blended, another function "
                    "than the one streamed; call vae.disable_tiling()"
                )

    def frames(self, latents: int) -> int:
        """One for the first latent, then as many as the config says, 4 in every release."""
        return self._frames_per_latent * (latents - 1) + 1

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 8 pixels a latent, 16 for Wan 2.2-5B."""
        return shape[3] * self._scale, shape[4] * self._scale

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Nothing is held back."""
        return 0

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's statistics of each channel, in the order of diffusers' pipelines."""
        if self.vae.config["latents_mean"] is None or self.vae.config["latents_std"] is None:
            raise UsageError(
                f"expected latents_mean and latents_std in the config of {self.family} to "
                "denormalize latents, got None; denormalize them yourself, pass normalized=False"
            )
        # Not latents * std: dividing by the rounded reciprocal is what the pipelines do.
        inverse = 1.0 / self.constant("latents_std", latents)
        return latents / inverse + self.constant("latents_mean", latents)

    def decoder(self) -> Decoder:
        """A stream with caches of its own."""
        return _Stream(self)

    def cache(self) -> Cache:
        """Empty caches: at least one place for each causal convolution, in order of execution.

        More than are used do no harm. Counting also works through a compiled decoder.
        """
        counts: dict[str, int] = getattr(self.vae, "_cached_conv_counts", {})
        convolutions = sum(isinstance(m, nn.Conv3d) for m in self.vae.decoder.modules())
        return [None] * max(convolutions, counts.get("decoder", 0))

    def prologue(self, latents: torch.Tensor, *, sliced: bool) -> torch.Tensor:
        """What ``vae.decode`` does to all latents, of the whole batch or clip by clip."""
        self.onload()
        if not sliced:
            return cast("torch.Tensor", self.vae.post_quant_conv(latents))
        return torch.cat([self.vae.post_quant_conv(clip) for clip in clips(latents)])

    def step(self, hidden: torch.Tensor, cache: Cache, *, first: bool) -> torch.Tensor:
        """Decode what `prologue` gave of the next latents, for the clips whose cache this is."""
        vae: Autoencoder = self.vae
        marks = {"first_chunk": first} if self._says_first else {}
        frames: torch.Tensor = vae.decoder(hidden, feat_cache=cache, feat_idx=[0], **marks)
        if self._unpatch is not None:
            frames = self._unpatch(frames)
        return torch.clamp(frames, min=-1.0, max=1.0)


def _unpatchify(base: type, patch: int) -> Callable[[torch.Tensor], torch.Tensor]:
    function = importlib.import_module(base.__module__).unpatchify
    return lambda frames: cast("torch.Tensor", function(frames, patch_size=patch))


class _Stream:
    """One stream's caches: one set, or one for each clip where the autoencoder slices batches."""

    def __init__(self, codec: CachedCausal) -> None:
        self._codec = codec
        self._caches: list[Cache] = []
        self._hidden: list[torch.Tensor] = []  # at most one: what the prologue made of all latents
        self._clip: tuple[int, ...] = ()
        self._done = 0
        self._closed = False

    def begin(self, latents: torch.Tensor) -> None:
        self._require_open()
        self._codec.check(tuple(latents.shape))
        self._hidden[:] = [self._codec.prologue(latents, sliced=self._sliced(latents))]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self._require_open()
        try:
            return self._decode(latents)
        except BaseException:
            # Caches half a step ahead would give wrong frames, and may be gigabytes.
            self.close()
            raise

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        first = not self._caches
        clip = (*latents.shape[:2], *latents.shape[3:])
        if first:
            self._start(latents, clip)
        elif clip != self._clip:
            raise LatentsError(
                "expected every chunk to have the batch, channels, height and width of the first, "
                f"{self._clip}, got {clip}"
            )
        hidden = self._next(latents)
        if len(self._caches) == 1:
            return self._codec.step(hidden, self._caches[0], first=first)
        pairs = zip(clips(hidden), self._caches, strict=True)
        return torch.cat([self._codec.step(item, cache, first=first) for item, cache in pairs])

    def _next(self, latents: torch.Tensor) -> torch.Tensor:
        """What the prologue makes of these latents, or made of them when it had all."""
        if not self._hidden:
            return self._codec.prologue(latents, sliced=len(self._caches) > 1)
        self._codec.onload()
        length = latents.shape[2]
        hidden = self._hidden[0].narrow(2, self._done, length)
        self._done += length
        return hidden

    def _start(self, latents: torch.Tensor, clip: tuple[int, ...]) -> None:
        if latents.shape[2] != 1:
            # diffusers' decoders would take the second latent for a part of the first frame.
            raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
        self._codec.check(tuple(latents.shape))
        self._clip = clip
        sets = latents.shape[0] if self._sliced(latents) else 1
        self._caches.extend(self._codec.cache() for _ in range(sets))

    def _sliced(self, latents: torch.Tensor) -> bool:
        return self._codec.vae.use_slicing and latents.shape[0] > 1

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("expected an open decoder, got one that was closed")

    def drain(self) -> None:
        return None

    def close(self) -> None:
        self._closed = True
        # In place: frames of a kept traceback may still know the lists.
        self._hidden.clear()
        for cache in self._caches:
            cache.clear()
        self._caches.clear()
