"""Video whose decoder interpolates in time: every frame may wait for the next, so a walk is late.

By look-ahead the walk gives what decoding all latents at once gives, causal convolutions or not.
With tiling on, diffusers decodes runs of a few latents instead, which is another function.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan

from ._delays import Frames, Memory, Stack, joined
from ._module import check_count, check_decode_is_own, check_shape
from ._tiles import Grid
from ._vidtok import composites, layers
from ._walk import Walk, WalkingCodec

#: Levels that upsample time, for each compression that the tiled decode knows its way in.
_TILED = {2: [2], 4: [1, 2], 8: [1, 2, 3]}


class Interpolated(WalkingCodec):
    """AutoencoderVidTok: (B, C, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w), other factors by config.

    ``vae.decode`` keeps its state on the module (and leaves it there). A stream neither reads nor
    writes that: it calls the layers that compute, one by one, and not what was compiled of the
    decoder as a whole. Token indices (``decode_from_indices``) are for ``vae.indices_to_latent``.
    """

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels: int = self.vae.config["z_channels"]
        options = cast("Any", module)
        self.is_causal: bool = options.is_causal
        #: Latents that are decoded together with tiling on, and that others come in groups of.
        self.group: int = options.num_latent_frames_batch_size
        self.compression: int = options.temporal_compression_ratio

    @property
    def _in_time(self) -> set[int]:
        """Levels that upsample time."""
        decoder = cast("Any", self.vae.decoder)
        return set(decoder.tempo_us) & set(decoder.spatial_us)

    @property
    def _frames_per_latent(self) -> int:
        return 1 << len(self._in_time)

    @property
    def _scale(self) -> int:
        return 1 << len(cast("Any", self.vae.decoder).spatial_us)

    @property
    def _tileable(self) -> bool:
        return not self.is_causal or sorted(self._in_time) == _TILED.get(self.compression)

    @property
    def exactness(self) -> str:
        """Depends on whether tiling is on."""
        if self.vae.use_tiling:
            return "equal bit for bit to vae.decode, which decodes in runs while its tiling is on"
        return "equal to vae.decode within rounding (about 1e-5 in float32)"

    @property
    def needs_length(self) -> bool:
        """Whether convolutions look ahead: latents then count in groups, and the rest is lost."""
        return not self.is_causal

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """Any number, since the walk is late by itself: by default one, or what is decoded at once.

        Raises:
            LatentsError: There are fewer latents than `vae.decode` takes.
        """
        check_count(latents_per_chunk)
        if not self.is_causal and latents is not None:
            self.check_group(latents)
        rest = latents_per_chunk or (
            1 if self.is_causal and not self.vae.use_tiling else self.group
        )
        return ChunkPlan(rest, rest)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any size, and (but for `cut`) any length."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()
        if self.vae.use_tiling and not self._tileable:
            raise UsageError(
                f"expected {self.family} to upsample time in levels 1 and 2 (or as its tiled "
                "decode has it for other factors) while tiling is on, got another config, which "
                "vae.decode takes apart wrongly; call vae.disable_tiling()"
            )

    def check_group(self, latents: int) -> None:
        """Refuse fewer latents than a decoder that looks ahead takes.

        Raises:
            LatentsError: Naming how many it takes.
        """
        if latents < self.group:
            raise LatentsError(
                f"expected at least {self.group} latents for a {self.family} that is not causal, "
                f"got {latents}"
            )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Say which latents are lost, and that tiling changes the frames."""
        notes = []
        left = 0 if self.is_causal else shape[2] % self.group
        if left:
            notes.append(
                f"{self.family} decodes latents in groups of {self.group} when it is not causal: "
                f"the last {left} of {shape[2]} are left out, as vae.decode leaves them out"
            )
        if self.vae.use_tiling:
            notes.append(
                f"{self.family} decodes runs of {self.group} latents while its tiling is on, and "
                "interpolates otherwise where they meet: the frames are those of vae.decode with "
                "tiling, and differ from those without"
            )
        return (*notes, *super().notes(shape))

    def frames(self, latents: int) -> int:
        """As many for each latent as the config says; for causal ones the first gives one."""
        if self.is_causal:
            return max(0, self._frames_per_latent * latents - self.lost)
        return self._frames_per_latent * (latents - latents % self.group)

    @property
    def lost(self) -> int:
        """Frames that are decoded first and dropped."""
        return self.compression - 1 if self.is_causal else 0

    def grid(self, shape: tuple[int, ...]) -> Grid | None:  # noqa: ARG002  # of any size
        """See `WalkingCodec.grid`. What fits into one tile goes the tiled way, too."""
        vae = cast("Any", self.module)
        if not vae.use_tiling:
            return None
        tile = (vae.tile_latent_min_height, vae.tile_latent_min_width)
        pixels = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        factors = (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width)
        blend = (int(pixels[0] * factors[0]), int(pixels[1] * factors[1]))
        stride = (int(tile[0] * (1 - factors[0])), int(tile[1] * (1 - factors[1])))
        return Grid(tile, stride, blend, (pixels[0] - blend[0], pixels[1] - blend[1]))

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 8 pixels a latent by default; tiles may lose some."""
        grid = self.grid(shape)
        if grid is None:
            return shape[3] * self._scale, shape[4] * self._scale
        return grid.picture(shape, self._scale)

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """As often as what is owed at the end takes, in parts of what one latent gives."""
        if self.vae.use_tiling:
            return 1
        stack = self.stack(Memory())
        return -(-stack.late // stack.rate) or 1

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Unchanged: the config has no statistics."""
        return latents

    def stack(self, memory: Memory) -> Stack:
        """The decoder as it is now, its layers keeping their frames in ``memory``."""
        return Stack(layers(self.vae.decoder, memory, seams=self.vae.use_tiling))

    def entered(self) -> Iterable[nn.Module]:
        """See `ModuleCodec.entered`; runs without a seam call the decoder itself."""
        if self.vae.use_tiling and not self.is_causal:
            return ()
        return composites(self.vae.decoder)

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        if not self.vae.use_tiling:
            return _Late(self)
        return _InCausalRuns(self) if self.is_causal else _InRuns(self)


