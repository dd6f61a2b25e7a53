"""Sources of latents that are slow, stuck or failing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import torch


def tagged_latents(count: int, *, start: int = 0, batch: int = 1, size: int = 1) -> torch.Tensor:
    """Latents (batch, 1, count, size, size) for `TagCodec`: latent ``t`` holds ``start + t``."""
    values = torch.arange(start, start + count, dtype=torch.float32)
    return values.view(1, 1, -1, 1, 1).repeat(batch, 1, 1, size, size)


async def one_by_one(
    latents: torch.Tensor, *, seconds: float = 0.0, fail_at: int | None = None
) -> AsyncGenerator[torch.Tensor, None]:
    """Give latents one at a time, like a model that is still generating.

    Args:
        latents: (B, C, T, h, w).
        seconds: How long each one takes, in the loop's clock.
        fail_at: Raise RuntimeError in place of the latent of this index.
    """
    for step in range(latents.shape[2]):
        if seconds:
            await asyncio.sleep(seconds)
        if step == fail_at:
            raise RuntimeError(f"the source was to fail at latent {step}")
        yield latents[:, :, step : step + 1].clone()


async def stuck_after(latents: torch.Tensor) -> AsyncGenerator[torch.Tensor, None]:
    """Give ``latents`` one at a time, then nothing, without ever ending."""
    async for latent in one_by_one(latents):
        yield latent
    await asyncio.Event().wait()
