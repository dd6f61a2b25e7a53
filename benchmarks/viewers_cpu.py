"""A hundred viewers of one job, twenty of them stalled: what they cost the decode, and its file.

The embedded autoencoder decodes its demo clip into a raw file, alone and while it is watched: as
frames (nothing is encoded), as JPEG and as MP4 (encoded on the same cores). How late the event loop
is with ten viewers. Prints a table and whether each promise is kept.

    python benchmarks/viewers_cpu.py
    python benchmarks/viewers_cpu.py --quick        # few latents: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from _host_memory import NOISE, resident
from _measure import Json, alternate, facts, promised, show, show_promises, summary, write
from _promises import beating, lateness

from streamvae import FrameStream, RawFile, stream_decode
from streamvae.live import Broadcast, Subscription
from streamvae.models import default_vae, demo_latents

#: Frames a second, for JPEG and MP4.
FPS = 24

#: Viewers in all, and those of them who take nothing.
VIEWERS, STALLED = 100, 20

#: What they watch.
FORMS = ("frames", "jpeg", "mp4")


@dataclass
class Job:
    """A clip on its way to a file, again and again.

    Attributes:
        z: Latents.
        vae: The autoencoder.
        scratch: A folder for the file.
        runner: The one event loop of this run.
        told: What viewers of each form saw, of the last run.
        digests: Of the file, of every run.
        peaks: Resident bytes at most, of the runs of each way.
        work: Processor seconds, of the runs of each way: these do not depend on who else is busy.
    """

    z: torch.Tensor
    vae: torch.nn.Module
    scratch: Path
    runner: asyncio.Runner
    told: dict[str, Json] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    peaks: dict[str, list[int]] = field(default_factory=dict)
    work: dict[str, list[float]] = field(default_factory=dict)

    def stream(self) -> FrameStream:
        """A fresh stream into the file."""
        sink = RawFile(self.scratch / "out.raw", overwrite=True)
        return stream_decode(self.z, self.vae, sinks=sink, fps=FPS)

    def measured(self, name: str, run: Callable[[FrameStream], Awaitable[None]]) -> float:
        """Seconds that the stream takes while ``run`` does whatever it does with it."""

        async def watched() -> float:
            stream = self.stream()
            peak = asyncio.ensure_future(_peak())
            began = time.process_time()
            await run(stream)
            self.work.setdefault(name, []).append(time.process_time() - began)
            peak.cancel()
            self.peaks.setdefault(name, []).append(await peak)
            return stream.stats.total

        gc.collect()
        seconds = self.runner.run(watched())
        data = (self.scratch / "out.raw").read_bytes()
        self.digests.add(hashlib.sha256(data).hexdigest())
        return seconds

    async def with_viewers(self, form: str, stream: FrameStream) -> None:
        """Run ``stream`` while all of them watch."""
        seen: list[list[int]] = [[] for _ in range(VIEWERS - STALLED)]
        async with Broadcast(stream) as broadcast:
            stalled = [watch(broadcast, form) for _ in range(STALLED)]
            for viewer in stalled:
                await viewer.__aenter__()
            async with asyncio.TaskGroup() as group:
                for into in seen:
                    group.create_task(looking(watch(broadcast, form), into))
            await broadcast.finished()
            made = broadcast.stats.frames
            self.told[form] = {
                "frames": made,
                "least seen": min(map(len, seen)),
                "greatest gap": max(map(gap, seen)),
                "dropped by a stalled viewer": max(viewer.dropped for viewer in stalled),
            }
            for viewer in stalled:
                await viewer.aclose()


def watch(broadcast: Broadcast, form: str) -> Subscription[object]:
    """A subscription with its form's own policy."""
    if form == "frames":
        return broadcast.frames()  # type: ignore[return-value]
    return broadcast.packets(form)  # type: ignore[arg-type, return-value]


async def looking(viewer: Subscription[object], into: list[int]) -> None:
    """Watch, and note what was seen."""
    async with viewer:
        async for item in viewer:
            into.append(item.index)  # type: ignore[attr-defined]
            del item


def gap(seen: list[int]) -> int:
    """Frames at most that a viewer missed in a row."""
    return max((after - before - 1 for before, after in itertools.pairwise(seen)), default=0)


