"""How busy the compute stream was, from a trace of torch's profiler."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from _measure import Json, seconds
from torch.profiler import ProfilerActivity

Span = tuple[float, float]
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
LAUNCHES = {"cuda_runtime", "cuda_driver"}


def profiled(
    call: Callable[[], object], look: Callable[[list[dict[str, Any]]], Json] | None = None
) -> Json:
    """Run ``call`` under the profiler: `utilisation` of what the device did, and wall time.

    Args:
        call: What to run.
        look: Told the events of the trace, in the place of `utilisation`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
            wall = seconds(call)
            torch.cuda.synchronize()
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return (look or utilisation)(events) | {"wall_profiled": wall}


def utilisation(events: Iterable[dict[str, Any]]) -> Json:
    """Share of the time from first launch to last chunk in which the compute stream was busy.

    Args:
        events: Of a Chrome trace. Kernels, copies within the device and memsets count, on the
            stream with most kernel time. The last chunk is there when its copy to the host ends.
    """
    spans: dict[object, list[Span]] = defaultdict(list)
    kernels: dict[object, float] = defaultdict(float)
    launched: dict[object, float] = {}
    correlations: dict[object, set[object]] = defaultdict(set)
    last_copy = 0.0
    for event in events:
        category, args = event.get("cat"), event.get("args", {})
        if category in LAUNCHES and "launch" in event["name"].lower():
            launched[args.get("correlation")] = event["ts"]
        if category not in ON_DEVICE:
            continue
        stream, span = args["stream"], (event["ts"], event["ts"] + event["dur"])
        if category == "gpu_memcpy" and "DtoH" in event["name"]:
            last_copy = max(last_copy, span[1])
        elif category != "gpu_memcpy" or "DtoD" in event["name"]:
            spans[stream].append(span)
            correlations[stream].add(args.get("correlation"))
        if category == "kernel":
            kernels[stream] += event["dur"]
    compute = max(kernels, key=lambda stream: kernels[stream])
    busy = merged(spans[compute])
    begun = [launched[one] for one in correlations[compute] if one in launched]
    first = min([*begun, busy[0][0]])
    window = max(last_copy, busy[-1][1]) - first
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(busy)]
    union = sum(end - begin for begin, end in busy)
    return {
        "share": union / window,
        "share_until_last_kernel": union / (busy[-1][1] - first),
        "union_ms": union / 1000,
        "window_ms": window / 1000,
        "largest_gap_ms": max(gaps, default=0.0) / 1000,
        "pieces_of_work": len(spans[compute]),
    }


def steady(events: Iterable[dict[str, Any]]) -> Json:
    """Share of the time in which the compute stream was busy, while graphs were launched.

    Args:
        events: As for `utilisation`. The time is that from the first graph's first kernel to the
            last graph's last; chunks before and after, which are no graphs, are left out.

    Returns:
        The share, and what it is made of; only ``graphs``, 0, where there are none.
    """
    spans: dict[object, list[Span]] = defaultdict(list)
    own: dict[object, list[Span]] = defaultdict(list)
    stream_of: dict[object, object] = {}
    graphs: set[object] = set()
    for event in events:
        category, args = event.get("cat"), event.get("args", {})
        if category in LAUNCHES and "graphlaunch" in event["name"].lower():
            graphs.add(args.get("correlation"))
        copied = category == "gpu_memcpy" and "DtoD" not in event["name"]
        if category not in ON_DEVICE or copied:
            continue
        span = (event["ts"], event["ts"] + event["dur"])
        spans[args["stream"]].append(span)
        own[args.get("correlation")].append(span)
        stream_of[args.get("correlation")] = args["stream"]
    launched = [one for one in graphs if one in own]
    if not launched:
        return {"graphs": 0}
    window = (
        min(begin for one in launched for begin, _ in own[one]),
        max(end for one in launched for _, end in own[one]),
    )
    compute = merged(spans[stream_of[launched[0]]])
    inside = [(max(begin, window[0]), min(end, window[1])) for begin, end in compute]
    inside = [(begin, end) for begin, end in inside if begin < end]
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(inside)]
    union, length = sum(end - begin for begin, end in inside), window[1] - window[0]
    return {
        "graphs": len(launched),
        "share": union / length,
        "union_ms": union / 1000,
        "window_ms": length / 1000,
        "gaps_ms": sum(gaps) / 1000,
        "largest_gap_ms": max(gaps, default=0.0) / 1000,
        "pieces_of_work": sum(len(own[one]) for one in launched),
    }


def merged(spans: Iterable[Span]) -> list[Span]:
    """The union of ``spans``, in order, without overlaps."""
    whole: list[Span] = []
    for begin, end in sorted(spans):
        if whole and begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((begin, end))
    return whole
