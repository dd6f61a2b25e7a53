"""Spatial tiles: the grid that ``tiled_decode`` of diffusers' autoencoders lays, and its blending.

Tiles overlap; every tile but the topmost is faded into the one above, every tile but the leftmost
into the one on its left, and the rest is cropped. All of it is done frame by frame, so a chunk of
every tile is enough: whole clips of tiles need not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import nn

#: Height and width.
Extent = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where tiles lie, and how their pixels are joined. Pixels count before any unpatchifying.

    Attributes:
        tile: Latents of a tile (those at the far edges are smaller).
        stride: Latents from one tile to the next.
        blend: Pixels faded into the tile before.
        keep: Pixels of a tile that stay.
        crop: Pixels of the whole; None to leave what the tiles give.
    """

    tile: Extent
    stride: Extent
    blend: Extent
    keep: Extent
    crop: Extent | None = None

    @classmethod
    def by_stride(cls, vae: nn.Module, shape: tuple[int, ...], patch: int = 1) -> Self | None:
        """The grid of autoencoders with ``tile_sample_min_*`` and ``tile_sample_stride_*``.

        Args:
            vae: The autoencoder, as its options are set now.
            shape: Of the latents, (..., h, w).
            patch: Pixels along a side that are unpatchified after blending.

        Returns:
            None where ``vae.decode`` does not tile latents of ``shape``.
        """
        options = cast("Any", vae)
        scale: int = options.spatial_compression_ratio
        least = (options.tile_sample_min_height, options.tile_sample_min_width)
        step = (options.tile_sample_stride_height, options.tile_sample_stride_width)
        tile = (least[0] // scale, least[1] // scale)
        if not options.use_tiling or _fits(shape, tile):
            return None
        keep = (step[0] // patch, step[1] // patch)
        return cls(
            tile,
            (step[0] // scale, step[1] // scale),
            (least[0] // patch - keep[0], least[1] // patch - keep[1]),
            keep,
            (shape[-2] * scale // patch, shape[-1] * scale // patch),
        )

    @classmethod
    def by_overlap(
        cls, vae: nn.Module, shape: tuple[int, ...], factors: tuple[float, float]
    ) -> Self | None:
        """The grid of autoencoders with ``tile_latent_min_*`` and a factor by which tiles overlap.

        Args:
            vae: The autoencoder, as its options are set now.
            shape: Of the latents, (..., h, w).
            factors: Part of a tile's height and width that overlaps.

        Returns:
            None where ``vae.decode`` does not tile latents of ``shape``.
        """
        options = cast("Any", vae)
        tile = (options.tile_latent_min_height, options.tile_latent_min_width)
        pixels = (options.tile_sample_min_height, options.tile_sample_min_width)
        if not options.use_tiling or _fits(shape, tile):
            return None
        blend = (int(pixels[0] * factors[0]), int(pixels[1] * factors[1]))
        return cls(
            tile,
            (int(tile[0] * (1 - factors[0])), int(tile[1] * (1 - factors[1]))),
            blend,
            (pixels[0] - blend[0], pixels[1] - blend[1]),
        )

    def windows(self, shape: tuple[int, ...]) -> list[list[tuple[slice, slice]]]:
        """Rows of columns of tiles, each as slices of height and width of latents of ``shape``."""
        height, width = shape[-2:]
        return [
            [
                (slice(top, top + self.tile[0]), slice(left, left + self.tile[1]))
                for left in range(0, width, self.stride[1])
            ]
            for top in range(0, height, self.stride[0])
        ]

    def picture(self, shape: tuple[int, ...], scale: int) -> Extent:
        """Height and width that latents of ``shape`` give, at ``scale`` pixels a latent.

        Not always ``scale`` times theirs: tiles whose sizes do not divide lose or gain some.
        """
        sides = []
        for side in (0, 1):
            length = shape[side - 2]
            starts = range(0, length, self.stride[side])
            tiles = [min(self.tile[side], length - start) * scale for start in starts]
            given = sum(min(tile, self.keep[side]) for tile in tiles)
            sides.append(given if self.crop is None else min(given, self.crop[side]))
        return sides[0], sides[1]

    def blend_tiles(self, rows: list[list[torch.Tensor]], vae: nn.Module) -> torch.Tensor:
        """Join a chunk of every tile, (B, C, T, H, W), in place, by ``vae``'s own fades."""
        fade = cast("Any", vae)
        joined = []
        for number, row in enumerate(rows):
            kept = []
            for place, tile in enumerate(row):
                faded = tile
                if number:
                    faded = fade.blend_v(rows[number - 1][place], faded, self.blend[0])
                if place:
                    faded = fade.blend_h(row[place - 1], faded, self.blend[1])
                kept.append(faded[..., : self.keep[0], : self.keep[1]])
            joined.append(torch.cat(kept, -1))
        whole = torch.cat(joined, -2)
        return whole if self.crop is None else whole[..., : self.crop[0], : self.crop[1]]


def _fits(shape: tuple[int, ...], tile: Extent) -> bool:
    return shape[-2] <= tile[0] and shape[-1] <= tile[1]
