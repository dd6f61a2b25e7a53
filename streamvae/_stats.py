"""What each stage did and for how long, in seconds of the loop's clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class StageTimes:
    """One stage's book, kept by the pipeline.

    Attributes:
        name: The stage.
        chunks: Chunks passed on.
        busy: Seconds neither waiting for input nor for room in the queue behind it.
        waiting_input: Seconds without anything to do.
        waiting_output: Seconds held up by the stage after it.
    """

    name: str
    chunks: int = 0
    busy: float = 0.0
    waiting_input: float = 0.0
    waiting_output: float = 0.0

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
        first_chunk: Seconds from start until the first chunk could be had; None before.
        total: Seconds from start until now, or until the end.
        opening: Seconds of these before the stages ran: weights, sinks, the first latents.
        failures: Sinks that failed, the first first.
    """

    stages: tuple[StageTimes, ...] = ()
    frames: int = 0
    chunks: int = 0
    first_chunk: float | None = None
    total: float = 0.0
    opening: float = 0.0
    failures: tuple[SinkFailure, ...] = ()

    @property
    def bottleneck(self) -> str:
        """Who limits the stream, in a sentence."""
        if not self.stages or not self.chunks:
            return "Nothing has passed yet."
        running = self.total - self.opening
        if self.opening > running:
            return (
                "Opening (weights, sinks, the first latents) took longer than all that came after."
            )
        last = self.stages[-1]
        if last.waiting_output > 0.5 * running:
            return "The consumer is the limit: it takes frames more slowly than they are made."
        slowest = max(self.stages, key=lambda stage: stage.busy)
        share = slowest.busy / running if running else 0.0
        if share < 0.5 and self.stages[0].waiting_input > 0.5 * running:
            return "The source of the latents is the limit: decoding waits for it."
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
    ended: float | None = None

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
            stages=tuple(replace(stage) for stage in self.stages),
            frames=self.frames,
            chunks=self.chunks,
            first_chunk=None if self.first is None else self.first - began,
            total=until - began,
            opening=(until if self.opened is None else self.opened) - began,
        )
