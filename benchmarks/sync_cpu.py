"""What it costs to have files on the disk: every policy of ``sync``, for each kind of file.

A clip of noise is written a chunk of eight pictures at a time, as a stream does it, and closed. The
files lie where ``--at`` says: the figures are of that disk, and of nothing else.

    python benchmarks/sync_cpu.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _measure import alternate, facts, filesystem, seconds, write

from streamvae import HostChunk, NpyFile, RawFile, StreamInfo, VideoFile
from streamvae.abc import Sink
from streamvae.sinks import Stills, ZarrArray
from streamvae.sinks._durable import Sync

RESULTS = Path(__file__).parent / "results"
POLICIES: tuple[Sync, ...] = ("none", "close", "commit")

KINDS: dict[str, Callable[[Path, Sync], Sink]] = {
    "raw": lambda at, sync: RawFile(at / "a.raw", sync=sync),
    "npy": lambda at, sync: NpyFile(at / "a.npy", sync=sync),
    "zarr": lambda at, sync: ZarrArray(at / "a.zarr", sync=sync),
    "mp4": lambda at, sync: VideoFile(at / "a.mp4", sync=sync),
    "png": lambda at, sync: Stills(at / "%05d.png", sync=sync),
}


def clip(count: int, height: int, width: int) -> list[HostChunk]:
    """Chunks of eight pictures; the same waves with some noise again and again."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    wave = 128 + 90 * np.sin(x / 50 + y / 70)[None, :, :, None]
    data = np.clip(wave + random.normal(0, 3, (8, height, width, 3)), 0, 255).astype(np.uint8)
    return [HostChunk(index, 8 * index, "video", data[None]) for index in range(count)]


def keep(
    make: Callable[[Path, Sync], Sink], at: Path, sync: Sync, chunks: list[HostChunk]
) -> float:
    """Seconds to keep the clip, what an earlier run left to write included in nobody's."""
    os.sync()
    place = Path(tempfile.mkdtemp(dir=at))

    async def stream() -> None:
        sink = make(place, sync)
        await sink.open(
            StreamInfo("clip", "video", "uint8", "exact", "none", "cpu", batch=1, fps=16.0)
        )
        for chunk in chunks:
            await sink.write(chunk)
        await sink.close()

    try:
        return seconds(lambda: asyncio.run(stream()))
    finally:
        shutil.rmtree(place)


def main() -> None:
    """Measure all kinds and policies, print medians, write the samples down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="480x832", help="height and width of a picture")
    parser.add_argument("--chunks", type=int, default=12, help="of eight pictures")
    parser.add_argument("--rounds", type=int, default=5, help="samples of every figure")
    parser.add_argument("--at", type=Path, default=Path.cwd(), help="where the files go")
    parser.add_argument("--out", type=Path, default=RESULTS / "sync_cpu.json", help="the JSON")
    said = parser.parse_args()
    height, width = map(int, said.size.split("x"))
    chunks = clip(said.chunks, height, width)
    rows = {}
    for name, make in KINDS.items():
        variants = {sync: partial(keep, make, said.at, sync, chunks) for sync in POLICIES}
        rows[name] = alternate(variants, said.rounds)
        took = [rows[name][sync]["median"] for sync in POLICIES]
        print(
            f"{name:5s}",
            *(f"{sync} {each:6.3f} s" for sync, each in zip(POLICIES, took, strict=True)),
            sep="   ",
            flush=True,
        )
    known = {"filesystem": filesystem(said.at), "size": said.size, "pictures": 8 * said.chunks}
    write(facts(torch.device("cpu")) | known | {"seconds": rows}, said.out)


if __name__ == "__main__":
    main()
