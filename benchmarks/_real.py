"""Pictures of a real scene, in any size and number: the demo clip that streamvae ships."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt
import torch

from streamvae import stream_decode
from streamvae.models import demo_latents

#: Height and width of a rehearsal's latents.
CORNER = 8


def latents(steps: int, *, quick: bool) -> torch.Tensor:
    """Give the first ``steps`` latents of the demo clip; a corner of them for a rehearsal."""
    whole, _ = demo_latents()
    return whole[:, :, :steps, :CORNER, :CORNER] if quick else whole[:, :, :steps]


def pictures(count: int, height: int, width: int, *, quick: bool) -> npt.NDArray[np.uint8]:
    """Give ``count`` frames (count, height, width, 3), uint8: the clip to and fro, resized."""
    clip = asyncio.run(_decoded(latents(2 if quick else count, quick=quick)))
    way = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    made = np.empty((count, height, width, 3), np.uint8)
    for index in range(min(count, len(way))):
        picture = torch.from_numpy(clip[way[index]]).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(picture, (height, width), mode="bicubic")
        made[index] = resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    for index in range(len(way), count):
        made[index] = made[index - len(way)]
    return made


async def _decoded(z: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.asarray(await stream_decode(z).collect(), np.uint8)[0]
