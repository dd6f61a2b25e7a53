"""Pictures: no time to walk, so a batch is decoded item by item, in bands of rows if tiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._bands import TileRows, tile_rows, tiles_as
from ._decoder import StreamDecoder
from ._module import ModuleCodec, check_count, check_shape, no_formula
from ._tiles import Grid


class ByItem(ModuleCodec):
    """AutoencoderKL: (B, C, h, w) to (B, 3, H, W), each chunk by ``vae.decode`` itself.

    So tiling, hooks and whatever else the autoencoder does in ``decode`` are honoured. Families
    that differ only in sizes and statistics derive from it.
    """

    kind: ClassVar[Kind] = "image"
    layout: ClassVar[str] = "BCHW"
    axis: ClassVar[int] = 0
    sample_rate: ClassVar[None] = None
    wants_all: ClassVar[bool] = False
    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode of each item, as vae.enable_slicing() gives it "
        "(several items in a chunk: within rounding)"
    )

    #: What the config calls the number of channels of the latents.
    channels_key: ClassVar[str] = "latent_channels"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        self.channels: int = self.vae.config[self.channels_key]

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """One item a chunk; any number in fast mode."""
        check_count(latents_per_chunk)
        items = latents_per_chunk or 1
        if mode == "exact" and items != 1:
            raise UsageError(
                "expected latents_per_chunk=1 in exact mode, since pictures decoded side by side "
                f"differ by rounding (about 3e-6 in float32), got {items}; pass mode='fast'"
            )
        return ChunkPlan(items, items)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any number of items, any size."""
        check_shape(shape, self.layout, self.channels)

    def frames(self, latents: int) -> int:
        """As many items as latents."""
        return latents

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        return 1 << (len(self.vae.config["block_out_channels"]) - 1)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """How ``vae.decode`` tiles latents of ``shape`` now; None if it does not."""
        vae = cast("Any", self.vae)
        if not vae.use_tiling or max(shape[-2:]) <= vae.tile_latent_min_size:
            return None
        tile, pixels = vae.tile_latent_min_size, vae.tile_sample_min_size
        stride = int(tile * (1 - vae.tile_overlap_factor))
        blend = int(pixels * vae.tile_overlap_factor)
        keep = pixels - blend
        return Grid((tile, tile), (stride, stride), (blend, blend), (keep, keep))

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, with tiling as it is set now: tiles may lose or gain some."""
        grid = self.grid(shape)
        if grid is not None:
            return grid.picture(shape, self.scale)
        return shape[-2] * self.scale, shape[-1] * self.scale

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Nothing is held back."""
        return 0

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the statistics of the config (SDXL's way), else by scale and shift (SD, SD3, Flux)."""
        config = self.vae.config
        scale: float | None = config["scaling_factor"]
        if scale is None:
            raise UsageError(
                f"expected scaling_factor in the config of {self.family} to denormalize latents, "
                "got None; denormalize them yourself and pass normalized=False"
            )
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            std = self.constant("latents_std", latents)
            return latents * std / scale + self.constant("latents_mean", latents)
        shift: float | None = config.get("shift_factor")
        return latents / scale if shift is None else latents / scale + shift

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: every item alone, as after ``vae.enable_slicing()``."""
        return torch.cat([super(ByItem, self).whole(item) for item in torch.split(latents, 1)])

    #: Pixels along a side that are unpatchified after tiles were blended, of which they count one.
    patch: int = 1

    def bands(self, shape: tuple[int, ...], mode: str) -> tuple[range, ...]:  # noqa: ARG002
        """See `streamvae.abc.Banded`: the rows that each row of tiles gives, if it tiles."""
        grid = self.grid(shape)
        if grid is None or not tiles_as(self.module, self._made_of[0][0]):
            return ()
        rows, patch = tile_rows(grid, shape, self.scale // self.patch), self.patch
        return tuple(range(row.start * patch, row.stop * patch) for row in rows)

    def in_bands(self, latents: torch.Tensor, mode: str) -> Iterator[torch.Tensor]:
        """See `streamvae.abc.Banded`: equal bit for bit to ``vae.decode`` with these tiles."""
        shape = tuple(latents.shape)
        grid, bands = self.grid(shape), self.bands(shape, mode)
        if grid is None:
            return
        tiles = TileRows(grid, latents, self.tile, self.module)
        for row, band in zip(grid.windows(shape), bands, strict=False):
            self.onload()
            yield self.finished(tiles.band(row, len(band) // self.patch))

    def tile(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one tile, as ``vae.decode`` does."""
        vae = cast("Any", self.vae)
        convolve = getattr(vae, "post_quant_conv", None)
        decoded: torch.Tensor = vae.decoder(latents if convolve is None else convolve(latents))
        return decoded

    def finished(self, pixels: torch.Tensor) -> torch.Tensor:
        """What is done to blended tiles."""
        return pixels

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the items of one chunk: latents as ``vae.decode`` takes them, to (B, C, H, W)."""
        return self.vae.decode(latents, return_dict=False)[0]

    def decoder(self) -> Decoder:
        """A stream over a batch; it has no state."""
        return _Items(self)


class ByItemFlux2(ByItem):
    """AutoencoderKLFlux2: as AutoencoderKL, but its normalisation is that of patches of 2x2."""

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side; the decoder may have blocks of its own."""
        config = self.vae.config
        blocks = config.get("decoder_block_out_channels") or config["block_out_channels"]
        return 1 << (len(blocks) - 1)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the batch norm of the encoder, which has four statistics a channel, as Flux2Pipeline.

        Raises:
            LatentsError: There is no even number of latents (..., C, h, w) along a side.
        """
        batch, channels, height, width = latents.shape
        if height % 2 or width % 2:
            raise LatentsError(
                f"expected latents of {self.family} to denormalize in patches of 2x2, "
                f"got height {height} and width {width}"
            )
        mean, std = (self._batch_norm(name, latents) for name in ("mean", "std"))
        patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        return (patches * std + mean).reshape(latents.shape)

    def _batch_norm(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """One of the batch norm's, as (1, C, 1, 2, 1, 2) of the device and dtype of ``like``."""
        place = (name, like.device, like.dtype)
        if place not in self._constants:
            norm = cast("Any", self.vae).bn
            value: torch.Tensor = norm.running_mean
            if name == "std":
                # In the dtype of the weights, and only then cast, as the pipelines do.
                value = torch.sqrt(norm.running_var + self.vae.config["batch_norm_eps"])
            self._constants[place] = value.to(like.device, like.dtype)
        return self._constants[place].view(1, -1, 1, 2, 1, 2)


class ByItemHunyuan(ByItem):
    """AutoencoderKLHunyuanImage: as AutoencoderKL, with a ratio of its own."""

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        ratio: int = self.vae.config["spatial_compression_ratio"]
        return ratio


class ByItemKVAE(ByItem):
    """AutoencoderKLKVAE: as AutoencoderKL, but nothing says how its latents are normalized."""

    channels_key: ClassVar[str] = "z_channels"

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        return 1 << (len(self.vae.config["ch_mult"]) - 1)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Unknown.

        Raises:
            UsageError: Always; neither its config nor any pipeline of diffusers has a formula.
        """
        raise no_formula(self.family)


class ByItemDeep(ByItem):
    """AutoencoderDC (Sana): (B, C, h, w) to (B, 3, 32h, 32w), one block less a half of that."""

    @property
    def scale(self) -> int:
        """Pixels a latent, along a side."""
        return 1 << (len(self.vae.config["decoder_block_out_channels"]) - 1)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """How ``vae.decode`` tiles latents of ``shape`` now; None if it does not."""
        vae = cast("Any", self.vae)
        limits = (vae.tile_latent_min_height, vae.tile_latent_min_width)
        if not vae.use_tiling or (shape[-2] <= limits[0] and shape[-1] <= limits[1]):
            return None
        ratio: int = vae.spatial_compression_ratio
        least = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        step = (vae.tile_sample_stride_height, vae.tile_sample_stride_width)
        return Grid(
            (least[0] // ratio, least[1] // ratio),
            (step[0] // ratio, step[1] // ratio),
            (least[0] - step[0], least[1] - step[1]),
            step,
        )


class _Items(StreamDecoder):
    """One stream's place in the batch: nothing but whether it has ended."""

    def __init__(self, codec: ByItem) -> None:
        self._codec = codec

    def _push(self, latents: torch.Tensor) -> torch.Tensor:
        return self._codec.pictures(latents)
