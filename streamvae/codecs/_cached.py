"""Cached causal video: every convolution keeps its last two frames, so time is walked in one go."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan

from ._module import check_count, check_decode_is_own
from ._tiles import Grid
from ._walk import State, Walk, WalkingCodec

#: What one convolution keeps: frames, a mark of diffusers' own, or nothing yet.
Cache = list[torch.Tensor | str | None]


class CachedCausal(WalkingCodec):
    """AutoencoderKLWan (2.1 and 2.2-5B) and AutoencoderKLQwenImage: (B, C, T, h, w) to frames.

    The first latent gives one frame, each later one as many as the decoder upsamples time by.
    ``vae.decode`` walks the same way, but with its caches on the module; here each stream (with
    spatial tiling: each tile of it) has its own, so that any number of them (and ``vae.decode``
    itself) can share the weights.
    """

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
        self._patch = patch or 1
        self._scale: int = 2**steps * self._patch
        self._unpatch = None if patch is None else _unpatchify(base, patch)
        self._says_first = base.__name__ == "AutoencoderKLWan"

    @property
    def wants_all(self) -> bool:
        """True: ``vae.decode`` has one convolution over all latents first.

        It looks at one latent at a time, but torch picks its algorithm, and so its rounding, by
        the size of the whole.
        """
        return True

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """The first latent alone, then one at a time; any number in fast mode."""
        check_count(latents_per_chunk)
        rest = latents_per_chunk or 1
        if mode == "exact" and rest != 1:
            raise UsageError(
                f"expected latents_per_chunk=1 in exact mode, since chunks of {rest} differ from "
                f"vae.decode by rounding (about 3e-6 in float32), got {rest}; pass mode='fast'"
            )
        return ChunkPlan(1, rest)

    def frames(self, latents: int) -> int:
        """One for the first latent, then as many as the config says, 4 in every release."""
        return self._frames_per_latent * (latents - 1) + 1

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `WalkingCodec.grid`."""
        return Grid.by_stride(self.module, shape, self._patch)

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 8 pixels a latent, 16 for Wan 2.2-5B; tiles may lose or gain some."""
        grid = self.grid(shape)
        if grid is None:
            return shape[3] * self._scale, shape[4] * self._scale
        height, width = grid.picture(shape, self._scale // self._patch)
        return height * self._patch, width * self._patch

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

    def cache(self) -> Cache:
        """Empty caches: at least one place for each causal convolution, in order of execution.

        More than are used do no harm. Counting also works through a compiled decoder.
        """
        counts: dict[str, int] = getattr(self.vae, "_cached_conv_counts", {})
        convolutions = sum(isinstance(m, nn.Conv3d) for m in self.vae.decoder.modules())
        return [None] * max(convolutions, counts.get("decoder", 0))

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """See `WalkingCodec.prologue`."""
        return cast("torch.Tensor", self.vae.post_quant_conv(latents))

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _Cached(self)

    def step(self, hidden: torch.Tensor, cache: Cache, *, first: bool) -> torch.Tensor:
        """Decode what `prologue` gave of the next latents, for the clips whose cache this is."""
        marks = {"first_chunk": first} if self._says_first else {}
        frames: torch.Tensor = self.vae.decoder(hidden, feat_cache=cache, feat_idx=[0], **marks)
        return frames

    def epilogue(self, frames: torch.Tensor, *, tiled: bool) -> torch.Tensor:
        """See `WalkingCodec.epilogue`. QwenImage clamps only what was not tiled."""
        if self._unpatch is not None:
            frames = self._unpatch(frames)
        if tiled and not self._says_first:
            return frames
        return torch.clamp(frames, min=-1.0, max=1.0)


def _unpatchify(base: type, patch: int) -> Callable[[torch.Tensor], torch.Tensor]:
    function = importlib.import_module(base.__module__).unpatchify
    return lambda frames: cast("torch.Tensor", function(frames, patch_size=patch))


class _Cached:
    """One walk's cache."""

    def __init__(self, codec: CachedCausal) -> None:
        self._codec = codec
        self._cache: Cache = []

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        first = not self._cache
        if first:
            if latents.shape[2] != 1:
                # diffusers' decoders would take the second latent for a part of the first frame.
                raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
            self._cache.extend(self._codec.cache())
        return self._codec.step(latents, self._cache, first=first)

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._cache.clear()

    @property
    def state(self) -> State | None:
        """See `streamvae.codecs.Steady`. Marks in it go with the second chunk."""
        return cast("State", self._cache) if self._cache else None

    def put(self, state: State) -> None:
        self._cache[:] = cast("Cache", state)

    def is_step(self, latents: torch.Tensor) -> bool:  # noqa: ARG002  # any number is one
        return True

    def stepper(self) -> Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]:
        again = self._codec.renewal()  # idle slots must not keep their autoencoder

        def step(latents: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
            codec = cast("CachedCausal", again())
            return codec.step(latents, cast("Cache", state), first=False), state

        return step
