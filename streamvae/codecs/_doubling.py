"""Layers that double the frames of a clip, linear in between or as they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody calls it

from ._delays import Frames, Memory, Neighbours, joined


class Linear:
    """Twice as many frames, linear in between; the first ``head`` frames are a clip of their own.

    So does ``VidTokUpsample3D`` in a decode of all latents at once.
    """

    rate = 2
    late = 2

    def __init__(self, head: int, memory: Memory) -> None:
        self._missing = head
        self._memory = memory
        self._tail = Neighbours(doubled, memory, 2)

    def push(self, frames: torch.Tensor) -> Frames:
        if not self._missing:
            return self._tail.push(frames)
        head, rest = self._memory.behind(self, frames[:, :, : self._missing]), None
        if frames.shape[2] > self._missing:
            rest = self._tail.push(frames[:, :, self._missing :])
        self._missing -= min(self._missing, frames.shape[2])
        if self._missing:
            self._memory.keep(self, head)
            return None
        return joined((doubled(head), rest))

    def flush(self) -> Iterator[torch.Tensor]:
        head = self._memory.take(self)
        if head is not None:
            yield doubled(head)
        yield from self._tail.flush()


class Seamed:
    """Twice as many frames, linear in between, in runs, each ending with what comes again next.

    So does ``VidTokUpsample3D`` with tiling on: every run begins with frames kept of the one
    before, which after the first run are not quite the right ones.

    Args:
        ahead: Frames at the end of each run that come again with the next one.
        memory: Of the walk.
    """

    rate = 2
    late = 0

    def __init__(self, ahead: int, memory: Memory) -> None:
        self._ahead = ahead
        self._memory = memory
        self._begun = False

    def push(self, frames: torch.Tensor) -> torch.Tensor:
        ahead = self._ahead
        if self._begun:
            window = self._memory.behind(self, frames)
            self._memory.keep(self, window[:, :, -2 * ahead : -ahead])
            return doubled(window)[:, :, 2 * ahead :]
        self._begun = True
        self._memory.keep(self, frames[:, :, -ahead:])
        if frames.shape[2] <= ahead:
            return doubled(frames)
        return torch.cat((doubled(frames[:, :, :ahead]), doubled(frames[:, :, ahead:])), 2)

    def flush(self) -> Iterator[torch.Tensor]:
        return iter(())


def doubled(frames: torch.Tensor) -> torch.Tensor:
    """Twice as many frames (B, C, T, H, W), linear in between; in float32, as diffusers has it."""
    twice = F.interpolate(frames.to(torch.float32), scale_factor=[2.0, 1.0, 1.0], mode="trilinear")
    return twice.to(frames.dtype)


def repeated(frames: torch.Tensor) -> torch.Tensor:
    """Every frame (B, C, T, H, W) twice; by way of float32 as well, which float64 feels."""
    return frames.to(torch.float32).repeat_interleave(2, 2).to(frames.dtype)
