"""Decoders as chains of steps, each of which takes frames and gives frames, some of them later.

A symmetric convolution cannot give a frame before it has the next one, so it runs late; what it
still owes at the end is got out of it by flushing. The convolutions are flushed one after another,
in the order of execution, and what each gives runs down the rest of the chain before the next one
is touched: thus no more is ever in flight than what one latent makes, at the end too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

#: Takes the next frames, (B, C, T, H, W); gives those that are done, None when there are none.
Step = Callable[[torch.Tensor], torch.Tensor | None]


class Window:
    """A convolution over time without padding of its own there: the last frames it saw are kept.

    Before the first frame it sees that frame again and again, and after the last one, if it is
    symmetric, the last.

    Args:
        conv: With an odd kernel in time, stride 1.
        kernel: Frames that it sees. Not asked of ``conv``, which may stand in for a convolution.
        causal: Whether it sees no frames after its own.
    """

    def __init__(self, conv: nn.Module, kernel: int, *, causal: bool) -> None:
        self._conv = conv
        self._reach = kernel - 1
        #: Frames by which it runs late.
        self.late = 0 if causal else self._reach // 2
        self._kept: list[torch.Tensor] = []

    def push(self, frames: torch.Tensor) -> torch.Tensor | None:
        """Convolve as far as frames have come."""
        before = self._kept or [_repeated(frames[:, :, :1], self._reach - self.late)]
        window = torch.cat((*before, frames), 2)
        self._kept[:] = [window[:, :, -self._reach :].clone()]
        if window.shape[2] <= self._reach:
            return None
        convolved: torch.Tensor = self._conv(window)
        return convolved

    def flush(self) -> torch.Tensor | None:
        """Give the frames that it is late by; None if it never saw one. Once, at the end."""
        if not self._kept:
            return None
        return self.push(_repeated(self._kept[0][:, :, -1:], self.late))

    def clear(self) -> None:
        """Let go of the frames."""
        self._kept.clear()


def _repeated(frame: torch.Tensor, count: int) -> torch.Tensor:
    return frame.expand(-1, -1, count, -1, -1)


class Skip:
    """A way around steps that run late: frames wait for those that went through the steps.

    Args:
        each: What is done to the frames on this way, to each by itself.
    """

    def __init__(self, each: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._each = each
        self._waiting: list[torch.Tensor] = []

    def enter(self, frames: torch.Tensor) -> torch.Tensor:
        """Before the steps: frames go both ways."""
        self._waiting.append(self._each(frames))
        return frames

    def leave(self, frames: torch.Tensor) -> torch.Tensor:
        """After the steps: add those that waited, in place; again and again to fill channels."""
        done, count = 0, frames.shape[2]
        while done < count:
            first = self._waiting.pop(0)
            now = min(first.shape[2], count - done)
            groups = torch.unflatten(frames[:, :, done : done + now], 1, (-1, first.shape[1]))
            groups.add_(first[:, None, :, :now])
            done += now
            if now < first.shape[2]:
                # A copy: a view would keep the frames alive that have gone.
                self._waiting.insert(0, first[:, :, now:].clone())
        return frames

    def clear(self) -> None:
        """Let go of the frames."""
        self._waiting.clear()


class Opening:
    """Drops the first ``count`` frames of all; never all that it is given at once."""

    def __init__(self, count: int) -> None:
        self._count = count

    def push(self, frames: torch.Tensor) -> torch.Tensor:
        """Drop what is left to drop."""
        if not self._count:
            return frames
        kept = frames[:, :, self._count :].clone()
        self._count = 0
        return kept


def spread(
    frames: torch.Tensor, stride: tuple[int, int, int], *, width_first: bool = False
) -> torch.Tensor:
    """Depth to time and space: (B, C * s * u * v, T, H, W) to (B, C, T * s, H * u, W * v).

    ``width_first`` says that channels are ordered (C, s, v, u).
    """
    if width_first:
        apart = torch.unflatten(frames, 1, (-1, stride[0], stride[2], stride[1])).transpose(3, 4)
    else:
        apart = torch.unflatten(frames, 1, (-1, *stride))
    together = apart.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return together.flatten(6, 7).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a window stands: the number of the step after it, frames a latent before it."""

    window: Window
    after: int
    frames: int


class Chain:
    """The steps of one decoder, in order, with the state of one walk.

    Unlike a `streamvae.codecs._delays.Stack` it is flat, ways around steps included, and gives what
    is owed at the end in rounds, whose number is known beforehand.

    Attributes:
        frames: Frames that a latent gives in the end (fewer at first).
    """

    def __init__(self) -> None:
        self.frames = 1
        self._steps: list[Step] = []
        self._places: list[_Place] = []
        self._skips: list[Skip] = []
        self._flushing: list[list[_Place]] | None = None

    def each(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add a step that does something to each frame by itself."""
        self._steps.append(step)

    def window(self, conv: nn.Module, kernel: int, *, causal: bool) -> None:
        """Add a convolution over time."""
        window = Window(conv, kernel, causal=causal)
        self._steps.append(window.push)
        self._places.append(_Place(window, len(self._steps), self.frames))

    def spread(self, stride: tuple[int, int, int], *, width_first: bool = False) -> None:
        """Add depth to time and space."""
        self._steps.append(lambda frames: spread(frames, stride, width_first=width_first))
        self.frames *= stride[0]

    def opening(self, count: int) -> None:
        """Drop the first frames."""
        self._steps.append(Opening(count).push)

    def enter(self, each: Callable[[torch.Tensor], torch.Tensor]) -> Skip:
        """Begin a way around the steps that follow; ``each`` is done to the frames that take it."""
        skip = Skip(each)
        self._steps.append(skip.enter)
        self._skips.append(skip)
        return skip

    def leave(self, skip: Skip) -> None:
        """End it: add up both ways."""
        self._steps.append(skip.leave)

    @property
    def late(self) -> int:
        """Frames of the end by which it runs late."""
        return sum(self._owed(place) for place in self._places)

    @property
    def rounds(self) -> int:
        """How often `drain` gives anything, at most."""
        return len(self._rounds())

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Run the next latents down the chain."""
        return self._run(latents, 0)

    def drain(self) -> torch.Tensor | None:
        """Give the next frames that are owed at the end, at most as many as a latent gives."""
        if self._flushing is None:
            self._flushing = self._rounds()
        if not self._flushing:
            return None
        given = [self._run(p.window.flush(), p.after) for p in self._flushing.pop(0)]
        frames = [part for part in given if part is not None]
        if len(frames) > 1:
            return torch.cat(frames, 2)
        return frames[0] if frames else None

    def clear(self) -> None:
        """Let go of all state."""
        for place in self._places:
            place.window.clear()
        for skip in self._skips:
            skip.clear()
        # Steps may know tensors of this walk.
        self._steps.clear()
        self._places.clear()

    def _run(self, frames: torch.Tensor | None, start: int) -> torch.Tensor | None:
        for step in self._steps[start:]:
            if frames is None:
                return None
            frames = step(frames)
        return frames

    def _owed(self, place: _Place) -> int:
        return place.window.late * (self.frames // place.frames)

    def _rounds(self) -> list[list[_Place]]:
        """Windows in the order of flushing, those that owe little together.

        A round gives half of what a latent gives, or what one window owes if that is more: larger
        rounds would hold frames back.
        """
        rounds: list[list[_Place]] = []
        room = 0
        for place in self._places:
            owed = self._owed(place)
            if not owed:
                continue
            if owed > room:
                rounds.append([])
                room = max(owed, self.frames // 2)
            rounds[-1].append(place)
            room -= owed
        return rounds
