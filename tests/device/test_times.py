"""Where the time goes on the card: pairs of events against a profiler's kernels."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.profiler import ProfilerActivity, profile

from streamvae import StreamStats, stream_decode
from streamvae.backends._ruler import Ruler, TimedEvent
from streamvae.backends._streamed import StreamedBackend
from streamvae.sinks import Null

from . import card

pytestmark = pytest.mark.cuda

Span = tuple[float, float]
#: Latents of a clip, and the first of its chunks that counts as steady.
LATENTS, STEADY = 21, 4


def kernels(events: Iterable[dict[str, Any]]) -> list[Span]:
    """When the compute stream worked: kernels, memsets, copies on the device; seconds, in order."""
    spans: dict[object, list[Span]] = {}
    for event in events:
        category, copied = event.get("cat"), "DtoD" in event.get("name", "")
        if category in {"kernel", "gpu_memset"} or (category == "gpu_memcpy" and copied):
            begin = event["ts"] / 1e6
            stream = event["args"]["stream"]
            spans.setdefault(stream, []).append((begin, begin + event["dur"] / 1e6))
    return sorted(max(spans.values(), key=lambda those: sum(end - begin for begin, end in those)))


def union(spans: Iterable[Span], begin: float, end: float) -> float:
    """Seconds from ``begin`` to ``end`` that are in at least one span."""
    total, reached = 0.0, begin
    for first, last in spans:
        first, last = max(first, reached), min(last, end)  # noqa: PLW2901
        if last > first:
            total, reached = total + last - first, last
    return total


def steady(stats: StreamStats) -> tuple[float, float]:
    """Share of the time from the end of chunk `STEADY` on, by events; and how long that is."""
    spans = stats.of("decode")
    begin, end = spans[STEADY].device_end, spans[-1].device_end
    assert begin is not None
    assert end is not None
    busy = [(span.device_begin or 0.0, span.device_end or 0.0) for span in spans]
    return union(sorted(busy), begin, end) / (end - begin), end - begin


async def test_the_busy_share_is_a_profiler_s(real: AutoencoderKLWan, tmp_path: Path) -> None:
    """``stats`` and the union of a profiler's kernels agree within half a point, when steady.

    Where chunks are launched as graphs: see Note [What a span on the device measures] in ``_spans``
    for what is between kernels that are launched one by one.
    """
    z = card.latents(real, LATENTS, 60, 104)
    await stream_decode(z, real, sinks=Null()).finish()  # records graphs, warms up
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        stream = stream_decode(z, real, sinks=Null())
        stats = await stream.finish()
        torch.cuda.synchronize()
    path = tmp_path / "trace.json"
    await asyncio.to_thread(profiler.export_chrome_trace, str(path))
    spans = kernels(json.loads(path.read_text())["traceEvents"])
    share, window = steady(stats)
    last = spans[-1][1]
    profiled = union(spans, last - window, last) / window
    print(f"stats {share:.4%}, profiler {profiled:.4%}, {stream.info.step}")  # noqa: T201
    assert stats.device_busy is not None
    if stream.info.step.startswith("graph"):
        assert share == pytest.approx(profiled, abs=0.005)
    else:
        assert profiled - 0.005 <= share <= 1.0


async def test_spans_lie_in_the_host_s_time(real: AutoencoderKLWan) -> None:
    """A launch begins on the device after it was made, and ends before its pixels are there."""
    z = card.latents(real, 8, 32, 32)
    stats = await stream_decode(z, real, sinks=Null()).finish()
    slack = 0.0005
    copies = {span.chunk: span for span in stats.of("download")}
    before = 0.0
    for launch in stats.of("decode"):
        copy = copies[launch.chunk]
        assert launch.device_begin is not None
        assert launch.device_end is not None
        assert copy.device_begin is not None
        assert copy.device_end is not None
        assert launch.call_begin is not None
        assert launch.device_begin >= max(before, launch.call_begin) - slack
        assert launch.device_end > launch.device_begin
        assert copy.device_begin >= launch.device_end - slack
        assert copy.device_end <= copy.end + slack
        before = launch.device_end
    assert stats.launch_cpu is not None
    assert stats.launch_cpu.p50 < 1


def test_the_ruler_moves_on_without_a_jump() -> None:
    """Moments measured from a later event are those measured from the first, to microseconds."""
    ruler, stream = Ruler(card.DEVICE), torch.cuda.Stream(card.DEVICE)

    def worked() -> TimedEvent:
        begun = ruler.begin(stream)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(card.CYCLES)
        return ruler.end(begun, stream)

    before = time.monotonic()
    first, second = worked(), worked()
    torch.cuda.synchronize()
    span = first.span()
    assert span is not None
    assert before - 0.001 <= span[0] <= span[1] <= time.monotonic() + 0.001
    ruler.move(second.end._replace(event=first.begun, moment=span[0]))
    third = worked()
    torch.cuda.synchronize()
    assert third.end.event is first.begun
    following = second.span()
    assert following is not None
    third_span = third.span()
    assert third_span is not None
    assert following[0] == pytest.approx(span[1], abs=20e-6)
    gap = second.elapsed_time(third.begun) / 1000
    assert third_span[0] == pytest.approx(following[1] + gap, abs=20e-6)


async def test_streams_share_a_device_and_each_knows_its_part(
    vae: AutoencoderKLWan, backend: StreamedBackend
) -> None:
    """Spans of two streams on one device do not overlap."""
    z = card.latents(vae, 12)
    streams = [stream_decode(z, vae, sinks=Null(), backend=backend) for _ in range(2)]
    stats = await asyncio.gather(*(stream.finish() for stream in streams))
    begun = [stream._run.supervisor.book.began for stream in streams]  # type: ignore[union-attr]
    spans = sorted(
        ((span.device_begin or 0.0) + start, (span.device_end or 0.0) + start)
        for one, start in zip(stats, begun, strict=True)
        for span in one.of("decode")
    )
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert begin >= end - 20e-6
