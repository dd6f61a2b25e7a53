"""What each chunk went through: when a stage came for it, had it, passed it on; when a device ran.

Note [What a span on the device measures]
-----------------------------------------
A pair of events stands round everything that one launch gave to a stream. Its span begins when the
stream has come to the first, that is when all before it is finished, and ends when the last kernel
has. Idle time between two kernels of one chunk lies inside it: a few microseconds each where they
are launched one by one, less in a graph, and much more where launching is slower than the device,
which `StreamStats.launch_bound` tells. A profiler that adds up kernels sees that much less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """One chunk in one stage. Times are seconds since the stream was started.

    `dataclasses.asdict` gives plain numbers and strings, ready for JSON.

    Attributes:
        stage: ``"decode"``, ``"download"``, ``"persist"`` or ``"settle"``.
        chunk: Its index.
        asked: When the stage came for it, done with the one before.
        begin: When the stage had it.
        end: When the stage had done its part, and passed it on. What ``decode`` passes on is
            launched and not finished.
        queued: Chunks in the queue in front of the stage when it came for this one.
        frames: Frames (items, samples) that end in it, once they are on the host (or settled).
        nbytes: Bytes that were copied to the host, or written; 0 for launches.
        admitted: When the device let the launch in, which is two unfinished ones at most for all
            its streams together; None but for ``decode``.
        call_begin: When the launch began, on its own thread; None but for ``decode``.
        call_end: When it returned there.
        call_cpu: Seconds of processor time that this thread took.
        device_begin: When the device began: with the launch's kernels, with the copy. On a CPU,
            which is done when the call is, the call's own. None where nobody knows.
        device_end: When the device had done it.
    """

    stage: str
    chunk: int
    asked: float
    begin: float
    end: float
    queued: int = 0
    frames: int = 0
    nbytes: int = 0
    admitted: float | None = None
    call_begin: float | None = None
    call_end: float | None = None
    call_cpu: float | None = None
    device_begin: float | None = None
    device_end: float | None = None

    @property
    def device(self) -> float:
        """Seconds on the device; 0 where nobody knows."""
        if self.device_begin is None or self.device_end is None:
            return 0.0
        return self.device_end - self.device_begin


class Percentiles(NamedTuple):
    """How long something took, in seconds.

    Attributes:
        p50: The median.
        p99: What one in a hundred exceeds.
        worst: The longest.
    """

    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, values: Iterable[tuple[float, int]]) -> Percentiles | None:
        """Those of weighted values; None of nothing."""
        ranked = sorted((value, weight) for value, weight in values if weight)
        if not ranked:
            return None
        total = sum(weight for _, weight in ranked)
        return cls(_at(ranked, 0.5 * total), _at(ranked, 0.99 * total), ranked[-1][0])


def _at(ranked: list[tuple[float, int]], place: float) -> float:
    below = 0
    for value, weight in ranked:
        below += weight
        if below >= place:
            return value
    return ranked[-1][0]
