"""What a stream promises besides speed: first frame, memory, cancelling, a free event loop."""

from __future__ import annotations

import asyncio
import gc
import random
import time

import torch
from _loops import Case, device_alone, on_launch_thread
from _measure import Json, alternate, summary

from streamvae import RawFile, stream_decode
from streamvae.fast import release

#: Seconds between two beats.
BEAT = 0.001


def first_frame(case: Case, rounds: int) -> dict[str, Json]:
    """Seconds to the first frame on the host, beside the first chunk alone on the device."""

    async def one() -> float:
        case.settle()
        began = time.perf_counter()
        async with stream_decode(case.z, case.vae) as frames:
            async for frame in frames:
                del frame
                break
            return time.perf_counter() - began

    return alternate(
        {
            "first chunk on the device alone": lambda: on_launch_thread(
                case, lambda this: device_alone(this, 1)
            ),
            "first frame on the host": lambda: case.runner.run(one()),
        },
        rounds,
    )


def phases(case: Case, rounds: int) -> dict[str, Json]:
    """Seconds of each part of a stream into a raw file: what it costs besides decoding."""

    async def one() -> dict[str, float]:
        case.settle()
        marks = [time.perf_counter()]
        sink = RawFile(case.scratch / "out.raw")
        async with stream_decode(case.z, case.vae, sinks=sink) as stream:
            marks.append(time.perf_counter())
            async for chunk in stream.chunks():
                del chunk
                marks.append(time.perf_counter())
        parts = (marks[1], marks[2], marks[-1], time.perf_counter())
        names = ("open", "to the first chunk", "to the last chunk", "close")
        begins = (marks[0], *parts)
        return {name: end - begin for name, begin, end in zip(names, begins, parts, strict=False)}

    samples = [case.runner.run(one()) for _ in range(rounds)]
    return {name: summary([each[name] for each in samples]) for name in samples[0]}


def memory(case: Case, times: int) -> Json:
    """Peak device memory above what lay there, of clips of this length and ``times`` as long."""
    long = case.z.repeat(1, 1, times, 1, 1)
    peaks: Json = {}
    for name, z in (("stream", case.z), (f"stream, {times} times as long", long)):
        began = _reset(case)
        case.runner.run(_finish(case, z))
        peaks[name] = torch.cuda.max_memory_reserved(case.codec.device) - began
    began = _reset(case)
    with torch.no_grad():
        case.vae.decode(case.z)
    peaks["vae.decode"] = torch.cuda.max_memory_reserved(case.codec.device) - began
    return peaks


def cancelling(case: Case, rounds: int, chunk_seconds: float) -> Json:
    """Seconds from a cancel at some moment of a steady chunk to `aclose` done and to GPU idle."""
    dice = random.Random(0)  # noqa: S311  # moments, no secrets

    async def one() -> tuple[float, float]:
        stream = stream_decode(case.z, case.vae)
        async with stream:
            count = 0
            async for chunk in stream.chunks():
                del chunk
                count += 1
                if count == 4:
                    break
            await asyncio.sleep(dice.random() * chunk_seconds)
            cut = time.perf_counter()
            await stream.aclose()
            closed = time.perf_counter() - cut
            torch.cuda.synchronize(case.codec.device)
            return closed, time.perf_counter() - cut

    samples = [case.runner.run(one()) for _ in range(rounds)]
    return {
        "closed after": summary([closed for closed, _ in samples]),
        "device idle after": summary([idle for _, idle in samples]),
        "chunk": chunk_seconds,
    }


def heartbeat(case: Case, rounds: int) -> Json:
    """How late a beat each millisecond comes, while the device decodes and on an idle loop."""

    async def decoding() -> list[float]:
        return await beating(asyncio.ensure_future(_finish(case, case.z)))

    async def idle(seconds: float) -> list[float]:
        return await beating(asyncio.ensure_future(asyncio.sleep(seconds)))

    case.runner.run(_finish(case, case.z))
    gc.collect()
    gc.freeze()
    try:
        busy: list[float] = []
        control: list[float] = []
        for _ in range(rounds):
            began = time.perf_counter()
            busy += case.runner.run(decoding())
            control += case.runner.run(idle(time.perf_counter() - began))
    finally:
        gc.unfreeze()
    return {"decoding": lateness(busy), "idle loop": lateness(control)}


async def beating(other: asyncio.Task[object]) -> list[float]:
    """Seconds by which each beat came late until ``other`` was done."""
    late: list[float] = []
    while not other.done():
        due = time.perf_counter() + BEAT
        await asyncio.sleep(BEAT)
        late.append(time.perf_counter() - due)
    await other
    return late


def lateness(late: list[float]) -> Json:
    """What is said of beats that came late."""
    late = sorted(late)
    return {
        "beats": len(late),
        "median_ms": late[len(late) // 2] * 1000,
        "p99_ms": late[int(len(late) * 0.99)] * 1000,
        "p99.9_ms": late[int(len(late) * 0.999)] * 1000,
        "worst_ms": late[-1] * 1000,
    }


async def _finish(case: Case, z: torch.Tensor) -> None:
    await stream_decode(z, case.vae).finish()


def _reset(case: Case) -> int:
    """What torch keeps of the device, with no decoder slot and nothing cached.

    Not what tensors take of it: a graph's own memory is no tensor's.
    """
    release()
    gc.collect()
    torch.cuda.synchronize(case.codec.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(case.codec.device)
    return torch.cuda.memory_reserved(case.codec.device)
