"""Wan 2.2-5B and QwenImage by the fused step, over its reference kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from streamvae.codecs import codec_for
from streamvae.fast._wan import step_codec
from tests import tiny
from tests.codecs.walk import noise, walk, whole
from tests.fast.wan import CPU, close, over, wan


@pytest.mark.parametrize("make", [tiny.wan22, tiny.qwen_image])
def test_other_families(make: Callable[[], nn.Module]) -> None:
    """Wan 2.2's shortcuts and patches, and QwenImage: any length and chunk, batches, slices."""
    vae = make()
    channels = vae.config.z_dim
    for batch, length, count, size in ((1, 1, 1, (3, 2)), (2, 5, 1, (1, 3)), (1, 7, 3, (4, 3))):
        latents = noise(batch, channels, length, *size)
        assert close(walk(over(vae), latents, count, "fast"), whole(vae, latents))
    vae.enable_slicing()
    latents = noise(2, channels, 3, 2, 3)
    assert close(walk(over(vae), latents, 1, "fast"), whole(vae, latents))


@pytest.mark.parametrize(
    "config",
    [
        {"dim_mult": [1, 2, 2], "temperal_downsample": [False, True], "num_res_blocks": 0},
        {"dim_mult": [1, 4, 4], "temperal_downsample": [True, True]},
        {"dim_mult": [1, 1], "temperal_downsample": [True], "base_dim": 6},
        {"dim_mult": [1, 2, 2], "temperal_downsample": [False, False], "patch_size": None},
    ],
)
def test_any_residual_form(config: dict[str, object]) -> None:
    """Shortcuts that repeat channels otherwise, around blocks of any number; other patches."""
    patch = config.get("patch_size", 2)
    channels = 3 if patch is None else 3 * patch**2
    shape = {"is_residual": True, "in_channels": channels, "out_channels": channels}
    vae = wan(**(shape | {"patch_size": 2} | config))
    latents = noise(1, 4, 4, 3, 2)
    assert close(walk(over(vae), latents, 2, "fast"), whole(vae, latents))


def test_residual_tiles() -> None:
    """Tiles of Wan 2.2 are blended in patches, as the autoencoder does."""
    vae = tiny.wan22()
    vae.enable_tiling(64, 64, 48, 48)
    latents = noise(1, 6, 3, 5, 7)
    assert float((walk(over(vae), latents, 1, "fast") - whole(vae, latents)).abs().max()) <= 1e-4


def test_a_shortcut_that_does_not_fit() -> None:
    """A shortcut that upsamples otherwise than its block is left to diffusers."""
    vae = tiny.wan22()
    vae.decoder.up_blocks[0].avg_shortcut.factor_t = 1
    reason = step_codec(codec_for(vae), CPU, reference=True)
    assert reason == "they do not know a shortcut that upsamples otherwise than its block"
