"""Rehearsals: a codec walks latents that are not there, and the memory it would take is counted.

The autoencoder is copied with tensors that have shapes and no numbers (torch's fake tensors), so
neither its weights nor what it caches are touched, and whatever a family does is done: there is no
formula here that a family could outgrow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from ._bands import bands_of
from ._ledger import Ledger
from ._locks import fork_safe_lock
from ._pixels import Output, all_finite, render
from ._plan import Plan, Rehearsed
from .abc import Banded, ChunkPlan, Codec

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

logger = logging.getLogger("streamvae")

#: Chunks walked at most before the walk is steady, and drained at most: more would take minutes.
_MOST = 64
_DRAINS = 128

#: The longest period of a steady walk that is looked for.
_PERIOD = 8

#: torch keeps a flag for the whole process while a dispatch mode is on.
_one_at_a_time = fork_safe_lock()


@runtime_checkable
class Rehearsing(Protocol):
    """A codec that can be rehearsed with."""

    def understudy(self, fakes: FakeTensorMode) -> Codec | None:
        """A codec of the same kind whose weights are fake tensors; None if there can be none."""
        ...


def planned(
    codec: Codec,
    shape: tuple[int, ...],
    latents_per_chunk: int | None,
    mode: str,
    *,
    output: Output,
    queue_size: int,
    device: str,
    again: Callable[[], Codec | None],
    alone: bool = True,
    whole: bool = False,
) -> Plan:
    """Plan the stream of latents of ``shape``; cheap.

    Args:
        codec: What decodes them; it has checked ``shape``. It is not kept.
        shape: All latents, as the codec wants them.
        latents_per_chunk: As in `streamvae.stream_decode`.
        mode: As in `streamvae.stream_decode`.
        output: As in `streamvae.stream_decode`.
        queue_size: As in `streamvae.stream_decode`.
        device: Where they are decoded.
        again: Gives the codec when the plan is asked; None if it is gone by then.
        alone: Whether memory is taken by nobody but the codec.
        whole: Whether pictures are decoded whole even where the codec has bands of them.

    Raises:
        UsageError: ``mode`` is ``"exact"`` and this cut would change bits.
    """
    length = shape[codec.axis]
    if codec.kind == "sound" and output == "uint8":
        output = "float32"
    chunks = tuple(_sizes(codec.cut(length, latents_per_chunk, mode), length))

    def count() -> tuple[int, ...] | None:
        codec = again()
        return None if codec is None else _at_once(codec, chunks)

    def rehearse() -> Rehearsed | None:
        held: object = again() if alone else None
        if not isinstance(held, Rehearsing):
            return None
        return rehearsed(held, shape, chunks, output, None if whole else mode)

    return Plan(
        codec.family,
        codec.kind,
        shape,
        mode,
        output,
        device,
        queue_size,
        chunks,
        codec.frames(length),
        count,
        rehearse,
    )


def rehearsed(
    codec: Rehearsing,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    output: Output,
    mode: str | None = "exact",
) -> Rehearsed | None:
    """Walk as many chunks as it takes to know the rest; None where that cannot be done.

    ``mode`` is the one that bands of pictures are asked for in, None for whole pictures.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _one_at_a_time, torch.no_grad():
            other = codec.understudy(fakes)
            if other is None:
                return None
            with fakes:
                return _Walk(other, shape, output, mode).whole(chunks)
    except Exception:  # whatever cannot be faked: a plan must not fail for it
        logger.debug("no rehearsal for latents of shape %s", shape, exc_info=True)
        return None


def _sizes(plan: ChunkPlan, length: int) -> Iterator[int]:
    for size in plan.sizes():
        yield min(size, length)
        length -= size
        if length <= 0:
            return


def _at_once(codec: Codec, chunks: tuple[int, ...]) -> tuple[int, ...] | None:
    """Frames of each chunk, where they can be told without walking.

    A stream that may end after any chunk without anything to drain has by then given all that
    those latents give; one that has to know its length could hold something back.
    """
    ends = list(accumulate(chunks))
    if codec.needs_length or any(codec.drains(end) for end in ends):
        return None
    known = [count for count in map(codec.frames, ends) if count is not None]
    if len(known) < len(ends):
        return None
    return tuple(after - before for before, after in pairwise([0, *known]))


@dataclass(frozen=True, slots=True)
class _Step:
    """What one chunk gave, what was held when it was over, and at most on the way there."""

    frames: int
    state: int
    peak: int
    pixels: int
    pieces: int = 1


