"""The log of a stream: the spans of its chunks, as its stages and its device bring them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from ._events import Event, Timed
from ._spans import ChunkSpan

T = TypeVar("T")

#: Spans that are kept of each stage, the newest.
KEPT = 4096


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """A clock in step with a loop's, to be read from any thread.

    For a loop of the system's time ``time.monotonic``, which is what devices are measured in:
    uvloop's own clock stands between two turns. A loop of virtual time has its own.
    """
    return time.monotonic if abs(loop.time() - time.monotonic()) < 1 else loop.time


@dataclass(slots=True)
class Visit:
    """Where a stage is with the chunk it works on; kept by the pipeline, in its clock.

    Attributes:
        asked: When it came for its input.
        begin: When it had it.
        resumed: When it went on after it had passed something on.
        queued: Chunks in the queue in front of it when it came.
    """

    asked: float = 0.0
    begin: float = 0.0
    resumed: float = 0.0
    queued: int = 0


class Call(Generic[T]):
    """Work for a device's thread, timed there.

    Attributes:
        label: What a profiler calls it.
        given: When it was made, in the log's clock.
        begin: When it began; None until then.
        end: When it returned.
        cpu: Seconds of processor time of its thread.
    """

    def __init__(self, work: Callable[[], T], label: str, clock: Callable[[], float]) -> None:
        self.label = label
        self.given = clock()
        self.begin: float | None = None
        self.end: float | None = None
        self.cpu: float | None = None
        self._work: Callable[[], T] | None = work
        self._clock = clock

    def __call__(self) -> T:
        """Do it, once: what it holds is let go of."""
        work, self._work = self._work, None
        if work is None:
            raise ValueError("expected work that is not done yet, got some that is")
        self.begin, cpu = self._clock(), time.thread_time()
        try:
            return work()
        finally:
            self.cpu, self.end = time.thread_time() - cpu, self._clock()


@dataclass(slots=True)
class _Busy:
    """How long a stream of the device had something to do, its spans in order."""

    seconds: float = 0.0
    first: float = 0.0
    first_end: float | None = None
    last_end: float = 0.0

    def add(self, begin: float, end: float) -> None:
        if self.first_end is None:
            self.last_end, self.first_end = begin, end
            self.first = end - begin
        self.seconds += max(0.0, end - max(begin, self.last_end))
        self.last_end = max(self.last_end, end)

    def steady(self) -> float | None:
        """Share of the time after the first span; None where there is only one."""
        if self.first_end is None or self.last_end <= self.first_end:
            return None
        return min(1.0, (self.seconds - self.first) / (self.last_end - self.first_end))


#: The fields of a `ChunkSpan` between its chunk and the device's times.
_Known = tuple[
    float, float, float, int, int, int, float | None, float | None, float | None, float | None
]


@dataclass(slots=True)
class Log:
    """The spans of one stream, the last `KEPT` of each stage. Used on the loop only.

    Nothing here calls the device: `Timed` events are asked once their chunk was collected, when
    the copy thread has asked them already.

    Attributes:
        clock: Seconds.
        began: When the stream was started, in that clock.
        kept: Spans kept of each stage.
    """

    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    kept: int = KEPT
    _visits: dict[str, Visit] = field(default_factory=dict)
    _spans: dict[str, deque[ChunkSpan]] = field(default_factory=dict)
    _busy: dict[str, _Busy] = field(default_factory=dict)
    #: Launches that the device has not been seen to finish: when they are, and what is known.
    _pending: deque[tuple[int, Timed, _Known]] = field(default_factory=deque)

    def visit(self, stage: str) -> Visit:
        """Where ``stage`` is, for the pipeline to keep up to date."""
        if stage not in self._visits:  # in the order of the flow
            self._visits[stage] = Visit()
            self._spans[stage] = deque(maxlen=self.kept)
        return self._visits[stage]

    def launched(self, chunk: int, call: Call[T], ready: Event) -> None:
        """``decode`` passes a launch on."""
        known = (
            *self._visited("decode"),
            0,
            0,
            self._since(call.given),
            self._since(call.begin),
            self._since(call.end),
            call.cpu,
        )
        if isinstance(ready, Timed):
            self._pending.append((chunk, ready, known))
        else:  # it was done when the call was
            self._keep("decode", chunk, known, (call.begin or 0.0, call.end or 0.0))

    def passed(
        self,
        stage: str,
        chunk: int,
        *,
        frames: int = 0,
        nbytes: int = 0,
        event: Event | None = None,
    ) -> None:
        """Another stage passes a chunk on; ``event`` is that of its copy."""
        while self._pending and self._pending[0][0] <= chunk:
            launch, ready, known = self._pending.popleft()
            self._keep("decode", launch, known, ready.span())
        known = (*self._visited(stage), frames, nbytes, None, None, None, None)
        self._keep(stage, chunk, known, event.span() if isinstance(event, Timed) else None)

    def close(self) -> None:
        """Keep what the device was not seen to finish, without the device's times."""
        while self._pending:
            launch, _, known = self._pending.popleft()
            self._keep("decode", launch, known, None)

    def timeline(self) -> tuple[ChunkSpan, ...]:
        """All that is kept, by stage in the order of the flow, then by chunk."""
        return tuple(chain.from_iterable(self._spans.values()))

    def device_seconds(self, stage: str) -> float:
        """How long the device worked for ``stage`` so far."""
        return self._busy[stage].seconds if stage in self._busy else 0.0

    def device_share(self) -> float | None:
        """Share of the time since its first launch was finished that the device had launches."""
        return self._busy["decode"].steady() if "decode" in self._busy else None

    def _visited(self, stage: str) -> tuple[float, float, float, int]:
        """When a stage came for what it now passes on, had it, and passes it on; its queue."""
        visit, end = self.visit(stage), self.clock() - self.began
        if visit.resumed > visit.begin:  # another part of what it had
            again = visit.resumed - self.began
            return again, again, end, 0
        return visit.asked - self.began, visit.begin - self.began, end, visit.queued

    def _keep(
        self, stage: str, chunk: int, known: _Known, device: tuple[float, float] | None
    ) -> None:
        begin = end = None
        if device is not None:
            self._busy.setdefault(stage, _Busy()).add(*device)
            begin, end = device[0] - self.began, device[1] - self.began
        self._spans[stage].append(ChunkSpan(stage, chunk, *known, begin, end))

    def _since(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self.began
