"""Pictures: no time to walk, so a batch is decoded item by item."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from streamvae._errors import ClosedError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._module import ModuleCodec, check_count, check_shape


class ByItem(ModuleCodec):
    """AutoencoderKL: (B, C, h, w) to (B, 3, H, W), each chunk by ``vae.decode`` itself.

    So tiling, hooks and whatever else the autoencoder does in ``decode`` are honoured.
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

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        self.channels: int = self.vae.config["latent_channels"]

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

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, with tiling as it is set now."""
        height, width = shape[-2:]
        tile = getattr(self.vae, "tile_latent_min_size", 0)
        tiled = self.vae.use_tiling and max(height, width) > tile
        return self._extent(height, tiled=tiled), self._extent(width, tiled=tiled)

    def _extent(self, latents: int, *, tiled: bool) -> int:
        """Pixels along one side. Tiles whose sizes do not divide lose or gain some."""
        scale: int = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        if not tiled:
            return latents * scale
        tile: int = getattr(self.vae, "tile_latent_min_size")  # noqa: B009  # not in the Protocol
        pixels: int = getattr(self.vae, "tile_sample_min_size")  # noqa: B009
        overlap: float = getattr(self.vae, "tile_overlap_factor")  # noqa: B009
        kept = pixels - int(pixels * overlap)
        starts = range(0, latents, int(tile * (1 - overlap)))
        return sum(min(min(tile, latents - start) * scale, kept) for start in starts)

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Nothing is held back."""
        return 0

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the statistics of the config (SDXL's way), else by scale and shift (SD, SD3, Flux)."""
        config = self.vae.config
        scale: float | None = config["scaling_factor"]
        if scale is None:
            raise UsageError(
                "expected scaling_factor in the config of AutoencoderKL to denormalize latents, "
                "got None; denormalize them yourself and pass normalized=False"
            )
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            std = self.constant("latents_std", latents)
            return latents * std / scale + self.constant("latents_mean", latents)
        shift: float | None = config.get("shift_factor")
        return latents / scale if shift is None else latents / scale + shift

    def decoder(self) -> Decoder:
        """A stream over a batch; it has no state."""
        return _Items(self)


class _Items:
    """One stream's place in the batch: nothing but whether it has ended."""

    def __init__(self, codec: ByItem) -> None:
        self._codec = codec
        self._closed = False

    def begin(self, latents: torch.Tensor) -> None:
        """Nothing is done to all latents at once."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        if self._closed:
            raise ClosedError("expected an open decoder, got one that was closed")
        return self._codec.vae.decode(latents, return_dict=False)[0]

    def drain(self) -> None:
        return None

    def close(self) -> None:
        self._closed = True
