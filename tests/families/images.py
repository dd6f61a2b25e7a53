"""Families of image autoencoders: tiny ones, and how they tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC, AutoencoderKLHunyuanImage
from torch import nn

from tests import tiny
from tests.releases import released
from tests.tiny import _seeded


@dataclass(frozen=True)
class Image:
    """A tiny image autoencoder.

    Attributes:
        name: Names the tests.
        make: Builds it.
        latents: C, h, w of its tiny latents.
        tile: Turns tiling on, with tiles smaller than (7, 7) latents.
    """

    name: str
    make: Callable[[], nn.Module]
    latents: tuple[int, int, int]
    tile: Callable[[nn.Module], None]


def flux2(seed: int = 0, **config: object) -> nn.Module:
    """AutoencoderKLFlux2: latents (B, 4, h, w) to (B, 3, 2h, 2w); its batch norm has statistics."""
    options: dict[str, object] = {
        "block_out_channels": (16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 32,
    }
    make = released("AutoencoderKLFlux2", *config)
    vae = _seeded(lambda: make(**(options | config)), seed)
    generator = torch.Generator().manual_seed(seed)
    vae.bn.running_mean.normal_(generator=generator)
    vae.bn.running_var.uniform_(0.5, 2.0, generator=generator)
    return vae


def deep(seed: int = 0, **config: object) -> AutoencoderDC:
    """AutoencoderDC: latents (B, 4, h, w) to (B, 3, 2h, 2w), with linear attention."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "scaling_factor": 0.41407,
    }
    return _seeded(lambda: AutoencoderDC(**(options | config)), seed)


def hunyuan(seed: int = 0, **config: object) -> AutoencoderKLHunyuanImage:
    """AutoencoderKLHunyuanImage: latents (B, 16, h, w) to (B, 3, 4h, 4w)."""
    options: dict[str, object] = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "block_out_channels": (64, 64, 64),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "sample_size": 32,
        "scaling_factor": 0.75289,
    }
    return _seeded(lambda: AutoencoderKLHunyuanImage(**(options | config)), seed)


def kvae(seed: int = 0, **config: object) -> nn.Module:
    """AutoencoderKLKVAE: latents (B, 4, h, w) to (B, 3, 2h, 2w)."""
    options: dict[str, object] = {
        "channels": 64,  # of 32 groups: alone in one, a tile of 1x1 latent could not be normalized
        "ch_mult": (1, 1),
        "num_enc_blocks": 1,
        "num_dec_blocks": 1,
        "z_channels": 4,
        "sample_size": 32,
    }
    make = released("AutoencoderKLKVAE", *config)
    return _seeded(lambda: make(**(options | config)), seed)


def _square(tile: int, pixels: int) -> Callable[[nn.Module], None]:
    """Tiling of autoencoders with square tiles; ``pixels`` need not fit ``tile``."""

    def enable(vae: nn.Module) -> None:
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = tile, pixels

    return enable


IMAGES = (
    Image("kl", tiny.kl, (4, 3, 4), _square(6, 13)),
    Image("flux2", flux2, (4, 3, 4), _square(6, 12)),
    Image(
        "flux2_small_decoder",
        lambda: flux2(decoder_block_out_channels=(8, 8)),
        (4, 2, 2),
        _square(5, 10),
    ),
    Image("hunyuan", hunyuan, (16, 2, 3), lambda vae: vae.enable_tiling(24, 0.25)),
    Image("kvae", kvae, (4, 2, 3), _square(6, 12)),
    Image("dc", deep, (4, 3, 4), lambda vae: vae.enable_tiling(10, 8, 7, 6)),
)
