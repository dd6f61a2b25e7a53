"""Pictures band by band: a row of diffusers' tiles at a time, from top to bottom.

``tiled_decode`` keeps every tile until the last one is decoded. But a row of tiles is faded only
into the row above it, of which the lowest pixels are enough; what is above those is final.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from ._tiles import Grid

#: What `tiled_decode` and what leads to it are called.
_WAYS = ("decode", "_decode", "tiled_decode", "_tiled_decode")


def tiles_as(module: nn.Module, base: type) -> bool:
    """Whether ``module`` decodes by the very methods of ``base``, a class of diffusers'.

    Methods of its own (a subclass's, or compiled ones) may do anything, so they must be called.
    """
    return not any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(base, name, None)
        for name in _WAYS
    )


def tile_rows(grid: Grid, shape: tuple[int, ...], scale: int) -> tuple[range, ...]:
    """Rows of pixels that each row of tiles gives, those that give none left out.

    Args:
        grid: How latents are cut.
        shape: Of the latents, (..., h, w).
        scale: Pixels a latent, before any unpatchifying, as ``grid`` counts them.
    """
    bands: list[range] = []
    end = 0
    for top in range(0, shape[-2], grid.stride[0]):
        height = min(min(grid.tile[0], shape[-2] - top) * scale, grid.keep[0])
        if grid.crop is not None:
            height = min(height, grid.crop[0] - end)
        if height > 0:
            bands.append(range(end, end + height))
            end += height
    return tuple(bands)


class TileRows:
    """One picture's rows of tiles, with the tail of the row before.

    Args:
        grid: How latents are cut.
        latents: (B, C, ..., h, w).
        decode: Decodes one tile of them.
        vae: Whose fades join them.
    """

    def __init__(
        self,
        grid: Grid,
        latents: torch.Tensor,
        decode: Callable[[torch.Tensor], torch.Tensor],
        vae: nn.Module,
    ) -> None:
        self._grid = grid
        self._latents = latents
        self._decode = decode
        self._fade = cast("Any", vae)
        self._tails: list[torch.Tensor] = []

    def band(self, row: list[tuple[slice, slice]], height: int) -> torch.Tensor:
        """Decode the next row of tiles; its uppermost ``height`` rows of pixels are final."""
        grid, tails = self._grid, self._tails
        kept: list[torch.Tensor] = []
        before: torch.Tensor | None = None
        self._tails = []
        for place, (high, wide) in enumerate(row):
            tile = self._decode(self._latents[..., high, wide])
            if tails:
                tile = self._fade.blend_v(tails[place], tile, grid.blend[0])
            if before is not None:
                tile = self._fade.blend_h(before, tile, grid.blend[1])
            before = tile
            # A copy, or it would keep all of the tile.
            self._tails.append(tile[..., max(tile.shape[-2] - grid.blend[0], 0) :, :].clone())
            kept.append(tile[..., :height, : grid.keep[1]])
        joined = torch.cat(kept, -1)
        return joined if grid.crop is None else joined[..., : grid.crop[1]]