class _Late:
    """One walk that gives what a decode of all latents gives, a few frames late."""

    def __init__(self, codec: Interpolated) -> None:
        self._codec = codec
        self._memory = Memory()
        self._stack = codec.stack(self._memory)
        self._lost = codec.lost
        self._seen = 0
        self._owed: Generator[torch.Tensor, None, None] | None = None

    def push(self, latents: torch.Tensor) -> Frames:
        self._seen += latents.shape[2]
        if self._codec.is_causal:
            return self._kept(self._stack.push(latents))
        waiting = self._memory.behind(self, latents)
        whole = waiting.shape[2] - waiting.shape[2] % self._codec.group
        self._memory.keep(self, waiting[:, :, whole:])
        return self._stack.push(waiting[:, :, :whole]) if whole else None

    def drain(self) -> Frames:
        if self._owed is None:
            if not self._codec.is_causal:
                self._codec.check_group(self._seen)
            self._owed = self._stack.flush()
        given, count = [], 0
        while count < self._stack.rate and (frames := next(self._owed, None)) is not None:
            given.append(frames)
            count += frames.shape[2]
        return self._kept(joined(given))

    def clear(self) -> None:
        self._memory.clear()
        if self._owed is not None:
            self._owed.close()

    def _kept(self, frames: Frames) -> Frames:
        """Drop the first frames of all."""
        if frames is None or not self._lost:
            return frames
        lost = min(self._lost, frames.shape[2])
        self._lost -= lost
        return frames[:, :, lost:] if frames.shape[2] > lost else None


class _InRuns:
    """One tile's walk by ``tiled_decode``: run by run, each on its own."""

    def __init__(self, codec: Interpolated) -> None:
        self._codec = codec
        self._memory = Memory()
        self._seen = 0

    def push(self, latents: torch.Tensor) -> Frames:
        self._seen += latents.shape[2]
        waiting = self._memory.behind(self, latents)
        group = self._codec.group
        whole = waiting.shape[2] - waiting.shape[2] % group
        self._memory.keep(self, waiting[:, :, whole:])
        runs = torch.split(waiting[:, :, :whole], group, 2) if whole else ()
        return joined([self._codec.vae.decoder(run) for run in runs])

    def drain(self) -> None:
        self._codec.check_group(self._seen)

    def clear(self) -> None:
        self._memory.clear()


class _InCausalRuns:
    """One tile's walk by ``tiled_decode``: the first latent is a run, then a group each time.

    What is left over at the end, less than a group, belongs to the last run. Each run is decoded
    with the latent after it, whose frames are then cut off.
    """

    def __init__(self, codec: Interpolated) -> None:
        self._codec = codec
        self._memory = Memory()
        self._stack = codec.stack(self._memory)
        self._first = True

    def push(self, latents: torch.Tensor) -> Frames:
        waiting, given = self._memory.behind(self, latents), []
        # A run is certain when the latent after it has come; a group, when another one has.
        while waiting.shape[2] >= (2 if self._first else 2 * self._codec.group):
            size = 1 if self._first else self._codec.group
            given.append(self._run(waiting[:, :, : size + 1])[:, :, : -self._codec.compression])
            waiting = waiting[:, :, size:]
        self._memory.keep(self, waiting)
        return joined(given)

    def drain(self) -> Frames:
        waiting = self._memory.take(self)
        return None if waiting is None else self._run(waiting)

    def clear(self) -> None:
        self._memory.clear()

    def _run(self, latents: torch.Tensor) -> torch.Tensor:
        frames = self._stack.push(latents)
        assert frames is not None  # noqa: S101  # nothing is late in a run
        lost = self._codec.lost if self._first else 0
        self._first = False
        return frames[:, :, lost:]
