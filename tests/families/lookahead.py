"""Families whose frames depend on latents still to come, a bounded number of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import nn

from tests.releases import released
from tests.tiny import _seeded

from .family import Family


def ltx(seed: int = 0, **config: object) -> AutoencoderKLLTXVideo:
    """LTX 0.9.0, not causal: (B, 8, T, h, w) to (B, 3, 8(T-1)+1, 32h, 32w)."""
    options: dict[str, object] = {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_block_out_channels": (8, 8, 16, 16),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }
    return _with_statistics(_seeded(lambda: AutoencoderKLLTXVideo(**(options | config)), seed))


def ltx_091(seed: int = 0, **config: object) -> AutoencoderKLLTXVideo:
    """LTX 0.9.1, conditioned on a timestep, with noise in its layers; residual upsamplers."""
    options: dict[str, object] = {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 2, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (True, True, True, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    }
    return ltx(seed, **(options | config))


def ltx_095(seed: int = 0, **config: object) -> AutoencoderKLLTXVideo:
    """LTX 0.9.5, conditioned on a timestep, without noise; its down blocks are of other kinds."""
    options: dict[str, object] = {
        "block_out_channels": (4, 8, 16, 32, 32),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "spatio_temporal_scaling": (True, True, True, True),
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "decoder_inject_noise": (False, False, False, False),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
    return ltx_091(seed, **(options | config))


def ltx2(seed: int = 0, **config: object) -> nn.Module:
    """LTX-2 as released, not causal: (B, 8, T, h, w) to (B, 3, 8(T-1)+1, 32h, 32w)."""
    options: dict[str, object] = {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_block_out_channels": (16, 32, 64),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_causal": False,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
    return _with_statistics(
        _seeded(lambda: released("AutoencoderKLLTX2Video")(**(options | config)), seed)
    )


def _with_statistics(vae: nn.Module) -> nn.Module:
    count = vae.config.latent_channels
    vae.latents_mean.copy_(torch.linspace(-0.3, 0.4, count))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, count))
    return vae


def conditioned(vae: nn.Module, batch: int = 1) -> Mapping[str, object]:
    """Arguments of ``decode``: timesteps for a batch, where the decoder wants them."""
    wants = vae.decoder.timestep_scale_multiplier is not None
    return {"temb": torch.linspace(0.05, 0.5, batch)} if wants else {}


def _timestep(length: int) -> Mapping[str, object]:
    return {"temb": torch.tensor([0.05])}


def _tile(vae: nn.Module) -> None:
    vae.enable_tiling(
        tile_sample_min_height=96,
        tile_sample_min_width=96,
        tile_sample_stride_height=64,
        tile_sample_stride_width=64,
    )


#: Numbers of latents. The look-ahead of these tiny decoders is 7 to 10 of them.
_LENGTHS = (1, 2, 7)

# Where the norms are float32 inside (LTX), float64 differs by their rounding. In bfloat16 frames
# are mostly equal; where not, the kernels for other numbers of frames rounded otherwise.
FAMILIES = (
    Family(
        "ltx",
        ltx,
        (8, 2, 2),
        _LENGTHS,
        chunks=(None, 3),
        tolerance=4e-6,
        wide=1e-6,
        half=5e-2,
        tile=_tile,
        tiled=(5, 4),
        tiled_tolerance=4e-6,
    ),
    Family(
        "ltx-causal",
        functools.partial(ltx, decoder_causal=True),
        (8, 2, 2),
        _LENGTHS,
        chunks=(None, 3),
        tolerance=4e-6,
        wide=1e-6,
        half=5e-2,
    ),
    Family(
        "ltx-0.9.1",
        ltx_091,
        (8, 2, 2),
        _LENGTHS,
        chunks=(None, 3),
        tolerance=1e-5,
        wide=2e-6,
        half=1e-1,
        batched=False,
        tile=_tile,
        tiled=(5, 4),
        tiled_tolerance=1e-5,
        call=_timestep,
    ),
    Family(
        "ltx-0.9.5",
        ltx_095,
        (8, 2, 2),
        _LENGTHS,
        chunks=(None,),
        tolerance=1e-5,
        wide=3e-6,
        half=1e-1,
        batched=False,
        call=_timestep,
    ),
    Family(
        "ltx2",
        ltx2,
        (8, 2, 2),
        (*_LENGTHS, 11),
        chunks=(None, 3),
        tolerance=3e-6,
        wide=1e-14,
        half=5e-2,
        tile=_tile,
        tiled=(4, 6),
        tiled_tolerance=3e-6,
    ),
    Family(
        "ltx2-causal",
        functools.partial(ltx2, decoder_causal=True),
        (8, 2, 2),
        _LENGTHS,
        chunks=(None, 3),
        tolerance=3e-6,
        wide=1e-14,
        half=5e-2,
    ),
)
