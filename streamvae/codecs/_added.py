"""Windows that are faded out and added up, in time, height and width: Allegro.

``tiled_decode`` and ``_prepare_for_blend`` in ``autoencoder_kl_allegro.py`` of diffusers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan

from ._module import check_decode_is_own, check_shape
from ._walk import Walk, WalkingCodec
from ._windows import Windows, WindowWalk

#: Frames or latents, height, width.
Extent = tuple[int, int, int]
#: Place, number and overlap of a tile along one axis, as diffusers' fading wants them.
Place = tuple[int, int, int]


class AddedWindows(WalkingCodec):
    """AutoencoderKLAllegro: (B, 4, T, h, w) to (B, 3, 4T, 8h, 8w).

    A window of 6 latents gives its first 16 frames; the 8 others wait for the next window, which is
    added to them, or for the end. ``vae.decode`` itself gives (B, T, C, H, W).
    """

    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode, window by window, as (B, C, T, H, W) (latents that come "
        "one by one: within rounding, about 5e-6 in float32)"
    )

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        config = self.vae.config
        self.channels: int = config["latent_channels"]
        space: int = cast("Any", module).spatial_compression_ratio
        self.ratios: Extent = (int(config["temporal_compression_ratio"]), space, space)
        self.out_channels: int = config["out_channels"]
        module_of_base = importlib.import_module(base.__module__)
        self.fade: Callable[[Place, Place, Place, torch.Tensor], torch.Tensor] = (
            module_of_base._prepare_for_blend
        )

    @property
    def kernel(self) -> Extent:
        """Frames, height and width of a window in pixels."""
        return cast("Extent", tuple(cast("Any", self.module).kernel))

    @property
    def stride(self) -> Extent:
        """Pixels from one window to the next."""
        return cast("Extent", tuple(cast("Any", self.module).stride))

    @property
    def wants_all(self) -> bool:
        """True: ``vae.decode`` has one convolution over all latents first.

        It looks at one latent at a time, but torch picks its algorithm, and so its rounding, by
        the size of the whole.
        """
        return True

    def in_latents(self, extent: Extent) -> Extent:
        """An extent in pixels in latents."""
        time, height, width = self.ratios
        return extent[0] // time, extent[1] // height, extent[2] // width

    def windows(self) -> Windows:
        """How windows lie in time."""
        return Windows(self.in_latents(self.kernel)[0], self.in_latents(self.stride)[0])

    def tiles(self, pixels: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of tiles in a clip of (..., H, W) pixels."""
        kernel, stride = self.in_latents(self.kernel), self.in_latents(self.stride)
        height, width = pixels[-2] // self.ratios[1], pixels[-1] // self.ratios[2]
        return (height - kernel[1]) // stride[1] + 1, (width - kernel[2]) // stride[2] + 1

    def check(self, shape: tuple[int, ...]) -> None:
        """Pictures of a tile at least, one clip at a time, and only where tiling is on."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()
        if not self.vae.use_tiling:
            raise UsageError(
                f"expected {self.family} with tiling on, since diffusers decodes it in windows "
                "only, got use_tiling=False; call vae.enable_tiling()"
            )
        if shape[0] > 1 and not self.vae.use_slicing:
            raise UsageError(
                f"expected one clip, or slicing on, since diffusers decodes windows of "
                f"{self.family} one by one, got a batch of {shape[0]}; call vae.enable_slicing()"
            )
        size, stride = self.kernel[0], self.stride[0]
        if size % self.ratios[0] or stride % self.ratios[0] or not stride <= size <= 2 * stride:
            raise UsageError(
                "expected windows in time of whole latents that overlap by half at most, got "
                f"kernel={self.kernel}, stride={self.stride}"
            )
        pixels, least = self.picture(shape), self.in_latents(self.kernel)[1:]
        if shape[3] < least[0] or shape[4] < least[1]:
            raise LatentsError(
                f"expected pictures of at least {least[0]}x{least[1]} latents, a tile of "
                f"{self.family} (diffusers gives zeros for smaller ones), got "
                f"{shape[3]}x{shape[4]}; make vae.kernel and vae.stride smaller"
            )
        for tile, step, side in zip(self.kernel[1:], self.stride[1:], pixels, strict=True):
            if tile <= step and side >= tile + step:
                raise UsageError(
                    "expected tiles that overlap, as diffusers cannot join others, got "
                    f"kernel={self.kernel}, stride={self.stride}"
                )

    def check_length(self, latents: int) -> None:
        """Refuse a clip of less than a window.

        Raises:
            LatentsError: Naming both.
        """
        least = self.windows().size
        if latents < least:
            raise LatentsError(
                f"expected at least {least} latents, a window of {self.family} (diffusers gives "
                f"zeros for fewer), got {latents}"
            )

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """A window first, then as many latents as make the next whole; any number is exact."""
        if latents is not None:
            self.check_length(latents)
        return self.windows().cut(latents_per_chunk)

    def frames(self, latents: int) -> int:
        """4 for each latent."""
        return self.ratios[0] * latents

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 8 pixels a latent."""
        return shape[3] * self.ratios[1], shape[4] * self.ratios[2]

    def drains(self, latents: int) -> int:  # noqa: ARG002
        """One: the frames that no window was added to."""
        return 1

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Says what no window reaches; it is zero, as in diffusers."""
        kernel, stride = self.in_latents(self.kernel), self.in_latents(self.stride)
        missed = [max(0, n - k) % s for n, k, s in zip(shape[2:], kernel, stride, strict=True)]
        return tuple(
            f"{self.family}: no window of diffusers reaches the last {count} latents {of}, so that "
            f"their pixels are zero; {what} that can be decoded: {size} and {step} more each"
            for count, of, what, size, step in zip(
                missed,
                ("in time", "of the height", "of the width"),
                ("lengths", "heights", "widths"),
                kernel,
                stride,
                strict=True,
            )
            if count
        )

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's scaling factor, in the order of diffusers' pipeline."""
        # Not latents / factor: that rounds otherwise.
        return 1 / cast("float", self.vae.config["scaling_factor"]) * latents

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """See `WalkingCodec.prologue`."""
        pictures = latents.movedim(2, 1).flatten(0, 1)
        hidden: torch.Tensor = self.vae.post_quant_conv(pictures)
        return hidden.reshape(latents.shape[0], -1, *hidden.shape[1:]).movedim(1, 2)

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: channels before frames, as everywhere else."""
        return super().whole(latents).movedim(1, 2)

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return WindowWalk(self.windows(), _Added(self))


class _Added:
    """Keeps the last frames of each tile of a window, which the next window is added to.

    They are kept as they were decoded: the last window is not faded out, and whether a window is
    the last is not known before the next.
    """

    def __init__(self, codec: AddedWindows) -> None:
        self._codec = codec
        self._tails: list[torch.Tensor] = []

    def join(self, latents: torch.Tensor) -> torch.Tensor:
        codec = self._codec
        stride, overlap = codec.stride[0], codec.kernel[0] - codec.stride[0]
        later = bool(self._tails)
        frames = self._canvas(latents, stride)
        self._add_tails(frames, (0, 2, overlap))
        for number, window in enumerate(self._tiles(latents)):
            tile: torch.Tensor = codec.vae.decoder(window)
            self._tails.append(tile[:, :, stride:].clone())
            self._add(frames, number, tile[:, :, :stride], (int(later), 1 + later, overlap))
        return frames

    def end(self, latents: torch.Tensor) -> torch.Tensor:
        codec = self._codec
        if not self._tails:
            codec.check_length(latents.shape[2])
        frames = self._canvas(latents, codec.ratios[0] * latents.shape[2])
        self._add_tails(frames, (0, 1, codec.kernel[0] - codec.stride[0]))
        return frames

    def clear(self) -> None:
        self._tails.clear()

    def _canvas(self, latents: torch.Tensor, frames: int) -> torch.Tensor:
        picture = self._codec.picture(tuple(latents.shape))
        return latents.new_zeros(latents.shape[0], self._codec.out_channels, frames, *picture)

    def _tiles(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        codec = self._codec
        kernel, stride = codec.in_latents(codec.kernel), codec.in_latents(codec.stride)
        for row in range(0, latents.shape[3] - kernel[1] + 1, stride[1]):
            for column in range(0, latents.shape[4] - kernel[2] + 1, stride[2]):
                tile = latents[..., row : row + kernel[1], column : column + kernel[2]]
                yield tile.contiguous()

    def _add_tails(self, frames: torch.Tensor, time: Place) -> None:
        for number, tail in enumerate(self._tails):
            self._add(frames, number, tail, time)
        self._tails.clear()

    def _add(self, frames: torch.Tensor, number: int, tile: torch.Tensor, time: Place) -> None:
        """Fade a tile, in place, and add it to the first of ``frames``."""
        codec = self._codec
        rows, columns = codec.tiles(tuple(frames.shape))
        row, column = divmod(number, columns)
        _, height, width = codec.kernel
        _, down, right = codec.stride
        faded = codec.fade(time, (row, rows, height - down), (column, columns, width - right), tile)
        top, left = row * down, column * right
        frames[:, :, : tile.shape[2], top : top + tile.shape[3], left : left + tile.shape[4]] += (
            faded
        )
