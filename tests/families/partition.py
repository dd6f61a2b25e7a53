"""Families that decode latents in segments of their own, and hand a state from one to the next."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLMagvit,
)
from torch import nn

from tests.releases import released
from tests.tiny import _seeded

from .family import Family


def cogvideox(seed: int = 0, **config: object) -> AutoencoderKLCogVideoX:
    """CogVideoX: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1 or, T even, 4T, 8h, 8w)."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "block_out_channels": (4, 4, 4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_height": 64,
        "sample_width": 48,
    }
    return _seeded(lambda: AutoencoderKLCogVideoX(**(options | config)), seed)


def kvae_video(seed: int = 0, **config: object) -> nn.Module:
    """KVAE: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w), three less for T = 6, 10, ..."""
    options: dict[str, object] = {
        "ch": 32,  # its norms have 32 groups
        "ch_mult": (1, 1, 1, 1),
        "num_res_blocks": 1,
        "z_channels": 4,
    }
    return _seeded(lambda: released("AutoencoderKLKVAEVideo")(**(options | config)), seed)


def kandinsky6_sr(seed: int = 0, **config: object) -> nn.Module:
    """Kandinsky 6 SR: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 16h, 16w)."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "encoder_block_out_channels": (4,) * 5,
        "decoder_block_out_channels": (4, 6, 4, 6, 4),
        "layers_per_block": 1,
    }
    return _seeded(lambda: released("Kandinsky6SRVAE")(**(options | config)), seed)


def magvit(seed: int = 0, **config: object) -> AutoencoderKLMagvit:
    """Magvit: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w)."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "block_out_channels": [4, 4, 6, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
    }
    return _seeded(lambda: AutoencoderKLMagvit(**(options | config)), seed)


FAMILIES = (
    Family(
        "cogvideox",
        cogvideox,
        (4, 3, 2),
        (1, 2, 3, 4, 7),
        chunks=(None, 2, 4),
        tile=lambda vae: vae.enable_tiling(32, 24),
    ),
    Family(
        "kvae_video",
        kvae_video,
        (4, 2, 3),
        (1, 2, 6, 9, 11),
        chunks=(None, 4, 8),
    ),
    Family(
        "kandinsky6_sr",
        kandinsky6_sr,
        (4, 2, 3),
        (1, 2, 6, 10),
        chunks=(None, 4, 8),
        fast_chunks=(1, 6),
    ),
    Family(
        "magvit",
        magvit,
        (4, 3, 2),
        (1, 2, 4),
        chunks=(None, 2, 3),
        tile=lambda vae: vae.enable_tiling(32, 32, None, 24, 24),
    ),
    Family(
        "magvit_joint_norm",
        lambda: magvit(spatial_group_norm=False),
        (4, 3, 2),
        (1, 2, 4),
        chunks=(None, 2),
        tile=lambda vae: vae.enable_tiling(32, 24, None, 24, 16),
    ),
)
