"""Families whose convolutions cache frames the way diffusers does it."""

from __future__ import annotations

from tests import tiny

from .family import Family

FAMILIES = (
    Family(
        "wan21",
        tiny.wan21,
        (4, 3, 2),
        (1, 2, 3, 9),
        fast_chunks=(2, 4),
        tolerance=0.0,
        tile=lambda vae: vae.enable_tiling(32, 32, 24, 24),
    ),
    Family(
        "wan22",
        tiny.wan22,
        (6, 3, 2),
        (1, 2, 5),
        fast_chunks=(2,),
        tile=lambda vae: vae.enable_tiling(64, 64, 48, 48),
    ),
    Family(
        "qwen_image",
        tiny.qwen_image,
        (4, 3, 2),
        (1, 2, 5),
        fast_chunks=(4,),
        tile=lambda vae: vae.enable_tiling(32, 32, 24, 24),
    ),
)
