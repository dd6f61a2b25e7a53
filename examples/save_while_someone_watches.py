"""A job that saves its video while somebody watches: who watches, and how long, changes nothing.

The file and the viewer get the same frames of the same decode. The viewer comes when it has begun,
leaves before it is over, and misses frames if it is slow; the file has them all.
"""

import asyncio

from streamvae import VideoFile, stream_decode
from streamvae.live import Broadcast, DropOldest
from streamvae.models import demo_latents


async def look(broadcast: Broadcast) -> None:
    """Look at a few frames, slowly, and leave."""
    async with broadcast.frames(DropOldest(4)) as frames:
        async for frame in frames:
            print(f"    seen: frame {frame.index}, {broadcast.viewers} watching")
            await asyncio.sleep(0.05)
            if frame.index >= 8:
                break
        print(f"    left; missed {frames.dropped}")


async def main() -> None:
    """Decode to a file, and let somebody look."""
    latents, fps = demo_latents()
    sink = VideoFile("watched.mp4", overwrite=True)
    async with Broadcast(stream_decode(latents[:, :, :5], sinks=sink, fps=fps)) as broadcast:
        info = await broadcast.opened()
        print(f"{info.frames} frames of {info.width}x{info.height} to watched.mp4")
        viewer = asyncio.create_task(look(broadcast))
        await broadcast.finished()
        await viewer
    print(f"watched.mp4 has {broadcast.stats.frames} frames. {broadcast.stats.bottleneck}")


asyncio.run(main())
