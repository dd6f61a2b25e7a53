"""AutoencoderTiny (TAESD): pictures by convolutions alone, in tiles of its own kind."""

from __future__ import annotations

from typing import Any, cast

import torch

from streamvae._errors import UsageError

from ._by_item import ByItem
from ._tiles import Grid


class ByItemTiny(ByItem):
    """AutoencoderTiny: (B, C, h, w) to (B, 3, 8h, 8w), or what its upsampling makes of them.

    With tiling on it always tiles, even what fits one tile.
    """

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
