"""Frames in a notebook's cell while they are decoded: one picture that changes.

Paste `show` into a notebook and ``await show(stream_decode(latents, vae, fps=16))`` in a cell. Run
as a program it prints what a cell would show.
"""

import asyncio
import importlib.util

from streamvae import FrameStream, StreamStats, stream_decode
from streamvae.live import Broadcast
from streamvae.models import demo_latents

if importlib.util.find_spec("IPython"):
    from IPython.display import Image, display
else:

    class Image:
        """Stand in for IPython's."""

        def __init__(self, data: bytes) -> None:
            self.data = data

    class Handle:
        """Stand in for the place of a cell's output that can be written anew."""

        def update(self, image: Image) -> None:
            """Show another picture there."""
            print(f"    a picture of {len(image.data)} bytes in the same place")

    def display(image: Image, *, display_id: bool) -> Handle:  # noqa: ARG001
        """Show a picture below the cell."""
        print(f"    a picture of {len(image.data)} bytes")
        return Handle()


async def show(stream: FrameStream) -> StreamStats:
    """Show the frames of a stream as they come, and return its stats.

    The pictures go through the notebook's own connection. If that is slow some of them are left
    out, and neither the decode nor a sink waits for it.
    """
    async with Broadcast(stream) as broadcast:
        async with broadcast.packets("jpeg") as pictures:
            handle = None
            async for picture in pictures:
                image = Image(data=picture.data)
                if handle is None:
                    handle = display(image, display_id=True)
                else:
                    handle.update(image)
        await broadcast.finished()
    return broadcast.stats


async def main() -> None:
    """Stand in for a cell."""
    latents, fps = demo_latents()
    stats = await show(stream_decode(latents[:, :, :3], fps=fps))
    print(f"{stats.frames} frames. {stats.bottleneck}")


asyncio.run(main())
