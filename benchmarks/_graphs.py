"""What graphs promise, each a measurement of one clip: the parts of ``graphs_h200.py``."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time

import numpy as np
import torch
from _loops import Case, device_alone, on_launch_thread, streamed
from _measure import Json, alternate, summary
from _trace import profiled, steady, utilisation

import streamvae
from streamvae import RawFile, StreamStats, stream_decode
from streamvae._pixels import render
from streamvae.fast import release
from streamvae.report._bench_loops import eager

#: Chunks at a stream's beginning that are not steady: the first, and one that may be captured.
UNSTEADY = 2


def record(case: Case, streams: int = 1) -> str:
    """Record graphs for so many streams of a clip's size; how their chunks will be launched."""

    async def warm() -> str:
        return (await streamvae.warmup(case.vae, tuple(case.z.shape), streams=streams)).step

    return case.runner.run(warm())


def warm_up(case: Case) -> Json:
    """Seconds of `streamvae.warmup`: the first in the process, and with everything but the slot."""
    steps: list[str] = []
    took: list[float] = []
    for _ in range(2):
        release()
        case.settle()
        began = time.perf_counter()
        steps.append(record(case))
        case.settle()
        took.append(time.perf_counter() - began)
    return {"step": steps[-1], "first in the process, s": took[0], "again, s": took[1]}


def raw_stats(case: Case) -> StreamStats:
    """Stream into a raw file."""

    async def run() -> StreamStats:
        return await stream_decode(
            case.z, case.vae, sinks=RawFile(case.scratch / "out.raw")
        ).finish()

    case.settle()
    return case.runner.run(run())


def period(stats: StreamStats) -> float:
    """Seconds of a steady chunk: from one's end on the device to the next's, the mean of all."""
    ends = [span.device_end for span in stats.of("decode") if span.device_end is not None]
    if len(ends) <= UNSTEADY + 1:
        raise RuntimeError(f"expected more than {UNSTEADY + 1} chunks, got {len(ends)}")
    return (ends[-1] - ends[UNSTEADY]) / (len(ends) - 1 - UNSTEADY)


def launch_cpu(stats: StreamStats) -> float:
    """Milliseconds of the launch thread's processor time a steady chunk: the median."""
    spans = stats.of("decode")[UNSTEADY:]
    return statistics.median(span.call_cpu for span in spans if span.call_cpu is not None) * 1000


def walls(case: Case, short: Case, rounds: int) -> Json:
    """Whole clips, the device alone and into a raw file; a steady chunk beside an eager one."""
    found: dict[str, list[StreamStats]] = {"graph": [], "eager": []}

    def kept(of: Case, name: str) -> float:
        of.settle()
        began = time.perf_counter()
        found[name].append(raw_stats(of))
        return time.perf_counter() - began

    def eagerly() -> float:
        with eager():
            return kept(short, "eager")

    ways = {
        "device alone": lambda: on_launch_thread(
            case, lambda this: device_alone(this, graphs=True)
        ),
        "raw": lambda: kept(case, "graph"),
        "raw, eager, short": eagerly,
    }
    clips = alternate(ways, rounds)
    chunk = {name: [period(one) for one in all_[1:]] for name, all_ in found.items()}
    cpu = {name: [launch_cpu(one) for one in all_[1:]] for name, all_ in found.items()}
    return {
        "clips": clips,
        "steady chunk, s": {name: summary(each) for name, each in chunk.items()},
        "launch thread, ms a steady chunk": {name: summary(each) for name, each in cpu.items()},
    }


def busy(case: Case) -> Json:
    """The compute stream's busy share by torch's profiler, and by that stream's own stats.

    A profiler may not see into graphs that were recorded before it was there: then once more, with
    a graph of its own, for the steady chunks.
    """
    found = _profiled(case, anew=False)
    if not found["steady chunks"]["graphs"]:
        release()
        found |= {"steady chunks": _profiled(case, anew=True)["steady chunks"]}
    return found


