"""A timeline as a trace in Chrome's format, which Perfetto opens.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from ._lanes import LANES, Panel, idle

#: Threads of a process in the trace: lanes in their order, and idle times below compute.
_ROWS = {"launch": 1, "compute": 2, "idle": 3, "copy": 4, "persist": 5}


def trace(panels: tuple[Panel, ...]) -> str:
    """The trace: a process for each stream, a thread for each lane; times in microseconds."""
    events = [event for process, panel in enumerate(panels, 1) for event in _events(process, panel)]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _events(process: int, panel: Panel) -> Iterator[dict[str, object]]:
    name = " ".join(filter(None, ("streamvae", panel.name)))
    yield _named(process, 0, "process_name", f"{name}: {panel.said}")
    rows = {*panel.lanes, *(("idle",) if panel.gaps else ())}
    for lane, row in _ROWS.items():
        if lane in rows:
            yield _named(process, row, "thread_name", lane)
            yield _named(process, row, "thread_sort_index", row)
    for bar in panel.bars:
        yield _piece(process, bar.lane, f"chunk {bar.chunk}", (bar.begin, bar.end), bar.numbers)
        if bar.lane in {"copy", "persist"}:
            yield {
                "ph": "C",
                "pid": process,
                "name": f"queued before {bar.span.stage}",
                "ts": bar.span.asked * 1e6,
                "args": {"chunks": bar.span.queued},
            }
    for gap in panel.gaps:
        told: dict[str, object] = {f"{cause}_s": seconds for cause, seconds in gap.waits.items()}
        yield _piece(process, "idle", idle(gap), (gap.begin, gap.end), told)


def _piece(
    process: int, lane: str, name: str, when: tuple[float, float], args: dict[str, object]
) -> dict[str, object]:
    return {
        "ph": "X",
        "cat": lane if lane in LANES else "idle",
        "name": name,
        "pid": process,
        "tid": _ROWS[lane],
        "ts": when[0] * 1e6,
        "dur": (when[1] - when[0]) * 1e6,
        "args": args,
    }


def _named(process: int, row: int, what: str, value: str | int) -> dict[str, object]:
    key = "sort_index" if isinstance(value, int) else "name"
    return {"ph": "M", "pid": process, "tid": row, "name": what, "args": {key: value}}
