"""What each stage did and for how long, in seconds of the loop's clock."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ._log import Log
from ._spans import ChunkSpan, Percentiles


@dataclass(slots=True)
class StageTimes:
    """One stage's book, kept by the pipeline.

    Attributes:
        name: The stage.
        chunks: Chunks passed on.
        busy: Seconds neither waiting for input nor for room in the queue behind it.
        waiting_input: Seconds without anything to do.
        waiting_output: Seconds held up by the stage after it.
        device: Seconds that the device worked for it, from pairs of events; on a CPU, those that
            launches took. 0 for a stage that has nothing to do there.
        queued: Chunks in the queue in front of it when it last came for one.
        queued_mean: The mean of that over all chunks: near the queue's size before the stage that
            is the limit, near 0 before one that waits.
    """

    name: str
    chunks: int = 0
    busy: float = 0.0
    waiting_input: float = 0.0
    waiting_output: float = 0.0
    device: float = 0.0
    queued: int = 0
    queued_mean: float = 0.0

    def came(self, queued: int, times: int) -> None:
        """Note how many chunks the stage found queued when it came for the ``times``-th."""
        self.queued = queued
        self.queued_mean += (queued - self.queued_mean) / times

    def note(self, elapsed: float) -> None:
        """Bring ``busy`` up to date, ``elapsed`` seconds after the stage began."""
        self.busy = elapsed - self.waiting_input - self.waiting_output


@dataclass(frozen=True, slots=True)
class SinkFailure:
    """A sink that failed, while the stream went on or as its end.

    Attributes:
        sink: What it calls itself.
        chunk: Index of the chunk that it was to take; None when it was opened or closed.
        committed: Frames (items, samples) that a reader of it finds.
        error: Type and text of what it raised.
    """

    sink: str
    chunk: int | None
    committed: int
    error: str


@dataclass(frozen=True, slots=True)
class StreamStats:
    """A stream so far.

    Attributes:
        stages: A copy of each stage's book, in the order of the flow.
        frames: Frames (items, samples) that passed the last stage.
        chunks: Chunks that passed the last stage.
        first_chunk: Seconds from start until the first chunk, and with it the first frame, could
            be had; None before.
        total: Seconds from start until now, or until the end.
        opening: Seconds of these before the stages ran: weights, sinks, the first latents.
        failures: Sinks that failed, the first first.
        closing: Seconds of these after all stages had ended: sinks completing what they have.
        timeline: Every chunk in every stage, the last 4096 of each, by stage in the order of the
            flow and then by chunk. A launch is among them once its pixels have come.
        device_busy: Share of the time from the end of the stream's first launch on the device to
            the end of its last in which the device worked on one of its launches; None before
            there are two. Idle time between kernels of one launch counts as work: some 2
            microseconds a kernel (see ``launch_bound``). On a CPU, launches are the work.
    """

    stages: tuple[StageTimes, ...] = ()
    frames: int = 0
    chunks: int = 0
    first_chunk: float | None = None
    total: float = 0.0
    opening: float = 0.0
    failures: tuple[SinkFailure, ...] = ()
    closing: float = 0.0
    timeline: tuple[ChunkSpan, ...] = field(default=(), repr=False)
    device_busy: float | None = None

    @property
    def running(self) -> float:
        """Seconds from the first launch's beginning to the last chunk's end, as far as it is."""
        return self.total - self.opening - self.closing

    @property
    def between_chunks(self) -> Percentiles | None:
        """Seconds from one chunk's coming to the next's; None before there are two."""
        return Percentiles.of((seconds, 1) for seconds, _ in self._intervals())

    @property
    def between_frames(self) -> Percentiles | None:
        """The same for each frame: frames of a chunk share the time since the chunk before.

        So does a player that spreads them evenly.
        """
        return Percentiles.of(
            (seconds / frames, frames) for seconds, frames in self._intervals() if frames
        )

    @property
    def launch(self) -> Percentiles | None:
        """Seconds of the launch thread a chunk, the first not counted."""
        return Percentiles.of(
            (span.call_end - span.call_begin, 1)
            for span in self._launches()
            if span.call_begin is not None and span.call_end is not None
        )

    @property
    def launch_cpu(self) -> Percentiles | None:
        """Seconds of processor time of the launch thread a chunk, the first not counted."""
        return Percentiles.of(
            (span.call_cpu, 1) for span in self._launches() if span.call_cpu is not None
        )

    @property
    def launch_bound(self) -> bool:
        """Whether launching takes as long as the device: it idles between a chunk's kernels.

        So it is where half of the chunks were finished as soon as they were launched, within a
        tenth of their time. ``device_busy`` sees nothing of it.
        """
        left = [
            (span.device_end - span.call_end) / span.device
            for span in self._launches()
            if span.device_end is not None and span.call_end is not None and span.device
        ]
        # On a CPU both end at the same moment, exactly: to launch is to work.
        return bool(left) and any(left) and statistics.median(left) < 0.1

    def of(self, stage: str) -> tuple[ChunkSpan, ...]:
        """The part of the timeline that is of one stage."""
        return tuple(span for span in self.timeline if span.stage == stage)

    def _launches(self) -> Iterator[ChunkSpan]:
        return (span for span in self.timeline if span.stage == "decode" and span.chunk)

    def _intervals(self) -> Iterator[tuple[float, int]]:
        """What the last stage gave: seconds since what it gave before, and frames."""
        last = self.of(self.stages[-1].name) if self.stages else ()
        before: float | None = None
        for span in last:
            if not span.frames:  # the band of a picture that is not complete
                continue
            if before is not None:
                yield span.end - before, span.frames
            before = span.end

    @property
    def bottleneck(self) -> str:
        """Who limits the stream, in a sentence."""
        if not self.stages or not self.chunks:
            return "Nothing has passed yet."
        running = self.running
        if self.opening > running + self.closing:
            return (
                "Opening (weights, sinks, the first latents) took longer than all that came after."
            )
        if self.closing > running:
            return "Completing the sinks took longer than all chunks."
        return self._slowest(running)

    def _slowest(self, running: float) -> str:
        last = self.stages[-1]
        if last.waiting_output > 0.5 * running:
            return "The consumer is the limit: it takes frames more slowly than they are made."
        slowest = max(self.stages, key=lambda stage: stage.busy)
        share = slowest.busy / running if running else 0.0
        if share < 0.5 and self.stages[0].waiting_input > 0.5 * running:
            return "The source of the latents is the limit: decoding waits for it."
        if slowest.name == "decode" and self.launch_bound:
            return (
                f"Launching is the limit: stage 'decode' is busy {share:.0%} of the time, and the "
                "device has done a chunk as soon as it is launched."
            )
        advice = {
            "decode": "the device is the limit, as it should be",
            "download": "the device or its copies are the limit",
            "persist": "a sink is the limit",
        }.get(slowest.name, "it is the limit")
        return f"Stage {slowest.name!r} is busy {share:.0%} of the time: {advice}."


@dataclass(slots=True)
class Book:
    """The running account of a stream; `snapshot` gives it out."""

    stages: list[StageTimes] = field(default_factory=list)
    frames: int = 0
    chunks: int = 0
    began: float | None = None
    opened: float | None = None
    first: float | None = None
    flowed: float | None = None
    ended: float | None = None
    log: Log = field(default_factory=Log)

    def passed(self, frames: int, now: float) -> None:
        """Note that a chunk passed the last stage."""
        if self.first is None:
            self.first = now
        self.frames += frames
        self.chunks += 1

    def snapshot(self, now: float) -> StreamStats:
        """The account as of ``now``."""
        began = now if self.began is None else self.began
        until = now if self.ended is None else self.ended
        return StreamStats(
            stages=tuple(
                replace(stage, device=self.log.device_seconds(stage.name)) for stage in self.stages
            ),
            frames=self.frames,
            chunks=self.chunks,
            first_chunk=None if self.first is None else self.first - began,
            total=until - began,
            opening=(until if self.opened is None else self.opened) - began,
            closing=0.0 if self.flowed is None else until - self.flowed,
            timeline=self.log.timeline(),
            device_busy=self.log.device_share(),
        )
