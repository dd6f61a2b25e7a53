"""Weights as the kernels read them: images of shared memory, in reading order."""

from __future__ import annotations

import torch

#: Input channels of a halo, and of a matrix of weights.
CHUNK = 32
#: Channels of 16 bytes, which the swizzle moves as one.
_UNIT = 8


def padded(channels: int) -> int:
    """Round up to whole chunks."""
    return -(-channels // CHUNK) * CHUNK


def phase_weights(weight: torch.Tensor) -> torch.Tensor:
    """Turn a 3x3 convolution after nearest 2x upsampling into four 2x2 ones before it.

    Args:
        weight: (out, in, 3, 3).

    Returns:
        float32 (4, out, in, 2, 2): of the phases (y, x) = (0, 0), (0, 1), (1, 0), (1, 1) of an
        output pixel. Phase 0 sees input rows y - 1 and y, phase 1 rows y and y + 1.
    """
    weight = weight.float()
    phases = [
        _phase(_phase(weight, y).transpose(-1, -2), x).transpose(-1, -2)
        for y in (0, 1)
        for x in (0, 1)
    ]
    return torch.stack(phases)


def _phase(weight: torch.Tensor, phase: int) -> torch.Tensor:
    """Sum the rows (dimension -2) of a 3x3 that fall on one input row."""
    first, second, third = weight.unbind(-2)
    rows = [first, second + third] if phase == 0 else [first + second, third]
    return torch.stack(rows, -2)


def pack(weight: torch.Tensor, block_channels: int) -> torch.Tensor:
    """Lay weights out as `causal_conv.cu` reads them.

    Rows are permuted (Note [The order of channels in the epilogue]) and units of 16 bytes swizzled
    (Note [Swizzle and descriptors]); missing rows and input channels are zeros.

    Args:
        weight: (out, in, taps in time, y, x), or phases (4, out, in, 2, 2).
        block_channels: Output channels of a block: 8, or a multiple of 32 that divides ``out``.

    Returns:
        bfloat16 (blocks, chunks, taps, block_channels, 4, 8). The phases of a block of channels
        are four blocks one after the other.
    """
    rows = _rows(weight, block_channels)
    blocks, _, inputs, taps = rows.shape
    units = rows.reshape(blocks, block_channels, inputs // CHUNK, CHUNK // _UNIT, _UNIT, taps)
    units = units[:, _row_order(block_channels, weight.device)].permute(0, 2, 5, 1, 3, 4)
    order = _unit_order(block_channels, weight.device).expand(units.shape)
    return torch.gather(units, 4, order).to(torch.bfloat16).contiguous()


def unpack(image: torch.Tensor) -> torch.Tensor:
    """Undo `pack`: (blocks, block_channels, inputs, taps), as `_rows` gives them; for tests."""
    blocks, chunks, taps, block_channels = image.shape[:4]
    order = _unit_order(block_channels, image.device).expand(image.shape)
    units = torch.gather(image, 4, order)  # the swizzle is its own inverse
    inverse = torch.argsort(_row_order(block_channels, image.device))
    units = units[:, :, :, inverse].permute(0, 3, 1, 4, 5, 2)
    return units.reshape(blocks, block_channels, chunks * CHUNK, taps)


def _rows(weight: torch.Tensor, block_channels: int) -> torch.Tensor:
    """Give (blocks, block_channels, inputs, taps), padded with zeros."""
    if weight.dim() == 5 and weight.shape[0] == 4 and weight.shape[-2:] == (2, 2):
        phases, out, inputs = weight.shape[:3]
        weight = weight.reshape(phases, -1, block_channels, inputs, 4).transpose(0, 1)
        weight = weight.reshape(phases * out, inputs, 4)
    else:
        weight = weight.flatten(2)
    out, inputs, taps = weight.shape
    blocks = -(-out // block_channels)
    whole = weight.new_zeros(blocks * block_channels, padded(inputs), taps)
    whole[:out, :inputs] = weight
    return whole.reshape(blocks, block_channels, -1, taps)


def _row_order(block_channels: int, device: torch.device) -> torch.Tensor:
    """Which channel each row (column of the accumulator) holds."""
    row = torch.arange(block_channels, device=device)
    if block_channels < CHUNK:
        return row
    j, q, b = row // 8, row % 8 // 2, row % 2
    return 32 * (j // 4) + 8 * q + 2 * (j % 4) + b


def _unit_order(block_channels: int, device: torch.device) -> torch.Tensor:
    """Which unit lies at each place of a row, (block_channels, 4, 1): the 64-byte swizzle."""
    row = torch.arange(block_channels, device=device)
    unit = torch.arange(CHUNK // _UNIT, device=device)
    return (unit[None, :] ^ (row[:, None] // 2 % 4))[:, :, None]
