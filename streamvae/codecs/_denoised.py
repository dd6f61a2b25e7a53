"""A decoder that denoises pixels, in windows of time where tiling is on: LTX-2.5's.

Its first stages see all latents at once, so that nothing can come before the last latent; after it,
windows come one by one (``ltx2_diffusion_decoder.py`` of diffusers).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Generator
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan

from ._denoised_tiles import DenoisedTiles
from ._draws import Draws, Generators, check_generators
from ._module import check_decode_is_own, check_shape
from ._walk import Walk, WalkingCodec
from ._windows import HeldWalk, cut_held


class Denoised(WalkingCodec):
    """LTX2VideoDiffusionDecoderModel: (B, 128, T, h, w) to (B, 3, 8(T-1)+1, 32h, 32w).

    Args:
        module: The unwrapped decoder.
        base: The diffusers class that its family is named after.
        generator: Where the noise comes from; None for torch's global generator. Each stream draws
            from a copy, as it stands when the stream's first chunk is decoded, and moves it on
            after its last draw, unless somebody else has drawn from it since.
        num_inference_steps: Denoising steps; None for the config's.

    Raises:
        UsageError: An argument is none of these.
    """

    arguments: ClassVar[tuple[str, ...]] = ("generator", "num_inference_steps")
    exactness: ClassVar[str] = "equal bit for bit to decode from the same generator's state"

    def __init__(
        self,
        module: nn.Module,
        base: type,
        generator: Generators = None,
        num_inference_steps: int | None = None,
    ) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self._source = importlib.import_module(base.__module__)
        check_generators(generator)
        if num_inference_steps is not None and num_inference_steps < 1:
            raise UsageError(
                f"expected num_inference_steps of at least 1, got {num_inference_steps}"
            )
        self._generator = generator
        self._steps = num_inference_steps
        config = self.vae.config
        self.channels: int = config["latent_channels"]
        self._ratio: int = config["temporal_compression_ratio"]
        strides = config["decoder_upsample_strides"]
        self._scale = [
            config["patch_size"] * math.prod(stride[side] for stride in strides) for side in (1, 2)
        ]

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """All at once where they are known; any number gives the same bits."""
        if latents is not None and latents < (least := self._least_length()):
            raise LatentsError(
                f"expected at least {least} latents, since the attention of {self.family} does "
                f"not fit into fewer, got {latents}"
            )
        return cut_held(latents, latents_per_chunk)

    def check(self, shape: tuple[int, ...]) -> None:
        """Pictures that its attention fits into."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()
        least = self._least_size()
        if shape[3] < least[0] or shape[4] < least[1]:
            raise LatentsError(
                f"expected pictures of at least {least[0]}x{least[1]} latents, since the attention "
                f"of {self.family} does not fit into smaller ones, got {shape[3]}x{shape[4]}"
            )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Says that all latents are needed before the first frame."""
        how = (
            "windows of frames come after the last latent"
            if cast("Any", self.module).use_tiling
            else "all frames come at once, and memory grows with the length; call "
            "enable_tiling() to get them in windows"
        )
        return (f"{self.family} decodes from all latents at once: {how}",)

    def frames(self, latents: int) -> int:
        """One for the first latent, 8 for each later one."""
        return self._ratio * (latents - 1) + 1

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 32 pixels a latent."""
        return shape[3] * self._scale[0], shape[4] * self._scale[1]

    def drains(self, latents: int) -> int:
        """One for each window of time."""
        if not cast("Any", self.module).use_tiling:
            return 1
        return len(DenoisedTiles(self.module, self._source).times(latents))

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the statistics of each channel, in the order of diffusers' pipeline."""
        std, mean = (self.statistic(name, latents) for name in ("latents_std", "latents_mean"))
        scaled: torch.Tensor = latents * std / self.vae.config["scaling_factor"] + mean
        return scaled

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        draws = Draws(self._generator, self.device)
        return HeldWalk(lambda latents: self._parts(latents, draws))

    def _parts(self, latents: torch.Tensor, draws: Draws) -> Generator[torch.Tensor, None, None]:
        if self._tiled(tuple(latents.shape)):
            yield from DenoisedTiles(self.module, self._source).decode(latents, draws, self._steps)
            return
        frames: torch.Tensor = self.vae.decoder(
            latents, generator=draws.own, num_inference_steps=self._steps
        )
        draws.settle()
        yield frames

    def _tiled(self, shape: tuple[int, ...]) -> bool:
        options = cast("Any", self.module)
        space = options.spatial_compression_ratio
        least = (
            options.tile_sample_min_num_frames // options.temporal_compression_ratio,
            options.tile_sample_min_height // space,
            options.tile_sample_min_width // space,
        )
        return bool(options.use_tiling) and any(
            size > most for size, most in zip(shape[2:], least, strict=True)
        )

    def _least_size(self) -> tuple[int, int]:
        """Latents of height and width into which every attention's window fits."""
        config = self.vae.config
        kernels = (*config["decoder_stage_kernels"], config["decoder_stage5_kernel"])
        least, scale = [1, 1], [1, 1]
        for kernel, stride in zip(
            kernels, (*config["decoder_upsample_strides"], (1, 1, 1)), strict=True
        ):
            for side in (0, 1):
                least[side] = max(least[side], -(-kernel[side + 1] // scale[side]))
                scale[side] *= stride[side + 1]
        return least[0], least[1]

    def _least_length(self) -> int:
        """Latents into whose frames the last attention's window fits; the others' are padded."""
        kernel: int = self.vae.config["decoder_stage5_kernel"][0]
        return 1 + -(-(kernel - 1) // self._ratio)
