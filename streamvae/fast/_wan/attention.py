"""Attention over all pixels of a frame: products by torch, in blocks of rows."""

from __future__ import annotations

import torch
from torch.nn import functional

from .interface import Frames
from .network import Attention

#: Bytes of scores at a time, about. Two blocks at 720x1280 take no longer than one; 16 do.
_SCORE_BYTES = 1 << 28


def attend(block: Attention, x: torch.Tensor) -> None:
    """Add attention to ``x``, (frames, height, width, channels), frame by frame, in place.

    No flash kernel of torch takes one head of 384 channels: its memory-efficient one takes twice
    the time of these products.
    """
    normed = torch.empty_like(x)
    block.norm.launch(x, Frames.of(normed), silu=False)
    channels = x.shape[-1]
    for frame, given in zip(x.view(x.shape[0], -1, channels), normed, strict=True):
        qkv = functional.linear(given.view(-1, channels), *_beside(x, block.qkv))
        query, key, value = qkv.chunk(3, 1)
        query = query * channels**-0.5
        pixels = query.shape[0]
        blocks = -(-pixels * pixels * x.element_size() // _SCORE_BYTES)
        mixed = torch.empty_like(value, memory_format=torch.contiguous_format)
        for rows, to in zip(query.chunk(blocks), mixed.chunk(blocks), strict=True):
            torch.mm(torch.softmax(rows @ key.T, -1), value, out=to)
        frame.add_(functional.linear(mixed, *_beside(x, block.projection)))


def _beside(x: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The weights themselves, but where a run on meta only looks for what would be launched."""
    return tuple(weight.to(x.device) for weight in weights) if x.is_meta else weights
