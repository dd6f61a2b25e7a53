"""Latents that come one by one, as from a model that is still generating: frames follow at once."""

import asyncio
from collections.abc import AsyncIterator

import torch

from streamvae import stream_decode
from streamvae.models import demo_latents

latents, fps = demo_latents()


async def generate(count: int) -> AsyncIterator[torch.Tensor]:
    """Stand in for a model: one latent (1, C, 1, h, w) at a time."""
    for step in range(count):
        await asyncio.sleep(0.2)  # where yours would compute, in a thread or another process
        print(f"latent {step} generated")
        yield latents[:, :, step : step + 1]


async def main() -> None:
    """Decode each latent when it is there; the generator is closed with the stream."""
    async with stream_decode(generate(3), fps=fps) as stream:
        async for frame in stream:
            print(f"    frame {frame.index} for {frame.time:.2f} s")
        print(stream.stats.bottleneck)


asyncio.run(main())