async def _peak() -> int:
    """Resident bytes at most, until cancelled."""
    peak = resident()
    try:
        while True:
            peak = max(peak, resident())
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return peak


async def _alone(stream: FrameStream) -> None:
    async for chunk in stream.chunks():
        del chunk


def sides(job: Job, rounds: int, *, warm: bool) -> dict[str, Json]:
    """Seconds of the job alone and watched, in turns."""
    ways: dict[str, Callable[[], float]] = {
        "alone": functools.partial(job.measured, "alone", _alone)
    }
    for form in FORMS:
        run = functools.partial(job.with_viewers, form)
        ways[f"{VIEWERS} viewers, {form}"] = functools.partial(job.measured, form, run)
    return alternate(ways, rounds, warm=warm)


def heartbeat(job: Job, rounds: int) -> Json:
    """How late a beat each millisecond comes while ten watch JPEG, and with nobody."""

    async def ten() -> None:
        async with Broadcast(job.stream()) as broadcast, asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(looking(watch(broadcast, "jpeg"), []))

    async def during(run: Callable[[], Awaitable[None]]) -> list[float]:
        return await beating(asyncio.ensure_future(run()))

    gc.collect()
    gc.freeze()
    try:
        told: Json = {}
        for name, run in (("10 viewers", ten), ("nobody", lambda: _alone(job.stream()))):
            late: list[float] = []
            for _ in range(rounds):
                late += job.runner.run(during(run))
            told[name] = lateness(late)
    finally:
        gc.unfreeze()
    return told


def result_of(job: Job, rounds: int, *, warm: bool) -> Json:
    """Everything."""
    rows = sides(job, rounds, warm=warm)
    beats = heartbeat(job, rounds)
    frames = job.told["frames"]
    alone = max(job.peaks["alone"])
    grown = {form: (max(job.peaks[form]) - alone) / 2**20 for form in FORMS}
    watched = f"{VIEWERS} viewers, frames"
    limit = 0.1 * frames["frames"]
    promises = {
        "files that differ": (len(job.digests) - 1, 0),
        "watched / alone, frames": (rows[watched]["median"] / rows["alone"]["median"], 1.10),
        "most missed by one who looks, frames": (frames["frames"] - frames["least seen"], limit),
        "memory above alone, MiB": (grown["frames"], NOISE / 2**20),
        "heartbeat p99.9, 10 viewers, ms late": (beats["10 viewers"]["p99.9_ms"], 50.0),
    }
    return {
        "clips": rows,
        "processor seconds": {name: summary(work) for name, work in job.work.items()},
        "viewers": job.told,
        "memory above alone, MiB": grown,
        "heartbeat": beats,
        "promises": promised(promises),
    }


def main() -> None:
    """Measure, print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few latents: a rehearsal")
    parser.add_argument("--rounds", type=int, help="samples of every figure")
    parser.add_argument("--latents", type=int, help="how many; by default the demo's, or 3")
    parser.add_argument("--scratch", type=Path, help="folder for the file written")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    said = parser.parse_args()
    rounds = said.rounds or (1 if said.quick else 5)
    z, _ = demo_latents()
    count = said.latents or (3 if said.quick else z.shape[2])
    with tempfile.TemporaryDirectory(dir=said.scratch) as scratch, asyncio.Runner() as runner:
        job = Job(z[:, :, :count], default_vae(), Path(scratch), runner)
        result = facts(torch.device("cpu")) | {
            "latents": list(job.z.shape),
            "viewers in all": VIEWERS,
            "stalled": STALLED,
            "load before": os.getloadavg(),
        }
        result |= result_of(job, rounds, warm=not said.quick)
        result["load after"] = os.getloadavg()
    show("the same clip into a raw file", result["clips"])
    show("its processor seconds", result["processor seconds"])
    for form, told in result["viewers"].items():
        print(f"  viewers of {form}: {told}")
    for name, told in result["heartbeat"].items():
        print(f"  heartbeat, {name}: {told}")
    show_promises(result["promises"], quick=said.quick)
    if said.out:
        write(result, said.out)


if __name__ == "__main__":
    main()
