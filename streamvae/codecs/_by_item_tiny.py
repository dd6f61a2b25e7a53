"""AutoencoderTiny (TAESD): pictures by convolutions alone, in tiles of its own kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import UsageError

from ._bands import tiles_as
from ._by_item import ByItem
from ._tiles import Grid


class ByItemTiny(ByItem):
    """AutoencoderTiny: (B, C, h, w) to (B, 3, 8h, 8w), or what its upsampling makes of them.

    With tiling on it always tiles, even what fits one tile. Without, fast mode decodes some rows at
    a time, with as many around them as they depend on.
    """

    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode of each item, as vae.enable_slicing() gives it "
        "(in fast mode: within rounding)"
    )

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        config = self.vae.config
        factor: int = config["upsampling_scaling_factor"]
        steps: int = len(config["num_decoder_blocks"]) - 1
        return cast("int", factor**steps)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:  # noqa: ARG002
        """None: its tiles are faded by masks, into a picture of the size it has without them."""
        return None

    def bands(self, shape: tuple[int, ...], mode: str) -> tuple[range, ...]:
        """See `streamvae.abc.Banded`: what rows of its tiles make final.

        Without tiling and in fast mode: as many rows as a tile's, decoded with a halo.
        """
        vae = cast("Any", self.vae)
        if not tiles_as(self.module, self._made_of[0][0]):
            return ()
        if vae.use_tiling:
            step = _step(vae)
        elif mode == "fast" and self.halo:
            step = vae.tile_latent_min_size
        else:
            return ()
        tops = range(0, shape[-2], step)
        return tuple(
            range(top * self.scale, min(top + step, shape[-2]) * self.scale) for top in tops
        )

    def in_bands(self, latents: torch.Tensor, mode: str) -> Iterator[torch.Tensor]:
        """See `streamvae.abc.Banded`: equal bit for bit to ``vae.decode`` where it tiles.

        With a halo: within rounding, since convolutions of another size may take another algorithm.
        """
        rows = MaskedRows(latents, self.module) if cast("Any", self.vae).use_tiling else None
        for band in self.bands(tuple(latents.shape), mode):
            self.onload()
            top, height = band.start // self.scale, len(band) // self.scale
            if rows is not None:
                yield rows.band(top, height)
            else:
                yield self._with_halo(latents, top, height)

    @property
    def halo(self) -> int:
        """Latents above and below that a row depends on; 0 where that is not known."""
        reach, scale = 0.0, 1.0
        for part in cast("Any", self.vae).decoder.modules():
            if isinstance(part, nn.Conv2d):
                reach += part.kernel_size[0] // 2 / scale
            elif isinstance(part, nn.Upsample):
                if part.mode != "nearest":
                    return 0
                scale *= cast("float", part.scale_factor)
        return math.ceil(reach)

    def _with_halo(self, latents: torch.Tensor, top: int, height: int) -> torch.Tensor:
        above, halo = min(top, self.halo), self.halo
        part = latents[..., top - above : top + height + halo, :]
        pixels: torch.Tensor = self.vae.decode(part, return_dict=False)[0]
        return pixels[..., above * self.scale : (above + height) * self.scale, :]

    def check(self, shape: tuple[int, ...]) -> None:
        """Any number of items, any size; in tiles only where diffusers can join them."""
        super().check(shape)
        vae = cast("Any", self.vae)
        if not vae.use_tiling:
            return
        if self.vae.config["out_channels"] not in {1, 3}:  # one channel is copied into all three
            raise UsageError(
                f"expected {self.family} without tiling, since diffusers joins tiles of 3 channels "
                f"only, got out_channels={self.vae.config['out_channels']}; call disable_tiling()"
            )
        if vae.spatial_scale_factor != self.scale:
            raise UsageError(
                f"expected spatial_scale_factor={self.scale}, the pixels a latent of this "
                f"{self.family}, got {vae.spatial_scale_factor} (diffusers takes 2**out_channels "
                "for it), so that its tiles cannot be joined; set vae.spatial_scale_factor and "
                "vae.tile_latent_min_size, or call disable_tiling()"
            )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Says when pictures are not of the weights' dtype."""
        if not cast("Any", self.vae).use_tiling or self.dtype == torch.float32:
            return ()
        return (f"{self.family} gives float32 pictures when it tiles, whatever its weights are",)


def _step(vae: nn.Module) -> int:
    """Latents from one of its tiles to the next."""
    options = cast("Any", vae)
    tile: int = options.tile_latent_min_size
    return tile - int(tile * options.tile_overlap_factor)


class MaskedRows:
    """One picture's rows of tiles, faded by masks into what is there, as `_tiled_decode` does it.

    Args:
        latents: (B, C, h, w).
        vae: An AutoencoderTiny that tiles.
    """

    def __init__(self, latents: torch.Tensor, vae: nn.Module) -> None:
        self._latents = latents
        self._vae = cast("Any", vae)
        self._masks: torch.Tensor | None = None
        self._tail: torch.Tensor | None = None

    def band(self, top: int, height: int) -> torch.Tensor:
        """Decode the row of tiles at latent ``top``; its first ``height`` latents are final."""
        vae, latents = self._vae, self._latents
        scale, tile = vae.spatial_scale_factor, vae.tile_latent_min_size
        rows = min(tile, latents.shape[-2] - top)
        width = latents.shape[-1]
        # Float32 whatever the weights are: so does diffusers.
        canvas = torch.zeros(
            latents.shape[0], 3, rows * scale, width * scale, device=latents.device
        )
        if self._tail is not None:
            canvas[..., : self._tail.shape[-2], :] = self._tail
        for left in range(0, width, _step(vae)):
            decoded = vae.decoder(latents[..., top : top + rows, left : left + tile])
            place = canvas[..., left * scale : (left + tile) * scale]
            mask = self._mask(top, left)[..., : decoded.shape[-2], : decoded.shape[-1]]
            place.copy_(mask * decoded + (1 - mask) * place)
        self._tail = canvas[..., height * scale :, :].clone()
        return canvas[..., : height * scale, :]

    def _mask(self, top: int, left: int) -> torch.Tensor:
        """How much of a tile shows: less where it lies over the one above or on its left."""
        if self._masks is None:
            scale, tile = self._vae.spatial_scale_factor, self._vae.tile_latent_min_size
            overlap = tile - _step(self._vae)
            ramp = torch.arange(tile * scale) / (overlap * scale - 1)
            masks = torch.stack(torch.meshgrid([ramp, ramp], indexing="ij"))
            self._masks = masks.clamp(0, 1).to(self._latents.device)
        high, wide = (
            mask if start else torch.ones_like(mask)
            for mask, start in zip(self._masks, (top, left), strict=True)
        )
        return high * wide
