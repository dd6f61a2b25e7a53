"""Frames that causal convolutions read, one after another in memory, without copies for history.

Note [Sliding histories]
    cuDNN wants the two frames before a chunk and the chunk's own in one piece. All convolutions of
    one size and width share a memory in which their histories lie side by side, that of the first
    one foremost:

        slots     0  1  2  3  4  5  6  7  8  9
                  h3 h3 h2 h2 h1 h1 .  .  .  .       before a chunk of two frames
                  h3 h3 h2 h2 h1 h1 n1 n1 .  .       the first one reads h1 h1 n1 n1
                  h3 h3 h2 h2 .  .  h1 h1 .  .       and keeps the newest two
                  h3 h3 h2 h2 n2 n2 h1 h1 .  .       the second one reads h2 h2 n2 n2 ...
                  .  .  h3 h3 h2 h2 h1 h1 .  .       after the chunk

    The new frames of each fit exactly where the one before it has left. New frames of the next are
    written by the launch that reads those of the one before, but after its convolution. So all
    slide forward, and only when the end is reached are they moved back to the beginning: once in
    `CHUNKS` chunks. Convolutions in time, which first chunks leave out, slide alone.
"""

from __future__ import annotations

import torch

from streamvae.fast._wan.interface import Frames
from streamvae.fast._wan.network import Input, Network
from streamvae.fast._wan.pools import HISTORY, CausalInput
from streamvae.fast._wan.step import Histories

#: Chunks for which there is room before histories are moved back.
CHUNKS = 2


class SlidingMemory:
    """Frames (slots, height, width, channels), in which histories slide.

    Args:
        shape: Height, width and channels.
        inputs: Convolutions that have their history in it.
        chunk: Frames of a chunk, at most.
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
        self._kept = HISTORY * inputs
        make = like.new_zeros if cleared else like.new_empty
        self.memory = make(self._kept + CHUNKS * chunk, *shape)
        self.memory[: self._kept].zero_()
        #: Where each history begins, in order of execution.
        self.starts = [HISTORY * (inputs - 1 - place) for place in range(inputs)]

    def make_room(self, frames: int) -> None:
        """Move all histories back, if a chunk of ``frames`` would not fit; between chunks."""
        end = self.starts[0] + HISTORY
        if end + frames <= self.memory.shape[0]:
            return
        moved = self.starts[-1]
        if self._kept + frames > self.memory.shape[0]:
            raise ValueError(
                f"expected a chunk of at most {self.memory.shape[0] - self._kept} frames, "
                f"got {frames}"
            )
        # Piece by piece, since old places and new ones may overlap.
        for start in range(0, self._kept, moved):
            stop = min(start + moved, self._kept)
            self.memory[start:stop].copy_(self.memory[start + moved : stop + moved])
        self.starts = [start - moved for start in self.starts]


class SlidingInput(CausalInput):
    """What one convolution reads: see `streamvae.fast._wan.pools.CausalInput`.

    Args:
        memory: Where.
        place: Of the convolution, among those that share it.
    """

    def __init__(self, memory: SlidingMemory, place: int) -> None:
        self._sliding = memory
        self._place = place
        self.new = ()

    def begin(self, frames: int) -> Frames:
        """See `CausalInput.begin`."""
        if self._place == 0:
            self._sliding.make_room(frames)
        start = self._sliding.starts[self._place] + HISTORY
        self.new = tuple(range(start, start + frames))
        return Frames(self._sliding.memory, self.new)

    def read(self, *, first: bool) -> Frames:
        """See `CausalInput.read`."""
        start = self.new[0] - (0 if first else HISTORY)
        return Frames(self._sliding.memory, tuple(range(start, self.new[-1] + 1)))

    def end(self) -> None:
        """See `CausalInput.end`."""
        self._sliding.starts[self._place] += len(self.new)
        self.new = ()


class SlidingHistories(Histories):
    """What one stream keeps between chunks: of each clip of a batch, and by network input.

    Args:
        network: The decoder.
        clips: Of a batch; they are decoded one after the other.
        size: Height and width of the latents.
        latents: Decoded at a time, at most.
        device: Where.

    Attributes:
        memories: All.
        inputs: Of each clip, in the order of ``network.inputs``.
    """

    def __init__(
        self,
        network: Network,
        clips: int,
        size: tuple[int, int],
        latents: int,
        device: torch.device,
    ) -> None:
        like = torch.empty(0, dtype=network.dtype, device=device)
        self.pools = {}  # there are none
        self.memories: list[SlidingMemory] = []
        self.inputs: list[list[CausalInput]] = []
        for _ in range(clips):
            inputs: dict[int, CausalInput] = {}
            for places in _sharing(network):
                one = places[0]
                shape = (size[0] << one.level, size[1] << one.level, one.channels)
                memory = SlidingMemory(
                    shape, len(places), latents * one.rate, like, cleared=one.index == 0
                )
                self.memories.append(memory)
                inputs |= {
                    one.index: SlidingInput(memory, place) for place, one in enumerate(places)
                }
            self.inputs.append([inputs[one.index] for one in network.inputs])


def _sharing(network: Network) -> list[list[Input]]:
    """Inputs that share a memory, in order of execution."""
    alone = {network.conv_in.input}
    for level in network.levels:
        if level.upsampling is not None and level.upsampling.time is not None:
            alone.add(level.upsampling.time.input)
    sharing: dict[object, list[Input]] = {}
    for place in network.inputs:
        key = place if place in alone else (place.level, place.channels, place.rate)
        sharing.setdefault(key, []).append(place)
    return list(sharing.values())
