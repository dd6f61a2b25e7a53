"""VidTok, whose decoder interpolates in time."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import nn

from tests.releases import released
from tests.tiny import _seeded

from .family import Family


def vidtok(seed: int = 0, **config: object) -> nn.Module:
    """VidTok: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w)."""
    options: dict[str, object] = {
        "ch": 8,
        "ch_mult": [1, 2, 2, 2],
        "z_channels": 4,
        "num_res_blocks": 1,
    }
    make = released("AutoencoderVidTok")
    return _seeded(lambda: make(**(options | config)), seed)


def vidtok_tiled(seed: int = 0) -> nn.Module:
    """VidTok with tiling on: runs of 4 latents, tiles of 4x4 latents, 3 apart."""
    vae = vidtok(seed)
    tile(vae)
    return vae


def tile(vae: nn.Module) -> None:
    """Lay tiles of 4x4 latents."""
    vae.enable_tiling(32, 32, 0.25, 0.25)


@torch.no_grad()
def decode(vae: nn.Module, latents: torch.Tensor, call: Mapping[str, object]) -> torch.Tensor:
    """``vae.decode``, which gives a bare tensor here."""
    decoded: torch.Tensor = vae.decode(latents, **call)
    return decoded


FAMILIES = (
    Family(
        "vidtok",
        vidtok,
        (4, 3, 2),
        (1, 2, 3, 7),
        chunks=(None, 2, 5),
        tolerance=2e-5,
        half=2**-5,
        tile=tile,
        reference=decode,
    ),
    Family(
        "vidtok_tiled",
        vidtok_tiled,
        (4, 5, 3),
        (1, 2, 3, 5, 6, 10, 13),
        chunks=(None, 1, 6),
        reference=decode,
    ),
    Family(
        "vidtok_two_ways",  # not causal: looks ahead as well as back
        functools.partial(vidtok, is_causal=False),
        (4, 3, 2),
        (4, 7, 13),
        chunks=(None, 1, 6),
        tolerance=2e-5,
        half=2**-5,
        tile=tile,
        reference=decode,
    ),
)
