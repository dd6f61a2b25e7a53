"""Sinks of one's own: an async callable, and blocking code on a thread of its own."""

import asyncio
from pathlib import Path

import numpy as np

from streamvae import HostChunk, StreamInfo, stream_decode
from streamvae.models import demo_latents
from streamvae.sinks import ThreadSink


class Stills(ThreadSink):
    """A folder with every so manyth frame as a PNG. Its methods may block: a thread calls them."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(f"stills in {folder}")
        self.folder = folder
        self.every = every

    def start(self, info: StreamInfo) -> None:
        """Get ready, before anything is decoded; raising here refuses the stream."""
        if info.kind == "sound":
            raise ValueError("expected pictures, got sound")
        self.folder.mkdir(exist_ok=True)

    def put(self, chunk: HostChunk) -> None:
        """Keep a chunk. While this runs the next chunks are decoded and downloaded."""
        for frame in chunk.frames(rate=None):
            if frame.index % self.every == 0:
                frame.to_pil().save(self.folder / f"{frame.index:04}.png")


async def main() -> None:
    """Keep stills, and a curve of the brightness."""
    curve: list[float] = []

    async def brightness(chunk: HostChunk) -> None:
        means = await asyncio.to_thread(np.mean, chunk.data, axis=(0, 2, 3, 4))
        curve.extend(means.tolist())

    latents, fps = demo_latents()
    sinks = [Stills(Path("stills"), every=2), brightness]
    async with stream_decode(latents[:, :, :2], sinks=sinks, fps=fps) as stream:
        await stream.finish()
    print("in stills: 0000.png and every other frame; brightness", np.round(curve, 1))


asyncio.run(main())
