"""When a CUDA device did what, in the host's clock: pairs of events, laid beside one ruler.

Note [One clock of two]
-----------------------
An event knows how long after another one it happened, and nothing else. One whose moment the host
has seen is the ruler's end; others are so many milliseconds from it. It is seen once, on a stream
of its own while the device has nothing of ours to do, for the host waits for it; the two clocks
drift apart by some ten microseconds a second, so it is seen anew, at such a moment, after a minute.
Distances come as floats of 24 bits: the ruler's end moves on to an event of before every ten
seconds, to keep them to a microsecond. Lengths of spans depend on none of this.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from . import _libcuda

#: Seconds after which distances are measured from a later event.
REACH = 10.0
#: Seconds after which the host looks at the device's clock again.
DRIFT = 60.0


class _End(NamedTuple):
    """An event whose moment is known."""

    event: torch.cuda.Event
    moment: float


class CudaEvent(torch.cuda.Event):
    """An event that may be asked while somebody else captures a graph, in whatever mode."""

    def query(self) -> bool:
        """Whether it has happened; true for one that was never recorded."""
        mode = _libcuda.exchange_capture_mode(_libcuda.RELAXED)
        try:
            return bool(super().query())  # type: ignore[no-untyped-call]
        finally:
            _libcuda.exchange_capture_mode(mode)


class TimedEvent(CudaEvent):
    """An event at the end of work whose beginning was recorded too: `streamvae._events.Timed`."""

    ruler: Ruler
    begun: torch.cuda.Event
    end: _End

    #: Once it was measured.
    measured: tuple[float, float] | None = None

    def span(self) -> tuple[float, float] | None:
        """See `streamvae._events.Timed.span`. Measured once; a call of the device then."""
        if self.measured is None and self.query():
            before = self.end.event.elapsed_time(self.begun) / 1000
            length = self.begun.elapsed_time(self) / 1000
            begin = self.end.moment + before
            self.measured = (begin, begin + length)
            if before > REACH:
                self.ruler.move(_End(self.begun, begin))
        return self.measured


class Ruler:
    """Makes pairs of events of one device, and says when they happened."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._end: _End | None = None
        self._seen = 0.0
        self._latest: dict[int, CudaEvent] = {}  # of each stream

    def begin(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """Record where work begins."""
        if self._end is None or (time.monotonic() - self._seen > DRIFT and self._idle()):
            self._end = self._look()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def end(self, begun: torch.cuda.Event, stream: torch.cuda.Stream) -> TimedEvent:
        """Record where it ends."""
        assert self._end is not None  # noqa: S101  # since begin()
        event = TimedEvent(enable_timing=True)  # type: ignore[no-untyped-call]
        event.ruler, event.begun, event.end = self, begun, self._end
        event.record(stream)
        self._latest[stream.cuda_stream] = event
        return event

    def move(self, end: _End) -> None:
        """Measure from ``end`` from now on."""
        if self._end is not None and end.moment > self._end.moment:
            self._end = end

    def _idle(self) -> bool:
        latest = tuple(self._latest.values())  # two threads record
        return all(event.query() for event in latest)

    def _look(self) -> _End:
        # See Note [One clock of two].
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(_libcuda.own_stream(self._device, "clock"))
        event.synchronize()
        self._seen = time.monotonic()
        return _End(event, self._seen)
