"""Families whose clips are decoded some frames at a time, by diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from tests.codecs.walk import noise
from tests.tiny import _seeded

from .family import Family


def svd(seed: int = 0) -> AutoencoderKLTemporalDecoder:
    """SVD: latents (T, 4, h, w) to (T, 3, 2h, 2w)."""
    return _seeded(
        lambda: AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),  # its norms have 32 groups
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
            scaling_factor=0.5,
        ),
        seed,
    )


@torch.no_grad()
def by_chunks(vae: nn.Module, latents: torch.Tensor, call: Mapping[str, object]) -> torch.Tensor:
    """``vae.decode`` of some frames at a time, (1, 3, T, H, W)."""
    size = call["decode_chunk_size"]
    assert isinstance(size, int)
    decoded = [vae.decode(part, num_frames=len(part)).sample for part in latents.split(size)]
    return torch.cat(decoded).movedim(0, 1)[None]


@dataclass(frozen=True)
class OfFrames(Family):
    """Its latents are frames of one clip."""

    def noise(
        self,
        length: int,
        *,
        batch: int = 1,
        seed: int = 1,
        dtype: torch.dtype = torch.float32,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Seeded latents (length, C, h, w)."""
        assert batch == 1
        channels, *own = self.latents
        return noise(length, channels, *(size or own), seed=seed, dtype=dtype)


FAMILIES = (
    OfFrames(
        "svd",
        svd,
        (4, 3, 2),
        (1, 3, 7),
        chunks=(None, 3),
        batched=False,
        call=lambda _: {"decode_chunk_size": 3},
        reference=by_chunks,
    ),
)
