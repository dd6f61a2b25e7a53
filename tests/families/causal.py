"""Families that diffusers decodes in one go although they are causal in time."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLCosmos, AutoencoderKLMochi
from torch import nn

from tests.releases import released
from tests.tiny import _seeded, _statistics

from .family import Family, decode


def mochi(seed: int = 0, **config: object) -> AutoencoderKLMochi:
    """Mochi: latents (B, 4, T, h, w) to (B, 3, 6(T-1)+1, 8h, 8w)."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "encoder_block_out_channels": (32,) * 4,
        "decoder_block_out_channels": (32, 32, 32, 64),  # its norms have 32 groups
        "layers_per_block": (1,) * 5,
        "scaling_factor": 0.9,
        **_statistics(4),
    }
    return _seeded(lambda: AutoencoderKLMochi(**(options | config)), seed)


def hunyuan15(seed: int = 0, **config: object) -> nn.Module:
    """HunyuanVideo 1.5: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 16h, 16w)."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16, 16, 16),
        "layers_per_block": 1,
    }
    make = released("AutoencoderKLHunyuanVideo15")
    return _seeded(lambda: make(**(options | config)), seed)


def cosmos(seed: int = 0, **config: object) -> AutoencoderKLCosmos:
    """Cosmos: latents (B, 4, T, h, w) to (B, 3, 8(T-1)+1, 8h, 8w); attention in the first block."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 8, 8, 16),
        "decode_block_out_channels": (8, 8, 8, 16),
        "attention_resolutions": (4,),
        "resolution": 64,
        "num_layers": 1,
        "latents_mean": None,
        "latents_std": None,
    }
    return _seeded(lambda: AutoencoderKLCosmos(**(options | config)), seed)


def clip_by_clip(vae: nn.Module, latents: torch.Tensor, call: Mapping[str, object]) -> torch.Tensor:
    """``vae.decode`` of each clip alone, for what fails over a batch."""
    return torch.cat([decode(vae, clip, call) for clip in latents.split(1)])


FAMILIES = (
    Family(
        "mochi",
        mochi,
        (4, 2, 3),
        (1, 2, 4),
        chunks=(None, 2, 3, 5),
        tolerance=2e-6,
        wide=1e-14,
        half=2**-7,  # a unit in the last place or two
        tile=lambda vae: vae.enable_tiling(32, 32, 24, 24),
        tiled_tolerance=2e-6,
    ),
    Family(
        "hunyuan15",
        hunyuan15,
        (4, 2, 3),
        (1, 2, 4),
        chunks=(None, 2, 3, 5),
        tolerance=5e-6,
        wide=2e-14,
        half=5e-2,
        tile=lambda vae: vae.enable_tiling(64, 64, 4, 4),
        tiled_tolerance=5e-6,
        reference=clip_by_clip,
        growing=True,
    ),
    Family(
        "cosmos",
        cosmos,
        (4, 3, 2),
        (1, 2, 4),
        chunks=(None, 2, 3, 5),
        tolerance=2e-5,  # of frames that reach 10
        wide=5e-14,
        half=0.2,
        growing=True,
    ),
    Family(
        "cosmos_rearranged",
        functools.partial(cosmos, patch_type="rearrange"),
        (4, 3, 2),
        (1, 3),
        chunks=(None, 2),
        tolerance=2e-5,
        wide=5e-14,
        half=0.2,
        growing=True,
    ),
)
