"""Tiny seeded autoencoders of diffusers' own classes, for tests.

Real classes, real walks, few channels. Parameters that start as all zeros or all ones would hide
mistakes (a bias that is never added, a norm that is never applied), so every one of them is
re-randomised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderOobleck,
)
from torch import nn

M = TypeVar("M", bound=nn.Module)


def randomised(module: M, seed: int = 0) -> M:
    """Re-randomise every constant parameter in place; ``module`` in eval mode, without grads."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            constant = bool((parameter == parameter.flatten()[0]).all())
            if not parameter.is_floating_point() or not constant:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype), alpha=0.1)
    return module.eval().requires_grad_(False)


def _seeded(make: Callable[[], M], seed: int) -> M:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # diffusers still builds Oobleck with the old weight_norm, which says so.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        return randomised(make(), seed)


def _statistics(channels: int) -> dict[str, list[float]]:
    return {
        "latents_mean": [0.1 * k - 0.15 for k in range(channels)],
        "latents_std": [1.0 + 0.3 * k for k in range(channels)],
    }


def wan21(seed: int = 0, channels: int = 4) -> AutoencoderKLWan:
    """Wan 2.1: latents (B, channels, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w)."""
    return _seeded(
        lambda: AutoencoderKLWan(
            base_dim=8,
            z_dim=channels,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            **_statistics(channels),
        ),
        seed,
    )


def wan22(seed: int = 0) -> AutoencoderKLWan:
    """Wan 2.2-5B (residual, patches of 2): (B, 6, T, h, w) to (B, 3, 4(T-1)+1, 16h, 16w)."""
    return _seeded(
        lambda: AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=12,
            z_dim=6,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            temperal_downsample=[False, True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            **_statistics(6),
        ),
        seed,
    )


def qwen_image(seed: int = 0) -> AutoencoderKLQwenImage:
    """QwenImage: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w)."""
    return _seeded(
        lambda: AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            **_statistics(4),
        ),
        seed,
    )


def kl(seed: int = 0, **config: object) -> AutoencoderKL:
    """AutoencoderKL: latents (B, 4, h, w) to (B, 3, 2h, 2w). ``config`` overrides its options."""
    options: dict[str, object] = {
        "block_out_channels": (16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 32,
    }
    return _seeded(lambda: AutoencoderKL(**(options | config)), seed)


def oobleck(seed: int = 0, strides: Sequence[int] = (2, 4, 4, 8, 8)) -> AutoencoderOobleck:
    """AutoencoderOobleck: latents (B, 8, T) to stereo sound (B, 2, about T * prod(strides))."""
    return _seeded(
        lambda: AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=list(strides),
            channel_multiples=[1] + [2] * (len(strides) - 1),
            decoder_channels=4,
            decoder_input_channels=8,
            sampling_rate=44100,
        ),
        seed,
    )
