"""`interface.PointwiseOps` as Triton kernels, each one pass over memory. Needs triton.

No kernel here multiplies matrices: what Triton 3.6 made of some pipelined loops of products had
wrong elements, others in each run. Only `_moments` loops at all.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
# ruff: noqa: ANN001, ANN202, N803, PLR0917  # kernels: their arguments are Triton's, constants in capitals

from __future__ import annotations

import contextlib
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl

from streamvae.fast._wan.options import Kind

from .interface import Moments, Sums
from .torch_ops import EPSILON

#: Elements of a program's tile, about.
_TILE = 4096
#: Tiles that one program measures.
_TILES = 16
#: Pixels of a program that sums taps.
_PIXELS = 256

_UPSAMPLE = tl.constexpr(int(Kind.UPSAMPLE))
_DOUBLE_TIME = tl.constexpr(int(Kind.DOUBLE_TIME))


@triton.jit
def _load(products, bias, residual, row, column, mask, height, width, C: tl.constexpr,
          KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):  # fmt: skip
    """Arranged sums of output pixels ``row``, float32 (rows, channels)."""
    if KIND == _UPSAMPLE:
        x = row % width
        y = row // width % height
        frame = row // width // height
        source = (frame * (height // 2) + y // 2) * (width // 2) + x // 2
        start = (source * 4 + y % 2 * 2 + x % 2) * C
    elif KIND == _DOUBLE_TIME:
        size = height * width
        frame = row // size
        start = ((frame // 2 * size + row % size) * 2 + frame % 2) * C
    else:
        start = row * C
    sums = tl.load(products + start[:, None] + column[None, :], mask=mask, other=0.0)
    sums = sums.to(tl.float32)
    if BIAS:
        if KIND == _DOUBLE_TIME:
            half = (frame % 2 * C)[:, None]
            sums += tl.load(bias + half + column[None, :], mask=mask, other=0.0)
        else:
            sums += tl.load(bias + column, mask=column < C, other=0.0)[None, :]
    if RESIDUAL:
        place = row[:, None] * C + column[None, :]
        sums += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    return sums


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _rms_norm(products, bias, residual, gamma, to_sums, to_norm, rows, height, width, epsilon, root,
              C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
              BIAS: tl.constexpr, RESIDUAL: tl.constexpr, WRITE_SUMS: tl.constexpr,
              WRITE_NORM: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < C)[None, :]
    sums = _load(products, bias, residual, row, column, mask, height, width, C, KIND, BIAS,
                 RESIDUAL)  # fmt: skip
    place = row[:, None] * C + column[None, :]
    if WRITE_SUMS:
        tl.store(to_sums + place, sums.to(to_sums.dtype.element_ty), mask=mask)
    if WRITE_NORM:
        sums = tl.where(mask, sums, 0.0)
        length = tl.sqrt(tl.sum(sums * sums, 1))
        scale = tl.load(gamma + column, mask=column < C, other=0.0) * root
        normed = sums / tl.maximum(length, epsilon)[:, None] * scale[None, :]
        if SILU:
            normed = _silu(normed)
        tl.store(to_norm + place, normed.to(to_norm.dtype.element_ty), mask=mask)


@triton.jit
def _moments(products, bias, residual, to_sums, to_mean, to_squares, pixels, height, width,
             C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
             KIND: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
             WRITE_SUMS: tl.constexpr):  # fmt: skip
    part = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    first = part * (ROWS * TILES)
    # Distances from the first pixel, not from zero: their squares do not cancel.
    origin = _load(products, bias, residual, frame * pixels + first + tl.arange(0, 1), column,
                   (column < C)[None, :], height, width, C, KIND, BIAS, RESIDUAL)  # fmt: skip
    total = tl.zeros([COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    for tile in range(TILES):
        pixel = first + tile * ROWS + tl.arange(0, ROWS)
        mask = (pixel < pixels)[:, None] & (column < C)[None, :]
        row = frame * pixels + pixel
        sums = _load(products, bias, residual, row, column, mask, height, width, C, KIND, BIAS,
                     RESIDUAL)  # fmt: skip
        if WRITE_SUMS:
            place = row[:, None] * C + column[None, :]
            tl.store(to_sums + place, sums.to(to_sums.dtype.element_ty), mask=mask)
        distance = tl.where(mask, sums - origin, 0.0)
        total += tl.sum(distance, 0)
        squares += tl.sum(distance * distance, 0)
    count = tl.minimum(pixels - first, ROWS * TILES).to(tl.float32)
    mean = total / count
    place = (frame * tl.num_programs(0) + part) * C + column
    tl.store(to_mean + place, tl.sum(origin, 0) + mean, mask=column < C)
    tl.store(to_squares + place, tl.maximum(squares - total * mean, 0.0), mask=column < C)


@triton.jit
def _scale_shift(products, bias, scale, shift, to, pixels, height, width, C: tl.constexpr,
                 COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
                 BIAS: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    frame = tl.program_id(1).to(tl.int64)
    row = frame * pixels + pixel
    column = tl.arange(0, COLUMNS)
    mask = (pixel < pixels)[:, None] & (column < C)[None, :]
    sums = _load(products, bias, products, row, column, mask, height, width, C, KIND, BIAS,
                 False)  # fmt: skip  # noqa: FBT003
    factor = tl.load(scale + frame * C + column, mask=column < C, other=0.0)
    term = tl.load(shift + frame * C + column, mask=column < C, other=0.0)
    normed = sums * factor[None, :] + term[None, :]
    if SILU:
        normed = _silu(normed)
    place = row[:, None] * C + column[None, :]
    tl.store(to + place, normed.to(to.dtype.element_ty), mask=mask)


@triton.jit
def _add_taps(planes, bias, pixels, height, width, plane_rows, C: tl.constexpr,
              TAPS: tl.constexpr, PIXELS: tl.constexpr):  # fmt: skip
    place = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    frame = tl.program_id(1).to(tl.int64)
    size = height * width
    inside = place < size
    y = place // width
    x = place % width
    for channel in tl.static_range(C):
        total = tl.zeros([PIXELS], tl.float32) + tl.load(bias + channel)
        for time in tl.static_range(TAPS):
            for tap in tl.static_range(9):
                dy = tap // 3 - 1
                dx = tap % 3 - 1
                seen = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                plane = (frame + time) * plane_rows + (time * 9 + tap) * C + channel
                source = planes + plane * size + place + dy * width + dx
                total += tl.load(source, mask=inside & seen, other=0.0).to(tl.float32)
        to = pixels + (frame * size + place) * C + channel
        tl.store(to, total.to(pixels.dtype.element_ty), mask=inside)


class _Tile(NamedTuple):
    """Rows (pixels) and columns (channels, filled up) of what a program holds; powers of two."""

    rows: int
    columns: int

    @classmethod
    def of(cls, channels: int) -> Self:
        columns = triton.next_power_of_2(channels)
        return cls(max(1, _TILE // columns), columns)


def _device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


class TritonOps:
    """See `interface.PointwiseOps`."""

    name = "Triton"

    def rms_norm(
        self,
        sums: Sums,
        *,
        to_sums: torch.Tensor | None = None,
        to_norm: torch.Tensor | None = None,
        gamma: torch.Tensor | None = None,
        silu: bool = True,
    ) -> None:
        """See `interface.PointwiseOps.rms_norm`."""
        frames, height, width, channels = sums.shape
        rows, tile = frames * height * width, _Tile.of(channels)
        any_tensor = sums.products
        with _device_of(sums.products):
            _rms_norm[triton.cdiv(rows, tile.rows),](
                sums.products,
                any_tensor if sums.bias is None else sums.bias,
                any_tensor if sums.residual is None else sums.residual,
                any_tensor if gamma is None else gamma,
                any_tensor if to_sums is None else to_sums,
                any_tensor if to_norm is None else to_norm,
                rows,
                height,
                width,
                EPSILON,
                channels**0.5,
                C=channels,
                COLUMNS=tile.columns,
                ROWS=tile.rows,
                KIND=int(sums.kind),
                BIAS=sums.bias is not None,
                RESIDUAL=sums.residual is not None,
                WRITE_SUMS=to_sums is not None,
                WRITE_NORM=to_norm is not None,
                SILU=silu,
            )

    def moments(self, sums: Sums, *, to_sums: torch.Tensor | None = None) -> Moments:
        """See `interface.PointwiseOps.moments`."""
        frames, height, width, channels = sums.shape
        pixels, tile, any_tensor = height * width, _Tile.of(channels), sums.products
        each = tile.rows * _TILES
        parts = triton.cdiv(pixels, each)
        mean, squares = sums.products.new_empty(
            2, frames, parts, channels, dtype=torch.float32
        ).unbind()
        with _device_of(sums.products):
            _moments[parts, frames](
                sums.products,
                any_tensor if sums.bias is None else sums.bias,
                any_tensor if sums.residual is None else sums.residual,
                any_tensor if to_sums is None else to_sums,
                mean,
                squares,
                pixels,
                height,
                width,
                C=channels,
                COLUMNS=tile.columns,
                ROWS=tile.rows,
                TILES=_TILES,
                KIND=int(sums.kind),
                BIAS=sums.bias is not None,
                RESIDUAL=sums.residual is not None,
                WRITE_SUMS=to_sums is not None,
            )
        starts = torch.arange(0, pixels, each, dtype=torch.float32, device=mean.device)
        return Moments((pixels - starts).clamp_(max=each), mean, squares)

    def scale_shift(
        self, sums: Sums, scale: torch.Tensor, shift: torch.Tensor, *, to: torch.Tensor, silu: bool
    ) -> None:
        """See `interface.PointwiseOps.scale_shift`."""
        frames, height, width, channels = sums.shape
        pixels, tile = height * width, _Tile.of(channels)
        with _device_of(sums.products):
            _scale_shift[triton.cdiv(pixels, tile.rows), frames](
                sums.products,
                sums.products if sums.bias is None else sums.bias,
                scale,
                shift,
                to,
                pixels,
                height,
                width,
                C=channels,
                COLUMNS=tile.columns,
                ROWS=tile.rows,
                KIND=int(sums.kind),
                BIAS=sums.bias is not None,
                SILU=silu,
            )

    def add_taps(self, planes: torch.Tensor, bias: torch.Tensor, pixels: torch.Tensor) -> None:
        """See `interface.PointwiseOps.add_taps`."""
        frames, height, width, channels = pixels.shape
        with _device_of(planes):
            _add_taps[triton.cdiv(height * width, _PIXELS), frames](
                planes,
                bias,
                pixels,
                height,
                width,
                planes.shape[1],
                C=channels,
                TAPS=planes.shape[0] - frames + 1,
                PIXELS=_PIXELS,
            )
