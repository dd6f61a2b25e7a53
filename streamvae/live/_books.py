"""A service's books: the streams that run, and what became of those that have ended."""

from __future__ import annotations

import asyncio
import time
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from .._stats import StageTimes
from .._stream import FrameStream
from .._supervisor import Supervisor
from .._turns import Priority
from ._admission import Durations, Place

#: Why a request ended before its end: its consumer left it, the task that held it was cancelled (a
#: client gone), its time was over, the service was drained; or it gave up waiting for a place.
Reason = Literal["left", "cancelled", "timeout", "drain", "waiting"]

#: Upper bounds of seconds to the first frame that are told apart.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(eq=False)
class Running:
    """A stream that has a place, whether anybody still holds it or not.

    Attributes:
        stream: Held weakly: one that is dropped stops.
        task: Its task.
        supervisor: What that works on.
        place: Given back when the task has ended.
        priority: Of its turns.
        asked: When it was asked for, in seconds of the loop's clock.
        given: When it got its place.
        reason: Why it ended early, as far as somebody has said.
    """

    stream: weakref.ref[FrameStream]
    task: asyncio.Task[None]
    supervisor: Supervisor
    place: Place
    priority: Priority
    asked: float
    given: float
    reason: Reason | None = None
    greeted: bool = field(default=False, init=False)

    @property
    def first_frame(self) -> float | None:
        """Seconds from when it was asked for until its first frame could be had; None before."""
        book = self.supervisor.book
        if book.first is None or book.began is None:
            return None
        return self.given - self.asked + book.first - book.began

    def remaining(self, elapsed: float, typical: float) -> float:
        """Seconds that it will still take.

        By how far it is, where that is known; else by what others took.

        Args:
            elapsed: Seconds since it got its place.
            typical: Seconds that streams take.
        """
        done, info = self.supervisor.book.frames, self.supervisor.info
        if info is None or info.frames is None or not done:
            return max(0.0, typical - elapsed)
        return elapsed * max(0, info.frames - done) / done

    def end(self, reason: Reason, error: Exception) -> None:
        """Stop it; whoever asks for its frames gets ``error``."""
        if self.task.done():
            return
        self.reason = self.reason or reason
        stream = self.stream()
        if stream is None:
            self.task.cancel()
        else:
            stream._fail(error)


class Books:
    """Who runs, and sums over all that ever ran; read by metrics, health and `Busy.retry_after`.

    Nothing is written down while streams run: what they did is asked of them when somebody reads.

    Attributes:
        clock: Seconds, the loop's once there is one; may be read from any thread.
        running: Streams whose tasks have not ended.
        ended: Streams by what became of them: ``"finished"``, ``"failed"``, ``"cancelled"``.
        cancelled: Streams that ended early, by reason.
        refused: Requests that were sent away, by reason.
        first_frames: Streams by their seconds to the first frame: one count for each of
            `BUCKETS`, one for those beyond.
        first_seconds: All these seconds together.
        broken: Whether the device has reported an error that only a new process gets rid of.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._durations = Durations()
        self._frames = 0
        self._stages: dict[str, tuple[int, float]] = {}
        self.running: set[Running] = set()
        self.ended: Counter[str] = Counter(finished=0, failed=0, cancelled=0)
        self.cancelled: Counter[Reason] = Counter()
        self.refused: Counter[str] = Counter()
        self.first_frames = [0] * (len(BUCKETS) + 1)
        self.first_seconds = 0.0
        self.broken = False

    def began(self, running: Running) -> None:
        """A stream has started; it is looked after until its task has ended."""
        self.running.add(running)
        running.task.add_done_callback(lambda _: self._over(running))

    def gave_up(self, reason: Reason) -> None:
        """A request has ended before its stream was started."""
        self.cancelled[reason] += 1

    @property
    def frames(self) -> int:
        """Frames that passed the last stage, of all streams."""
        return self._frames + sum(running.supervisor.book.frames for running in self.running)

    def stages(self) -> Mapping[str, tuple[int, float]]:
        """Chunks that each stage passed on and seconds it was busy, of all streams."""
        sums = dict(self._stages)
        for running in self.running:
            _add(sums, running.supervisor.book.stages)
        return sums

    def depths(self) -> Mapping[str, int]:
        """Chunks in the queue behind each stage, of all streams that run."""
        depths: Counter[str] = Counter(dict.fromkeys(self._stages, 0))
        for running in self.running:
            depths.update(running.supervisor.pipeline.depths)
        return depths

    def greet(self) -> None:
        """Count those that have given their first frame since this was called last."""
        for running in self.running:
            self._greet(running)

    def typical(self) -> float:
        """Seconds that a stream takes, from its place to its end."""
        now = self.clock()
        return self._durations.typical([now - running.given for running in self.running])

    def remaining(self) -> Iterator[float]:
        """Seconds that each stream that runs will still take, if it goes on as it began."""
        now, typical = self.clock(), self.typical()
        for running in self.running:
            yield running.remaining(now - running.given, typical)

    def _over(self, running: Running) -> None:
        self._greet(running)
        self.running.discard(running)
        book = running.supervisor.book
        self._frames += book.frames
        _add(self._stages, book.stages)
        self._durations.add(self.clock() - running.given)
        if running.task.cancelled():
            self.ended["cancelled"] += 1
            self.cancelled[running.reason or "left"] += 1
        else:
            error = running.task.exception()
            self.ended["finished" if error is None else "failed"] += 1
            self.broken = self.broken or isinstance(error, torch.AcceleratorError)
        running.place.leave()

    def _greet(self, running: Running) -> None:
        seconds = running.first_frame
        if running.greeted or seconds is None:
            return
        running.greeted = True
        self.first_frames[bisect_left(BUCKETS, seconds)] += 1
        self.first_seconds += seconds


def _add(sums: dict[str, tuple[int, float]], stages: Iterable[StageTimes]) -> None:
    for stage in stages:
        chunks, busy = sums.get(stage.name, (0, 0.0))
        sums[stage.name] = (chunks + stage.chunks, busy + stage.busy)
