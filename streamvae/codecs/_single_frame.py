"""Pictures that are clips of one frame: latents (B, C, 1, h, w)."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError

from ._by_item import ByItem
from ._module import check_decode_is_own, clips
from ._tiles import Grid


class SingleFrame(ByItem):
    """AutoencoderKLHunyuanImageRefiner: (B, C, 1, h, w) to (B, 3, 16h, 16w).

    Latents are those its ``decode`` takes; HunyuanImageRefinerPipeline gets them out of tokens
    with twice the channels (``_restore_image_tokens_order``).
    """

    layout: ClassVar[str] = "BCTHW"

    def check(self, shape: tuple[int, ...]) -> None:
        """Any number of items, one frame each; not in tiles, which diffusers joins wrongly."""
        super().check(shape)
        if shape[2] != 1:
            raise LatentsError(
                f"expected latents of {self.family} (B, C, 1, H, W), one frame an item, "
                f"got shape {tuple(shape)}"
            )
        self._check_tiles(shape)

    def _check_tiles(self, shape: tuple[int, ...]) -> None:
        if Grid.by_stride(self.module, shape) is not None:
            raise UsageError(
                f"expected {self.family} without tiling, since diffusers crops its tiles to as "
                f"many pixels as they have latents, got tiling on for latents of {shape[-2]}x"
                f"{shape[-1]}; call disable_tiling(), or enable_tiling with larger tiles"
            )

    def grid(self, shape: tuple[int, ...]) -> Grid | None:  # noqa: ARG002
        """None: tiles are refused."""
        return None

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        ratio: int = self.vae.config["spatial_compression_ratio"]
        return ratio

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.whole`; the frames, as pipelines take them out."""
        return super().whole(latents)[:, :, 0]

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.pictures`; the frame, as pipelines take it out."""
        return super().pictures(latents)[:, :, 0]


class SingleFrameCached(SingleFrame):
    """AutoencoderKLQwenImage21: (B, C, 1, h, w) to RGBA (B, 4, 16h, 16w).

    ``vae.decode`` has caches on the module that are of no use for one frame; but two calls at once
    may fill each other's (which raises). So here every call (with tiling: every tile) has its own.
    """

    channels_key: ClassVar[str] = "z_dim"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        patch: int | None = self.vae.config["patch_size"]
        self.patch = patch or 1
        self._source = cast("Any", importlib.import_module(base.__module__))

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        steps: int = len(self.vae.config["dim_mult"]) - 1
        return self.patch << steps

    def check(self, shape: tuple[int, ...]) -> None:
        """Any number of items, one frame each."""
        super().check(shape)
        self.check_overrides()

    def _check_tiles(self, shape: tuple[int, ...]) -> None:
        """Tiles are joined well."""

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `ByItem.grid`; its pixels count before unpatchifying."""
        return Grid.by_stride(self.module, shape, self.patch)

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, with tiling as it is set now: tiles may lose or gain some."""
        grid = self.grid(shape)
        if grid is None:
            return shape[-2] * self.scale, shape[-1] * self.scale
        height, width = grid.picture(shape, self.scale // self.patch)
        return height * self.patch, width * self.patch

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's statistics of each channel, as QwenImage21Pipeline does."""
        return latents * self.constant("latents_std", latents) + self.constant(
            "latents_mean", latents
        )

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.pictures`."""
        self.onload()
        items = clips(latents) if self.vae.use_slicing else (latents,)
        return torch.cat([self._whole(item) for item in items])

    def _whole(self, latents: torch.Tensor) -> torch.Tensor:
        grid = self.grid(tuple(latents.shape))
        if grid is None:
            frame = self.tile(latents)
        else:
            rows = [
                [self.tile(latents[..., high, wide]) for high, wide in row]
                for row in grid.windows(tuple(latents.shape))
            ]
            frame = grid.blend_tiles(rows, self.module)
        return self.finished(frame)

    def finished(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `ByItem.finished`: unpatchified, clamped, the frame taken out."""
        if self.patch > 1:
            pixels = self._source._unpatchify(pixels, patch_size=self.patch)
        return torch.clamp(pixels, min=-1.0, max=1.0)[:, :, 0]

    def tile(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.tile`: with caches of its own."""
        hidden: torch.Tensor = self.vae.post_quant_conv(latents)
        # At least one place for each convolution; more than are used do no harm.
        places = sum(isinstance(part, nn.Conv2d) for part in self.vae.decoder.modules())
        frame: torch.Tensor = self.vae.decoder(
            hidden, feat_cache=[None] * places, feat_idx=[0], first_chunk=True
        )
        return frame
