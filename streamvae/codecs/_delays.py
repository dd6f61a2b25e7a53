"""Layers walked through time bit by bit: each gives what its neighbours in time allow so far.

A layer that looks at the next frame is one frame late, which it owes at the end; whatever is added
to its frames waits for them. Time is dimension 2, (B, C, T, H, W) or (B, C, T); None stands for no
frames. What the next call needs is in the walk's `Memory`: a walk can be let go of at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

import torch

Frames = torch.Tensor | None
#: From frames to frames, each from itself and its two neighbours in time (or from itself alone).
Function = Callable[[torch.Tensor], torch.Tensor]


class Layer(Protocol):
    """Frames in, frames out, in order."""

    @property
    def rate(self) -> int:
        """Frames it gives for each."""
        ...

    @property
    def late(self) -> int:
        """Frames of its own that it still owes when the last ones have come."""
        ...

    def push(self, frames: torch.Tensor) -> Frames:
        """Go on with ``frames``; None when it has nothing to give yet."""
        ...

    def flush(self) -> Iterator[torch.Tensor]:
        """Give what is owed, bit by bit. Once, after the last frames."""
        ...


class Memory:
    """What the layers of one walk keep between calls; copies, which pin nothing larger."""

    def __init__(self) -> None:
        self._kept: dict[object, torch.Tensor] = {}

    def take(self, owner: object) -> Frames:
        """Give what ``owner`` kept, if anything, and let go of it."""
        return self._kept.pop(owner, None)

    def behind(self, owner: object, frames: torch.Tensor) -> torch.Tensor:
        """Give ``frames`` behind what ``owner`` kept; no copy where it kept nothing."""
        kept = self._kept.pop(owner, None)
        return frames if kept is None else torch.cat((kept, frames), 2)

    def keep(self, owner: object, frames: torch.Tensor) -> None:
        """Keep a copy of ``frames``, if there are any, for ``owner``."""
        if frames.shape[2]:
            self._kept[owner] = frames.clone()

    def clear(self) -> None:
        """Let go of all frames, in place."""
        self._kept.clear()


class Each:
    """A function that looks at one frame at a time: nothing is kept, nothing is late.

    Args:
        function: Of frames.
        rate: Frames it gives for each.
    """

    late = 0

    def __init__(self, function: Function, rate: int = 1) -> None:
        self._function = function
        self.rate = rate

    def push(self, frames: torch.Tensor) -> torch.Tensor:
        return self._function(frames)

    def flush(self) -> Iterator[torch.Tensor]:
        return iter(())


class Neighbours:
    """A function that looks at the frames before and after: one frame late.

    Args:
        function: Of a run of frames; at its ends it does what it does at the ends of a clip.
        memory: Of the walk.
        rate: Frames it gives for each.
    """

    def __init__(self, function: Function, memory: Memory, rate: int = 1) -> None:
        self._function = function
        self._memory = memory
        self._inside = False  # the first of the frames kept was answered, and is context
        self.rate = self.late = rate

    def push(self, frames: torch.Tensor) -> Frames:
        window = self._memory.behind(self, frames)
        start, end = int(self._inside), window.shape[2] - 1
        if end <= start:
            self._memory.keep(self, window)
            return None
        self._memory.keep(self, window[:, :, end - 1 :])
        self._inside = True
        return self._function(window)[:, :, start * self.rate : end * self.rate]

    def flush(self) -> Iterator[torch.Tensor]:
        window = self._memory.take(self)
        if window is not None:
            yield self._function(window)[:, :, int(self._inside) * self.rate :]


class Beside:
    """Frames that go past a late layer, and wait for what it makes of them.

    Args:
        layer: Gives one frame for each.
        together: Of frames and what was made of them, equally many.
        memory: Of the walk.
    """

    rate = 1

    def __init__(
        self,
        layer: Layer,
        together: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        memory: Memory,
    ) -> None:
        self._layer = layer
        self._together = together
        self._memory = memory
        self.late = layer.late

    def push(self, frames: torch.Tensor) -> Frames:
        made = self._layer.push(frames)
        waiting = self._memory.behind(self, frames)
        if made is None:
            self._memory.keep(self, waiting)
            return None
        return self._met(waiting, made)

    def flush(self) -> Iterator[torch.Tensor]:
        for made in self._layer.flush():
            waiting = self._memory.take(self)
            assert waiting is not None  # noqa: S101  # else nothing was owed
            yield self._met(waiting, made)

    def _met(self, waiting: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        count = made.shape[2]
        self._memory.keep(self, waiting[:, :, count:])
        return self._together(waiting[:, :, :count], made)


class Stack:
    """Layers one after the other; itself a layer, so that stacks nest.

    Unlike a `streamvae.codecs._chain.Chain` it gives what is owed bit by bit, not in rounds whose
    number is known beforehand, and its layers keep nothing of their own but in `Memory`.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._layers = tuple(layers)
        self.rate, self.late = 1, 0
        for layer in self._layers:
            self.rate *= layer.rate
            self.late = self.late * layer.rate + layer.late

    def push(self, frames: torch.Tensor) -> Frames:
        return self._pushed(frames, 0)

    def flush(self) -> Generator[torch.Tensor, None, None]:
        """See `Layer.flush`: what one layer owes runs down the stack before the next is asked.

        So no more is in flight at the end than before it.
        """
        for place, layer in enumerate(self._layers, 1):
            for frames in layer.flush():
                made = self._pushed(frames, place)
                if made is not None:
                    yield made

    def _pushed(self, frames: torch.Tensor, start: int) -> Frames:
        made: Frames = frames
        for layer in self._layers[start:]:
            if made is None:
                return None
            made = layer.push(made)
        return made


def joined(parts: Iterable[Frames]) -> Frames:
    """Put what there is together, in order."""
    given = [part for part in parts if part is not None]
    if len(given) < 2:
        return given[0] if given else None
    return torch.cat(given, 2)
