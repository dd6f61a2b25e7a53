"""Frames that convolutions read, in pools: history stays where it is, and nothing is copied.

Note [Frame pools]
    A causal convolution reads the two frames before a chunk and the chunk's own. All convolutions
    of one size and width share a pool of frames. The layer before writes its new frames into free
    slots, the convolution reads them together with its history, wherever they lie, and then the
    two newest are its history and the others are free again: for whichever layer comes next, since
    launches on one stream run in order. So a pool holds two frames a layer, and the new frames of
    two layers at a time: of the one that reads, and of the one that it writes for. One more slot
    is all zeros: what lies before the beginning.
"""

from __future__ import annotations

from collections import deque

import torch

from .interface import Frames

#: Frames before a chunk that a convolution reads.
HISTORY = 2


class FramePool:
    """Frames (slots, height, width, channels) and which of them are free.

    Args:
        shape: Height, width and channels.
        inputs: Convolutions that have their history in it.
        chunk: Frames of a chunk.
        like: Has the dtype and the device.
        cleared: Whether all frames begin as zeros: where channels are only there to fill up.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        inputs: int,
        chunk: int,
        like: torch.Tensor,
        *,
        cleared: bool = False,
    ) -> None:
        count = 1 + HISTORY * inputs + 2 * chunk
        make = like.new_zeros if cleared else like.new_empty
        self.memory = make(count, *shape)
        self.zero = 0
        self.memory[self.zero].zero_()
        self.free = deque(range(1, count))

    def take(self, count: int) -> tuple[int, ...]:
        """Take free slots."""
        return tuple(self.free.popleft() for _ in range(count))

    def give(self, slots: tuple[int, ...]) -> None:
        """Give slots back; the zeros' is nobody's."""
        self.free.extend(slot for slot in slots if slot != self.zero)


class CausalInput:
    """What one convolution reads in one clip: its history, and the frames of a chunk.

    Args:
        pool: Where they are.
    """

    def __init__(self, pool: FramePool) -> None:
        self._pool = pool
        self.history: tuple[int, ...] = (pool.zero,) * HISTORY
        self.new: tuple[int, ...] = ()

    def begin(self, frames: int) -> Frames:
        """Take slots for a chunk's frames, which the layer before has to write."""
        self.new = self._pool.take(frames)
        return Frames(self._pool.memory, self.new)

    def read(self, *, first: bool) -> Frames:
        """Give the frames to read, history first; without it in the first chunk: it is zeros."""
        history = () if first else self.history
        return Frames(self._pool.memory, history + self.new)

    def end(self) -> None:
        """Keep the newest frames as history; the convolution has been launched."""
        slots = self.history + self.new
        self._pool.give(slots[:-HISTORY])
        self.history, self.new = slots[-HISTORY:], ()
