"""Configurations of AutoencoderKLWan as released, whose kernels are shipped."""

from __future__ import annotations

#: Wan 2.1's, which are diffusers' defaults. QwenImage's decoder has the same widths.
WAN21: dict[str, object] = {}

#: Wan 2.2-5B's, but for the statistics of its latents.
WAN22: dict[str, object] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": None,
    "latents_std": None,
}