def _profiled(case: Case, *, anew: bool) -> Json:
    told: list[StreamStats] = []

    def run() -> None:
        if anew:
            record(case)
        told.append(raw_stats(case))

    def look(events: list[Json]) -> Json:
        return {"whole stream": utilisation(events), "steady chunks": steady(events)}

    return profiled(run, look) | {"by stats": told[0].device_busy}


def exactness(case: Case, long: torch.Tensor, other: torch.Tensor) -> Json:
    """Frames of two interleaved streams that are not those of ``vae.decode``, bit for bit."""

    async def both() -> list[np.ndarray]:
        return await asyncio.gather(decoded(long), decoded(other))

    async def decoded(z: torch.Tensor) -> np.ndarray:
        frames = await stream_decode(z, case.vae).collect()
        return np.asarray(frames)

    record(case, 2)
    case.settle()
    streams = case.runner.run(both())
    result: Json = {}
    for name, z, mine in zip(("one", "other"), (long, other), streams, strict=True):
        with torch.no_grad():
            whole = render(case.whole(z), "video", "uint8").cpu().numpy()
        unequal = (mine != whole).any(axis=(0, 2, 3, 4)) if mine.shape == whole.shape else None
        count = whole.shape[1] if unequal is None else int(unequal.sum())
        result[name] = {"latents": z.shape[2], "frames": whole.shape[1], "unequal frames": count}
        del whole
        gc.collect()
    return result


def cancels(case: Case, times: int, chunk: float) -> Json:
    """Leave streams at random moments; chunks' time until closed, and until the device is idle."""
    dice = random.Random(0)  # noqa: S311  # moments, no secrets

    async def one() -> tuple[float, float]:
        stream = stream_decode(case.z, case.vae)
        async with stream:
            count = 0
            async for got in stream.chunks():
                del got
                count += 1
                if count > UNSTEADY:
                    break
            await asyncio.sleep(dice.random() * chunk)
            cut = time.perf_counter()
            await stream.aclose()
            closed = time.perf_counter() - cut
            case.settle()
            return closed, time.perf_counter() - cut

    samples = [case.runner.run(one()) for _ in range(times)]
    return {
        "closed after, chunks": summary([closed / chunk for closed, _ in samples]),
        "device idle after, chunks": summary([idle / chunk for _, idle in samples]),
    }


def lengths(case: Case, long: Case) -> Json:
    """Peak memory, recording included, and time a steady chunk of a clip and of a long one."""
    result: Json = {}
    for each in (case, long):
        each.settle()
        release()
        gc.collect()
        cuda = each.codec.device.type == "cuda"
        before = (0, 0)
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(each.codec.device)
            before = _memory(each.codec.device, peak=False)
        record(each)
        stats = raw_stats(each)
        after = _memory(each.codec.device, peak=True) if cuda else (0, 0)
        result[str(each.steps)] = {
            "allocated": after[0] - before[0],
            "reserved": after[1] - before[1],
            "steady chunk, s": period(stats),
        }
    return result


def _memory(device: torch.device, *, peak: bool) -> tuple[int, int]:
    if peak:
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def side_by_side(case: Case, streams: int, rounds: int) -> dict[str, Json]:
    """Frames a second of one stream, and of several at once that share a codec."""

    async def run(count: int) -> None:
        await asyncio.gather(
            *(
                stream_decode(
                    case.z, case.codec, sinks=RawFile(case.scratch / f"{index}.raw")
                ).finish()
                for index in range(count)
            )
        )

    def rate(count: int) -> float:
        frames = count * (case.codec.frames(case.steps) or 0)
        return frames / streamed(case, lambda: run(count))

    release()
    record(case, streams)
    ways = {f"{count} at once": lambda count=count: rate(count) for count in (1, streams)}
    return alternate(ways, rounds)
