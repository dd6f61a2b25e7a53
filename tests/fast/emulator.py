"""A driver that does, address by address, what ``causal_conv.cu`` and ``rms_norm.cu`` do.

For host memory: kernels' arguments hold addresses of CPU tensors. What is emulated is what the host
has to get right: where weights, slots, blocks of channels and phases are; not rings and barriers.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Sequence

import torch
from torch.nn import functional

from streamvae._pixels import quantise
from streamvae.fast._wan.cubins import MANIFEST
from streamvae.fast._wan.driver import (
    ConvArguments,
    Driver,
    Function,
    NormArguments,
    TensorMap,
)
from streamvae.fast._wan.options import ConvOptions, Kind, NormOptions, Options


def at(address: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """The tensor that lies at an address."""
    count = torch.Size(shape).numel() * dtype.itemsize
    memory = (ctypes.c_char * count).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class EmulatedDriver(Driver):
    """Runs shipped specialisations on the host.

    Args:
        every: The specialisations, by name.
    """

    def __init__(self, every: dict[str, Options]) -> None:
        self.multiprocessors = 4
        cubins = json.loads(MANIFEST.read_text())["cubins"]
        self._names = {entry["sha256"]: every[name] for name, entry in cubins.items()}
        self._maps: dict[int, tuple[torch.Tensor, TensorMap]] = {}

    def load(self, cubin: bytes, function: str, shared_memory: int) -> Function:
        options = self._names[hashlib.sha256(cubin).hexdigest()]
        assert (function, shared_memory) == (options.function, options.shared_memory)
        return Function(options, shared_memory, 168, 0)

    def map_at(self, address: int, shape: tuple[int, ...], box: tuple[int, int]) -> TensorMap:
        made = TensorMap()
        assert made.address % 64 == 0
        self._maps[made.address] = (at(address, torch.bfloat16, *shape), made)
        return made

    def launch(
        self, function: Function, grid: tuple[int, int], threads: int, parameters: Sequence[int]
    ) -> None:
        options = function.handle
        if isinstance(options, NormOptions):
            _norm(options, NormArguments.from_address(parameters[0]), grid, threads)
            return
        assert isinstance(options, ConvOptions)
        a = ConvArguments.from_address(parameters[2])
        assert threads == 384
        assert grid == (min(self.multiprocessors, a.tiles), 1)
        _Launch(options, a, self._maps[parameters[0]][0], self._maps[parameters[1]][0]).run()


def _norm(options: NormOptions, a: NormArguments, grid: tuple[int, int], threads: int) -> None:
    frames, channels = grid[1], options.channels
    assert (grid[0] - 1) * 16 < a.pixels <= grid[0] * 16
    assert threads == 128
    source = at(a.source, torch.bfloat16, frames, a.pixels, channels).float()
    k = source.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt() * a.scale
    normed = source * k * at(a.gamma, torch.float32, channels)
    normed = functional.silu(normed) if options.silu else normed
    for frame, slot in zip(normed, a.norm_slots[:frames], strict=True):
        size = 2 * a.pixels * channels
        at(a.norm + slot * size, torch.bfloat16, a.pixels, channels).copy_(frame)


class _Launch:
    """One launch of ``causal_conv.cu``, with its names."""

    def __init__(
        self,
        options: ConvOptions,
        a: ConvArguments,
        source: torch.Tensor,
        residual: torch.Tensor,
    ) -> None:
        self.options, self.a, self.source, self.residual = options, a, source, residual
        assert source.shape[1:] == (a.height, a.width, options.in_channels)
        tiles = -(-a.width // 16) * -(-a.height // 8) * a.channel_blocks * a.frame_blocks
        assert (a.tiles_x, a.tiles) == (-(-a.width // 16), tiles)
        assert a.frame_blocks * options.block_frames == a.frames

    def run(self) -> None:
        for block in range(self.a.channel_blocks):
            for frame in range(self.a.frames):
                sums = self.sums(block, frame)
                if self.options.kind is Kind.HEAD:
                    self.write_pixels(frame, sums)
                else:
                    self.write(block, frame, sums)

    def weights(self, block: int, chunk: int, tap: int) -> torch.Tensor:
        """The matrix (columns, 32 channels) that tensor cores see, the swizzle undone."""
        columns = self.options.block_channels
        chunks = self.options.in_channels // 32
        address = self.a.weights + (block * chunks + chunk) * self.a.weight_chunk_bytes
        units = at(address + tap * columns * 64, torch.bfloat16, columns, 4, 8).float()
        place = torch.arange(4)[None] ^ (torch.arange(columns)[:, None] // 2 % 4)
        return units.gather(1, place[:, :, None].expand(-1, -1, 8)).flatten(1)

    def sums(self, block: int, frame: int) -> torch.Tensor:
        """Columns of the accumulators of all pixels, (height, width, columns)."""
        options, a = self.options, self.a
        time, height, width = options.taps
        # The first tap's place in the halo, which begins one pixel above and to the left.
        top, left = int(height == 1), int(width == 1)
        if options.kind is Kind.UPSAMPLE:
            top, left = block >> 1 & 1, block & 1
        sums = torch.zeros(a.height, a.width, options.block_channels)
        for tap in range(time * height * width):
            dt, y, x = tap // (height * width), tap // width % height, tap % width
            halo = functional.pad(self.source[a.in_slots[frame + dt]].float(), (0, 0, 1, 1, 1, 1))[
                top + y :, left + x :
            ][: a.height, : a.width]
            for chunk in range(options.in_channels // 32):
                seen = halo[..., chunk * 32 : chunk * 32 + 32]
                sums += seen @ self.weights(block, chunk, tap).T
        return sums

    def write(self, block: int, frame: int, columns: torch.Tensor) -> None:
        options, a, size = self.options, self.a, self.options.block_channels
        kind = options.kind
        # Column 8j + 2q + b is channel 32 (j / 4) + 8q + 2 (j % 4) + b.
        column = torch.arange(size)
        j, q, b = column // 8, column % 8 // 2, column % 2
        sums = torch.empty_like(columns)
        sums[..., 32 * (j // 4) + 8 * q + 2 * (j % 4) + b] = columns
        vectors = block >> 2 if kind is Kind.UPSAMPLE else block
        sums += at(a.bias + 4 * vectors * size, torch.float32, size)
        place, late, scale = vectors * size, 0, 2 if kind is Kind.UPSAMPLE else 1
        if kind is Kind.DOUBLE_TIME:
            late, rest = divmod(block, a.channel_blocks // 2)
            place = rest * size
        if options.residual:
            sums += self.residual[frame, ..., place : place + size]
        shape = (a.height * scale, a.width * scale, a.out_channels)
        bytes_ = 2 * torch.Size(shape).numel()

        def to(memory: int, slot: int) -> torch.Tensor:
            whole = at(memory + slot * bytes_, torch.bfloat16, *shape)[..., place : place + size]
            if kind is Kind.UPSAMPLE:
                return whole[block >> 1 & 1 :: 2, block & 1 :: 2]
            return whole

        if options.write_sum:
            number = 2 * frame + late if kind is Kind.DOUBLE_TIME else frame
            to(a.sum, a.sum_slots[number]).copy_(sums)
        if options.write_norm:
            k = sums.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt() * a.scale
            normed = sums * k * at(a.gamma + 4 * vectors * size, torch.float32, size)
            to(a.norm, a.norm_slots[frame]).copy_(functional.silu(normed))

    def write_pixels(self, frame: int, columns: torch.Tensor) -> None:
        a = self.a
        pixels = (columns + at(a.bias, torch.float32, 8))[..., :3]
        count = a.height * a.width * 3
        if self.options.write_sum:
            address = a.sum + 2 * frame * count
            at(address, torch.bfloat16, a.height, a.width, 3).copy_(pixels)
        if self.options.write_norm:
            at(a.gamma, torch.bool, 1).logical_and_(~pixels.isnan().any())
            levels = quantise(pixels.bfloat16().clamp(-1, 1))
            at(a.norm + frame * count, torch.uint8, a.height, a.width, 3).copy_(levels)
