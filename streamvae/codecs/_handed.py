"""Explicit caches: decoders that are handed, with each segment, what the one before it left."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan

from ._module import no_formula
from ._partition import Partition
from ._tiles import Grid
from ._walk import State


class CogVideoX(Partition):
    """AutoencoderKLCogVideoX: latents two at a time, the odd one with the first two.

    Source: ``diffusers/models/autoencoders/autoencoder_kl_cogvideox.py``. An odd number T gives
    4 (T - 1) + 1 frames, an even one 4 T.
    """

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        config = self.vae.config
        steps = len(config["block_out_channels"]) - 1
        self.channels: int = config["latent_channels"]
        self._scale = 2**steps
        self._doublings = min(steps, int(config["temporal_compression_ratio"]).bit_length() - 1)

    @property
    def needs_length(self) -> bool:
        """True: whether the first segment is of two latents or three depends on how many follow."""
        return True

    def own(self, latents: int | None) -> ChunkPlan:
        """See `Partition.own`."""
        if latents is None:
            raise UsageError("expected latents whose number is known before they are cut")
        size: int = getattr(self.vae, "num_latent_frames_batch_size")  # noqa: B009  # its own
        return ChunkPlan(latents if latents < size else size + latents % size, size)

    def upsampled(self, frames: int, *, first: bool) -> int:  # noqa: ARG002  # parity decides
        """One frame stays one; of an odd number the first is not doubled, wherever it is."""
        return frames if frames == 1 else 2 * frames - frames % 2

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `WalkingCodec.grid`."""
        options = cast("Any", self.vae)
        factors = (options.tile_overlap_factor_height, options.tile_overlap_factor_width)
        return Grid.by_overlap(self.module, shape, factors)

    def segment(self, latents: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """See `Partition.segment`."""
        # Here and not in a prologue: vae.decode has it run over each segment.
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        frames, cache = self.vae.decoder(latents, conv_cache=state)
        return cast("torch.Tensor", frames), _living(cache)


class KVAEVideo(Partition):
    """AutoencoderKLKVAEVideo: latents four at a time, five at first.

    Source: ``diffusers/models/autoencoders/autoencoder_kl_kvae_video.py``. T latents give
    4 (T - 1) + 1 frames; three less when the last segment has but one, which is not upsampled.
    """

    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode, whose segments are kept (also the frames it leaves out "
        "when the last of several segments is a single latent)"
    )

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        config = self.vae.config
        steps = len(config["ch_mult"]) - 1
        compression: int = config["temporal_compress_times"]
        self.channels: int = config["z_channels"]
        self._scale = 2**steps
        self._doublings = min(steps, compression.bit_length() - 1)
        segment: int = inspect.signature(getattr(base, "_decode")).parameters["seg_len"].default  # noqa: B009
        # In frames, of which the first segment has one more; latents are rounded up.
        self._own = ChunkPlan(-(-(segment + 1) // compression), -(-segment // compression))

    def own(self, latents: int | None) -> ChunkPlan:  # noqa: ARG002  # the same for any number
        """See `Partition.own`."""
        return self._own

    def upsampled(self, frames: int, *, first: bool) -> int:
        """A single frame stays one, also later on."""
        return frames if frames == 1 else 2 * frames - first

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Whether tiling is ignored, and frames are lost."""
        notes = []
        if self.vae.use_tiling:
            notes.append(
                f"{self.family} cannot tile: its enable_tiling() changes nothing in diffusers, and "
                "nothing here; whole pictures are decoded"
            )
        latents = shape[2]
        given, due = self.frames(latents), 2**self._doublings * (latents - 1) + 1
        if given != due:
            notes.append(
                f"{self.family} gives {given} frames for {latents} latents, not {due}, as in "
                "diffusers: a last segment of a single latent is not upsampled in time; one latent "
                "more or less avoids it"
            )
        return tuple(notes)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Unknown.

        Raises:
            UsageError: Always; neither its config nor any pipeline of diffusers has a formula.
        """
        raise no_formula(self.family)

    def segment(self, latents: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """See `Partition.segment`."""
        cache: State = cast("Any", self.vae)._make_decoder_cache() if state is None else state
        return cast("torch.Tensor", self.vae.decoder(latents, cache)), cache


class Kandinsky6SR(Partition):
    """Kandinsky6SRVAE: latents four at a time, five at first; nothing is normalized over time.

    Source: ``diffusers/models/autoencoders/autoencoder_kandinsky6_sr.py``.
    """

    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode (chunks that are no multiple of its segments: within "
        "rounding, about 2e-6 in float32)"
    )
    rounding = "about 2e-6"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        config = self.vae.config
        steps = len(config["decoder_block_out_channels"]) - 1
        compression: int = config["temporal_compression_ratio"]
        self.channels: int = config["latent_channels"]
        self._scale = 2**steps
        first = config["temporal_compression_start_level"]
        # The decoder's levels that double time lie between these two.
        lowest = max(1, steps + 1 - first - (compression.bit_length() - 1))
        self._doublings = max(0, min(steps, steps - first) - lowest + 1)
        size = importlib.import_module(base.__module__).SEGMENT_FRAMES // compression
        self._own = ChunkPlan(1 + size, size)

    def own(self, latents: int | None) -> ChunkPlan:  # noqa: ARG002  # the same for any number
        """See `Partition.own`."""
        return self._own

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's scaling factor, as Kandinsky6SRPipeline does."""
        return latents / cast("float", self.vae.config["scaling_factor"])

    def segment(self, latents: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """See `Partition.segment`."""
        cache: State = cast("Any", self.vae.decoder).make_cache() if state is None else state
        return cast("torch.Tensor", self.vae.decoder(latents, cache)), cache


def _living(cache: dict[object, object]) -> State:
    """What of CogVideoX's caches is ever read again.

    The convolutions of its spatial norms look at one frame at a time, yet keep all they saw: two
    fifths of the whole.
    """
    return {
        key: _living(cast("dict[object, object]", kept)) if isinstance(kept, dict) else kept
        for key, kept in cache.items()
        if key not in {"conv_y", "conv_b"}
    }
