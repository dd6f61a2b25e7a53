"""Where a loop is running already, as in Jupyter: both ways work there.

In a notebook the body of `cells` is what you would write, `await` included.
"""

import asyncio

from streamvae import NpyFile, asave, collect
from streamvae.models import demo_latents


async def cells() -> None:
    """Stand in for the cells of a notebook, which run on Jupyter's own loop."""
    latents, _ = demo_latents()

    # On the notebook's loop: other cells' tasks go on meanwhile.
    stats = await asave(latents[:, :, :2], None, NpyFile("cell.npy", overwrite=True))
    print(f"awaited: {stats.frames} frames")

    # Without await: on a loop in a thread of its own, while this cell waits.
    frames = collect(latents[:, :, :2])
    print(f"called: {frames.shape}")


asyncio.run(cells())
