"""First and steady chunks on the device alone: what a step is worth, without the rest of a clip."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass

import torch

from ..abc import Codec
from ..fast import FusedWan, Stepped, fastest, launched
from ..fast._fastvae import fused
from ._bench_clip import Clip
from ._bench_loops import EXACT, FAST, FASTVAE, OWN, rendered
from ._bench_samples import Samples
from ._steps import kind_of

#: Chunks before the steady ones: the second one may be unlike the others, too.
_BEFORE = 2


@dataclass(frozen=True, slots=True)
class ChunkTime:
    """How long a way takes for chunks of a clip, quantised, nothing downloaded.

    Attributes:
        way: The way.
        step: How it decodes a chunk, as ``info.step`` says it.
        first: Seconds of the first chunk; None where the device had not enough memory.
        steady: Seconds of a chunk from the third on; None where there is none, too.
    """

    way: str
    step: str
    first: Samples | None
    steady: Samples | None

    def as_json(self) -> dict[str, object]:
        """All of it, as it is written down."""
        spans = {"first": self.first, "steady": self.steady}
        said = {name: each and each.as_json() for name, each in spans.items()}
        return {**asdict(self), **said}


def steps(clip: Clip) -> dict[str, Stepped]:
    """Each step that is to be had for a clip, and different from the others, by its way."""
    codec, graphs = clip.codec, getattr(clip.backend, "graphs", None)
    own = Stepped(codec, lambda: "eager")
    others = {
        EXACT: launched(codec, graphs),
        FAST: fastest(codec, codec.device, graphs),
    }
    theirs = fused(codec, codec.device)
    if isinstance(theirs, FusedWan):
        name = theirs.step_name
        others[FASTVAE] = Stepped(theirs, lambda: name)
    found = {OWN: own}
    for way, stepped in others.items():
        known = {kind_of(each.step()) for each in found.values()}
        if kind_of(stepped.step()) not in known:
            found[way] = stepped
    return found


def step_names(clip: Clip) -> dict[str, str]:
    """What each of `steps` is called, by its way."""
    return {way: stepped.step() for way, stepped in steps(clip).items()}


def chunk_times(clip: Clip, rounds: int, done: Callable[[], None]) -> tuple[ChunkTime, ...]:
    """Decode a clip by every step in turns, and time its chunks; on the launch thread.

    Args:
        clip: Of three chunks at least, or there are no steady ones.
        rounds: Clips of each step, besides one that is not counted.
        done: Called after every clip.
    """
    each = steps(clip)
    spans: dict[str, list[list[float]]] = {way: [] for way in each}
    short: set[str] = set()
    for turn in range(rounds + 1):
        ways = list(each)
        for place in range(len(ways)):
            way = ways[(turn + place) % len(ways)]
            if way not in short:
                try:
                    one = _spans(clip, each[way].codec)
                except torch.OutOfMemoryError:
                    short.add(way)
                else:
                    spans[way] += [one] if turn else []
            done()
    return tuple(_summary(way, each[way].step(), spans[way], way in short) for way in each)


def _summary(way: str, step: str, spans: list[list[float]], short: bool) -> ChunkTime:  # noqa: FBT001
    steady = tuple(span for one in spans for span in one[_BEFORE:])
    if short:
        return ChunkTime(way, step, None, None)
    first = Samples(tuple(one[0] for one in spans))
    return ChunkTime(way, step, first, Samples(steady) if steady else None)


def _spans(clip: Clip, codec: Codec) -> list[float]:
    """Seconds of each chunk, on the device's clock where it has one."""
    clip.settle()
    marks = [_Mark(clip)]
    with closing(rendered(clip, codec)) as chunks:
        for _ in chunks:
            marks.append(_Mark(clip))  # noqa: PERF401  # the chunk is let go of before the next
    clip.finish_launches()
    return [one.until(other) for one, other in itertools.pairwise(marks)]


class _Mark:
    """A moment of the device."""

    def __init__(self, clip: Clip) -> None:
        self._event: torch.cuda.Event | None = None
        if clip.codec.device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()
        self._time = time.perf_counter()

    def until(self, other: _Mark) -> float:
        """Seconds; both have happened."""
        if self._event is None or other._event is None:
            return other._time - self._time
        return float(self._event.elapsed_time(other._event)) / 1000
