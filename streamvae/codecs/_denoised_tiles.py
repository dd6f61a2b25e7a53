"""The tiles in which LTX-2.5's decoder denoises pixels, those of one window of time at a time.

``tiled_decode`` in ``ltx2_diffusion_decoder.py`` of diffusers does all times, then joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from ._draws import Draws

#: Frames or cells, height, width.
Extent = tuple[int, int, int]
#: Where a tile begins and ends, in cells.
Span = tuple[int, int]


class DenoisedTiles:
    """How tiles lie on the cells (frames, height, width) that enter the last upsampler.

    Args:
        module: The decoder, as its options are set now.
        source: The module its class comes from.
    """

    def __init__(self, module: nn.Module, source: ModuleType) -> None:
        self._model = cast("Any", module)
        self._net = self._model.decoder
        self._source = source
        patch: int = self._net.patch_size
        strides: list[tuple[int, int, int]] = [up.stride for up in self._net.upsamples]
        self._time_strides = [stride[0] for stride in strides[:-1]]
        last = strides[-1]
        #: Frames, height and width in pixels of a cell.
        self._cell = (last[0], last[1] * patch, last[2] * patch)
        #: The first cell gives a frame less.
        self._early = int(last[0] == 2)
        options = self._model
        self._tile = self._cells(
            options.tile_sample_min_num_frames,
            options.tile_sample_min_height,
            options.tile_sample_min_width,
        )
        self._stride = self._cells(
            options.tile_sample_stride_num_frames,
            options.tile_sample_stride_height,
            options.tile_sample_stride_width,
        )
        config = options.config
        kernels = zip(
            config["decoder_stage_kernels"][-1], config["decoder_stage5_kernel"], last, strict=True
        )
        # Both attentions that see tiles must fit into what is left for the last of them.
        self._least = [max(fourth, -(-fifth // step)) for fourth, fifth, step in kernels]
        self._blend = [
            (tile - stride) * cell
            for tile, stride, cell in zip(self._tile, self._stride, self._cell, strict=True)
        ]

    def times(self, latents: int) -> list[Span]:
        """Windows of time for so many latents."""
        frames = latents
        for stride in self._time_strides:
            frames = frames * stride - (stride == 2)
        return self._spans(0, frames)

    def decode(
        self, latents: torch.Tensor, draws: Draws, steps: int | None
    ) -> Generator[torch.Tensor, None, None]:
        """Give the frames of one window of time after another, those that are final by then."""
        features: torch.Tensor = self._net.forward_stages_1_to_3(latents)
        times = self.times(latents.shape[2])
        end = times[-1][1]
        noise = self._noise(latents, (end, features.shape[2], features.shape[3]), draws, steps)
        tail: torch.Tensor | None = None
        for number, time in enumerate(times):
            # The clip is padded in time: the windows that reach its end get the padding, too.
            stop = features.shape[1] if time[1] == end else time[1]
            frames = self._window(features[:, time[0] : stop], time, end, noise)
            if tail is not None:
                frames = self._model.blend_t(tail, frames, self._blend[0])
            if number == len(times) - 1:
                draws.settle()
                yield frames
                return
            tail = frames[:, :, max(0, frames.shape[2] - self._blend[0]) :].clone()
            yield frames[:, :, : self._stride[0] * self._cell[0] - (0 if number else self._early)]

    def _window(self, features: torch.Tensor, time: Span, end: int, noise: _Noise) -> torch.Tensor:
        """All tiles of one window of time, blended: (B, C, T, H, W)."""
        ends = time[1] == end
        tiles = [
            [
                self._denoised(
                    features[:, :, top:bottom, left:right], (time[0], top, left), noise, ends=ends
                )
                for left, right in self._spans(2, features.shape[3])
            ]
            for top, bottom in self._spans(1, features.shape[2])
        ]
        joined = []
        for number, row in enumerate(tiles):
            # Tiles at the far edges stay as large as they are.
            height = None if number == len(tiles) - 1 else self._stride[1] * self._cell[1]
            kept = []
            for place, tile in enumerate(row):
                width = None if place == len(row) - 1 else self._stride[2] * self._cell[2]
                faded = tile
                if number:
                    faded = self._model.blend_v(tiles[number - 1][place], faded, self._blend[1])
                if place:
                    faded = self._model.blend_h(row[place - 1], faded, self._blend[2])
                kept.append(faded[..., :height, :width])
            joined.append(torch.cat(kept, -1))
        return torch.cat(joined, -2)

    def _denoised(
        self, features: torch.Tensor, start: Extent, noise: _Noise, *, ends: bool
    ) -> torch.Tensor:
        """One tile's pixels; ``start`` says where it lies, in cells."""
        context = self._net.forward_stage_4(
            features, drop_leading_frame=not start[0], crop_trailing_ghost=ends
        )
        patch = self._net.patch_size
        size = (context.shape[1], context.shape[2] * patch, context.shape[3] * patch)
        # The first cell gives a frame less, so that all others lie a frame earlier.
        first = start[0] * self._cell[0] - (self._early if start[0] else 0)
        corner = (first, start[1] * self._cell[1], start[2] * self._cell[2])
        pixels: torch.Tensor = self._net.denoise(context, noise.tile(corner, size), noise.steps)
        return pixels

    def _noise(
        self, latents: torch.Tensor, cells: Extent, draws: Draws, steps: int | None
    ) -> _Noise:
        count: int = steps or self._net.default_num_inference_steps
        channels = (latents.shape[0], self._net.out_channels)

        def draw(size: Extent) -> torch.Tensor:
            drawn: torch.Tensor = self._source.randn_tensor(
                (*channels, *size),
                generator=draws.own,
                device=latents.device,
                dtype=latents.dtype,
            )
            return drawn

        if count == 1 and self._net.model_output_type == "x0":
            return _Noise(count, draw, None)
        time, height, width = (n * cell for n, cell in zip(cells, self._cell, strict=True))
        return _Noise(count, draw, draw((time - self._early, height, width)))

    def _cells(self, *pixels: int) -> Extent:
        time, height, width = (n // cell for n, cell in zip(pixels, self._cell, strict=True))
        return time, height, width

    def _spans(self, axis: int, length: int) -> list[Span]:
        """Tiles along one axis (0 is time) of so many cells."""
        spans: list[Span] = self._source._tile_intervals(
            length, self._tile[axis], self._stride[axis], self._least[axis]
        )
        return spans


@dataclass(frozen=True, slots=True)
class _Noise:
    """What tiles are denoised from.

    One step that predicts pixels starts each tile from noise of its own. With more, tiles that
    overlap must start from the same canvas, drawn for the whole clip.
    """

    steps: int
    draw: Callable[[Extent], torch.Tensor]
    canvas: torch.Tensor | None

    def tile(self, corner: Extent, size: Extent) -> torch.Tensor:
        """Noise for the tile at ``corner``; both in frames and pixels."""
        if self.canvas is None:
            return self.draw(size)
        canvas = self.canvas
        for axis, (start, length) in enumerate(zip(corner, size, strict=True), 2):
            canvas = canvas.narrow(axis, start, length)
        return canvas
