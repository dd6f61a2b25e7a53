"""A timeline as it is drawn: panels one below the other, of lanes, of bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from streamvae._merged import AVStats
from streamvae._spans import ChunkSpan
from streamvae._stats import StreamStats

from ._gaps import CAUSES, Gap, gaps

#: Lanes in their order: their colours, on white and on black alike (Okabe and Ito's).
LANES: Mapping[str, str] = {
    "launch": "#999999",
    "compute": "#0072b2",
    "copy": "#e69f00",
    "persist": "#009e73",
}
#: What idle time is drawn in.
IDLE = "#d55e00"
#: Shorter gaps, as a share of what is drawn, are no more than a line.
VISIBLE = 0.001


@dataclass(frozen=True, slots=True)
class Bar:
    """One chunk in one lane, in seconds since the stream was started."""

    lane: str
    chunk: int
    begin: float
    end: float
    span: ChunkSpan

    @property
    def text(self) -> str:
        """What there is to know of it."""
        long = (self.end - self.begin) * 1e3
        size = f", {self.span.nbytes / 2**20:.1f} MiB" if self.span.nbytes else ""
        return f"chunk {self.chunk}, {self.lane}: {self.begin:.4f} s, {long:.2f} ms long{size}"

    @property
    def numbers(self) -> dict[str, object]:
        """All that is known of the chunk in this stage, but what is not known."""
        return {name: value for name, value in asdict(self.span).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Panel:
    """One stream.

    Attributes:
        name: What it is called.
        bars: In any order.
        gaps: Times in which the device idled.
        begin: The left edge, in seconds: where the first bar begins.
        end: Where the last bar ends.
        said: What is written beside it.
    """

    name: str
    bars: tuple[Bar, ...]
    gaps: tuple[Gap, ...]
    begin: float
    end: float
    said: str

    @property
    def lanes(self) -> tuple[str, ...]:
        """Those that have something, in order."""
        there = {bar.lane for bar in self.bars}
        return tuple(lane for lane in LANES if lane in there)

    @property
    def visible_gaps(self) -> tuple[Gap, ...]:
        """Those that are more than a line."""
        least = VISIBLE * (self.end - self.begin)
        return tuple(gap for gap in self.gaps if gap.seconds >= least)


#: What has a timeline: one stream, video with sound, or several streams by name.
Timed = StreamStats | AVStats | Mapping[str, StreamStats]


def panels(stats: Timed) -> tuple[Panel, ...]:
    """One panel for each stream that has a timeline."""
    if isinstance(stats, StreamStats):
        stats = {"": stats}
    elif isinstance(stats, AVStats):
        stats = {"video": stats.video, "sound": stats.audio}
    return tuple(_panel(name, one) for name, one in stats.items() if one.timeline)


def _panel(name: str, stats: StreamStats) -> Panel:
    bars = tuple(_bars(stats))
    return Panel(
        name,
        bars,
        gaps(stats),
        min(bar.begin for bar in bars),
        max(bar.end for bar in bars),
        _said(stats),
    )


def _bars(stats: StreamStats) -> Iterator[Bar]:
    for span in stats.timeline:
        if span.stage == "persist":
            yield Bar("persist", span.chunk, span.begin, span.end, span)
        elif span.stage == "download":
            begin, end = _on_device(span, span.begin, span.end)
            yield Bar("copy", span.chunk, begin, end, span)
        elif span.stage == "decode":
            begin, end = _on_device(span, span.begin, span.end)
            yield Bar("compute", span.chunk, begin, end, span)
            # On a CPU the call is the work, and has been drawn.
            called = (span.call_begin, span.call_end)
            if None not in called and called != (span.device_begin, span.device_end):
                yield Bar("launch", span.chunk, called[0] or 0.0, called[1] or 0.0, span)


def _on_device(span: ChunkSpan, begin: float, end: float) -> tuple[float, float]:
    if span.device_begin is None or span.device_end is None:
        return begin, end
    return span.device_begin, span.device_end


def _said(stats: StreamStats) -> str:
    text = f"{stats.frames} frames in {stats.running:.2f} s"
    if stats.device_busy is not None:
        text += f", device busy {stats.device_busy:.1%} after the first chunk"
    return text


def idle(gap: Gap) -> str:
    """What there is to know of a gap."""
    return f"idle for {gap.seconds * 1e3:.2f} ms, {CAUSES[gap.cause]}"
