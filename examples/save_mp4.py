"""Latents to an MP4 and a numpy file at once; run it anywhere: ``python examples/save_mp4.py``."""

import asyncio

from streamvae import NpyFile, VideoFile, stream_decode
from streamvae.models import demo_latents


async def main() -> None:
    """Decode the first latents of the embedded clip into two files, side by side."""
    latents, fps = demo_latents()
    sinks = [VideoFile("out.mp4", crf=16, overwrite=True), NpyFile("out.npy", overwrite=True)]
    async with stream_decode(latents[:, :, :2], sinks=sinks, fps=fps) as stream:
        info = stream.info
        print(f"{info.frames} frames of {info.width}x{info.height} by {info.family}")
        stats = await stream.finish()
    print(f"out.mp4 and out.npy after {stats.total:.1f} s. {stats.bottleneck}")


asyncio.run(main())
