"""Sinks beside the least that writes the same: what being a sink costs, without any decoding.

Chunks of four frames, from memory, into a raw file (as usual, and past the system's cache) and into
an MP4; how late the event loop is while the encoder has the processor to itself. Prints a table and
whether each promise is kept.

    python benchmarks/sinks_cpu.py
    python benchmarks/sinks_cpu.py --quick          # small and few frames: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _bare import aligned, write_all
from _loops import CRF, FPS, PRESET
from _measure import (
    Json,
    alternate,
    facts,
    filesystem,
    promised,
    seconds,
    show,
    show_promises,
    write,
)
from _promises import beating, lateness
from _real import pictures

from streamvae import HostChunk, RawFile, StreamInfo, VideoFile
from streamvae.abc import Sink
from streamvae.report._bench_video import BareVideo

Frames = npt.NDArray[np.uint8]

#: Frames of a chunk.
STEP = 4


@dataclass
class Clip:
    """Frames on their way to a sink.

    Attributes:
        chunks: (1, STEP, H, W, 3), uint8, each on pages of its own.
        times: How often they go round.
        scratch: An empty folder; everything in it is deleted between runs.
        runner: The one event loop of this run.
    """

    chunks: list[Frames]
    times: int
    scratch: Path
    runner: asyncio.Runner

    def all(self) -> Iterator[Frames]:
        """Every chunk, in order."""
        for _ in range(self.times):
            yield from self.chunks

    def settled(self, call: Callable[[], object]) -> float:
        """Seconds that ``call`` takes, from an empty folder and a disk that has nothing to do."""
        for path in self.scratch.iterdir():
            path.unlink()
        os.sync()
        return seconds(call)

    def into(self, make: Callable[[Path], Sink]) -> float:
        """Seconds that a sink takes, from before it is opened until it is closed."""
        return self.settled(lambda: self.runner.run(self.fed(make(self.scratch))))

    async def fed(self, sink: Sink) -> None:
        """Drive a sink as a stream does."""
        _, _, height, width, _ = self.chunks[0].shape
        info = StreamInfo(
            family="none",
            kind="video",
            output="uint8",
            mode="exact",
            step="none",
            device="cpu",
            batch=1,
            frames=STEP * len(self.chunks) * self.times,
            height=height,
            width=width,
            fps=FPS,
        )
        await sink.open(info)
        for index, data in enumerate(self.all()):
            await sink.write(HostChunk(index, STEP * index, "video", data))
        await sink.close()


def bare_raw(clip: Clip, flags: int) -> float:
    """One call of the system for each chunk."""

    def run() -> None:
        mode = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags
        file = os.open(clip.scratch / "out.raw", mode, 0o666)
        try:
            for data in clip.all():
                write_all(file, data.reshape(-1))
        finally:
            os.close(file)

    return clip.settled(run)


def bare_mp4(clip: Clip) -> float:
    """PyAV's own loop, with the sink's options and colours."""

    def run() -> None:
        height, width = clip.chunks[0].shape[2:4]
        size = (width, height)
        video = BareVideo(clip.scratch / "out.mp4", size, fps=FPS, crf=CRF, preset=PRESET)
        for data in clip.all():
            for picture in data[0]:
                video.encode(picture)
        video.close()

    return clip.settled(run)


def raw(clip: Clip, rounds: int) -> dict[str, Json]:
    """Into a raw file, until the last write has returned; by itself, or a pause hits one of them.

    A virtual machine gives memory of deleted files back after a while, and gets it again slowly.
    """
    return alternate(
        {
            "raw, bare": functools.partial(bare_raw, clip, 0),
            "raw, RawFile": lambda: clip.into(lambda at: RawFile(at / "out.raw")),
        },
        rounds,
    )


def raw_past_cache(clip: Clip, rounds: int) -> dict[str, Json]:
    """Into a raw file on the disk, from memory that begins on a page."""
    return alternate(
        {
            "raw past the cache, bare": functools.partial(bare_raw, clip, os.O_DIRECT),
            "raw past the cache, RawFile": lambda: clip.into(
                lambda at: RawFile(at / "out.raw", direct=True)
            ),
        },
        rounds,
    )


def mp4(clip: Clip, rounds: int) -> dict[str, Json]:
    """Into H.264."""
    return alternate(
        {
            "mp4, bare": functools.partial(bare_mp4, clip),
            "mp4, VideoFile": lambda: clip.into(_video),
        },
        rounds,
    )


def heartbeat(clip: Clip, rounds: int) -> Json:
    """How late a beat each millisecond comes while frames are encoded."""

    async def encoding() -> list[float]:
        task = asyncio.ensure_future(clip.fed(_video(clip.scratch)))
        return await beating(task)

    late: list[float] = []
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            late += clip.runner.run(encoding())
    finally:
        gc.unfreeze()
    return lateness(late)


def _video(at: Path) -> VideoFile:
    return VideoFile(at / "out.mp4", fps=FPS, crf=CRF, preset=PRESET, overwrite=True)


def _direct_works(scratch: Path) -> bool:
    try:
        os.close(os.open(scratch / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (AttributeError, OSError):
        return False
    return True


def clip_of(
    size: tuple[int, int], count: int, times: int, scratch: Path, runner: asyncio.Runner
) -> Clip:
    """Frames of a real scene where PyAV is there to encode them, else drawn ones."""
    shape = (count, *size, 3)
    quick = size[0] < 240
    if find_spec("av"):
        frames = pictures(count, *size, quick=quick)
    else:
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    chunks = []
    for start in range(0, count, STEP):
        part = frames[None, start : start + STEP]
        chunk = aligned(part.nbytes).reshape(part.shape)
        chunk[...] = part
        chunk.flags.writeable = False
        chunks.append(chunk)
    return Clip(chunks, times, scratch, runner)


def measured(clip: Clip, rounds: int) -> Json:
    """Everything."""
    fewer = replace(clip, times=clip.times // 2)
    result: Json = {"clips": raw(fewer, rounds)}
    clips = result["clips"]
    rows = {"raw / bare": (_ratio(clips, "raw, RawFile", "raw, bare"), 1.15)}
    if _direct_works(clip.scratch):
        clips |= raw_past_cache(clip, rounds)
        pair = "raw past the cache, RawFile", "raw past the cache, bare"
        rows["raw past the cache / bare"] = (_ratio(clips, *pair), 1.15)
    if find_spec("av"):
        clips |= mp4(fewer, rounds)
        result["heartbeat"] = heartbeat(fewer, rounds)
        rows["mp4 / bare"] = (_ratio(clips, "mp4, VideoFile", "mp4, bare"), 1.05)
        rows["heartbeat p99.9, ms late"] = (result["heartbeat"]["p99.9_ms"], 20.0)
    result["promises"] = promised(rows)
    return result


def _ratio(clips: dict[str, Json], one: str, other: str) -> float:
    return float(clips[one]["median"] / clips[other]["median"])


def main() -> None:
    """Measure, print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and few frames: a rehearsal")
    parser.add_argument("--rounds", type=int, help="samples of every figure")
    parser.add_argument("--scratch", type=Path, help="folder for the files written")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    said = parser.parse_args()
    rounds = said.rounds or (2 if said.quick else 7)
    size, count, times = ((48, 64), 8, 2) if said.quick else ((720, 1280), 24, 8)
    with tempfile.TemporaryDirectory(dir=said.scratch) as scratch, asyncio.Runner() as runner:
        clip = clip_of(size, count, times, Path(scratch), runner)
        result = facts(torch.device("cpu")) | {
            "frames": {"raw past the cache": count * times, "others": count * times // 2},
            "size": size,
            "filesystem": filesystem(Path(scratch)),
            "load before": os.getloadavg(),
        }
        result |= measured(clip, rounds)
        result["load after"] = os.getloadavg()
    show("without decoding", result["clips"])
    for key, value in result.get("heartbeat", {}).items():
        print(f"  heartbeat while encoding: {key}: {value}")
    show_promises(result["promises"], quick=said.quick)
    if said.out:
        write(result, said.out)


if __name__ == "__main__":
    main()