class _Walk:
    """A codec on its way over the chunks of latents of one shape. Also over real tensors."""

    def __init__(
        self, codec: Codec, shape: tuple[int, ...], output: Output, mode: str | None = "exact"
    ) -> None:
        self._codec = codec
        self._mode = mode
        self._shape = shape
        self._output = output
        self._decoder = codec.decoder()
        self._place = (codec.device, codec.dtype)
        self._ledger = Ledger()
        self._skipped = _Step(0, 0, 0, 0)
        self.steps: list[_Step] = []

    def whole(self, chunks: tuple[int, ...]) -> Rehearsed | None:
        """Walk until it goes on in the same way, and then the end."""
        with self._ledger:
            if self._codec.wants_all:
                self._decoder.begin(self._latents(self._shape[self._codec.axis]))
            begun = self._ledger.peak
            frames = self._body(chunks[:-1])
            if frames is None:
                return None
            frames.append(self._step(self._push(chunks[-1])).frames)
            length = self._shape[self._codec.axis]
            if self._codec.drains(length) > _DRAINS:
                return None
            drains = [
                self._step(self._decoder.drain() for _ in range(1))
                for _ in range(self._codec.drains(length))
            ]
            self._decoder.close()
        drained = sum(step.frames for step in drains)
        if sum(frames) + drained != self._codec.frames(length):
            return None
        return Rehearsed(
            tuple(frames),
            drained,
            max(step.state for step in self.steps),
            max(begun, *(step.peak for step in self.steps)),
            max(step.pixels for step in self.steps),
            max(step.pieces for step in self.steps),
        )

    def _body(self, chunks: tuple[int, ...]) -> list[int] | None:
        """Walk all chunks but the last; frames of each. Passes over what only repeats."""
        frames: list[int] = []
        done = 0
        while done < len(chunks):
            if done == _MOST:
                return None
            frames.append(self._step(self._push(chunks[done])).frames)
            done += 1
            period = self._period(chunks[:done])
            if period:
                times = (len(chunks) - done) // period
                self._skip(period, times)
                frames += frames[-period:] * times
                done += period * times
                break
        return frames + [self._step(self._push(size)).frames for size in chunks[done:]]

    def _step(self, given: Iterator[torch.Tensor | None]) -> _Step:
        ledger, skipped = self._ledger, self._skipped
        ledger.peak = ledger.live
        count = pixels = state = pieces = 0
        for decoded in given:
            pieces += 1
            if decoded is not None:
                count = decoded.shape[0 if self._codec.kind == "image" else 2]
                pixels = max(pixels, self._rendered(decoded))
            del decoded
            state = max(state, ledger.live)
        step = _Step(count, state + skipped.state, ledger.peak + skipped.peak, pixels, pieces)
        self.steps.append(step)
        return step

    def _rendered(self, decoded: torch.Tensor) -> int:
        all_finite(decoded)
        given = render(decoded, self._codec.kind, self._output)
        return given.untyped_storage().nbytes()

    def _push(self, size: int) -> Iterator[torch.Tensor | None]:
        """What a chunk of so many latents gives, in one piece or in bands."""
        shape, axis, codec = self._shape, self._codec.axis, self._codec
        chunk = (*shape[:axis], size, *shape[axis + 1 :])
        mode = self._mode
        if mode is not None and isinstance(codec, Banded) and bands_of(codec, chunk, mode):
            return codec.in_bands(self._latents(size), mode)
        return (self._decoder.decode(self._latents(size)) for _ in range(1))

    def _latents(self, size: int) -> torch.Tensor:
        shape, axis = self._shape, self._codec.axis
        device, dtype = self._place
        return torch.zeros((*shape[:axis], size, *shape[axis + 1 :]), device=device, dtype=dtype)

    def _period(self, sizes: tuple[int, ...]) -> int:
        """After how many chunks the walk repeats itself but for constant growth; 0 if not yet.

        Frames must come as they will to the end: a walk that still collects is not steady.
        """
        for period in range(1, _PERIOD + 1):
            if len(self.steps) < 3 * period or len(set(sizes[-period:])) > 1:
                return 0
            last, middle, first = (
                self.steps[len(self.steps) - (back + 1) * period :][:period] for back in range(3)
            )
            growth = {_growth(*pair) for pair in zip(first, middle, strict=True)}
            growth |= {_growth(*pair) for pair in zip(middle, last, strict=True)}
            given = sum(step.frames for step in last)
            if len(growth) == 1 and given == self._due(period * sizes[-1]):
                (one,) = growth
                if one.frames == one.pixels == 0:
                    return period
        return 0

    def _due(self, latents: int) -> int | None:
        """Frames that so many more latents give in the long run."""
        length = self._shape[self._codec.axis]
        more, less = self._codec.frames(length + latents), self._codec.frames(length)
        return None if more is None or less is None else more - less

    def _skip(self, period: int, times: int) -> None:
        """Pass over ``times`` periods, growing as in the last one."""
        grown = _growth(self.steps[-1 - period], self.steps[-1])
        state, peak = grown.state * times, grown.peak * times
        self._skipped = _Step(0, state, peak, 0)
        self.steps += [
            replace(step, state=step.state + state, peak=step.peak + peak)
            for step in self.steps[-period:]
        ]


def _growth(before: _Step, after: _Step) -> _Step:
    return _Step(
        after.frames - before.frames,
        after.state - before.state,
        after.peak - before.peak,
        after.pixels - before.pixels,
    )
