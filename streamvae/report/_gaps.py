"""When the device had nothing of a stream to do, and what it was waiting for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from streamvae._spans import ChunkSpan
from streamvae._stats import StreamStats

Cause = Literal["latents", "output", "turn", "launch"]

#: What the device waits for, in words.
CAUSES: Mapping[Cause, str] = {
    "latents": "waiting for latents",
    "output": "held up by what comes after it",
    "turn": "waiting for its turn among the streams of the device",
    "launch": "waiting for the launch",
}


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which the device had no launch of the stream, between two that it had.

    Attributes:
        begin: Seconds since the stream was started.
        end: When the next launch began.
        waits: Seconds of it by what was waited for; their sum is all of it.
    """

    begin: float
    end: float
    waits: Mapping[Cause, float]

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.begin

    @property
    def cause(self) -> Cause:
        """What most of it was spent on."""
        return max(self.waits, key=lambda cause: self.waits[cause])


def gaps(stats: StreamStats) -> tuple[Gap, ...]:
    """Every time that the device idled between two launches of a stream, in order.

    Args:
        stats: Of a stream; its ``timeline`` says when the device had what.
    """
    on_device = [span for span in stats.of("decode") if span.device_end is not None]
    found: list[Gap] = []
    for before, span in itertools.pairwise(on_device):
        begin, end = before.device_end, span.device_begin
        if begin is not None and end is not None and end > begin:
            found.append(Gap(begin, end, _waits(begin, end, span)))
    return tuple(found)


def _waits(begin: float, end: float, span: ChunkSpan) -> dict[Cause, float]:
    """How much of a gap before ``span`` fell into each step of its way to the device."""
    admitted = span.begin if span.admitted is None else span.admitted
    # What of it lies before `asked`, the stage spent handing on the chunk before.
    steps: tuple[tuple[Cause, float], ...] = (
        ("output", span.asked),
        ("latents", span.begin),
        ("turn", admitted),
        ("launch", end),
    )
    waits: dict[Cause, float] = {}
    reached = begin
    for cause, until in steps:
        until = min(max(until, reached), end)  # noqa: PLW2901  # no step ends outside the gap
        waits[cause] = until - reached
        reached = until
    return waits
