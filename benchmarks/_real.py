"""Pictures of a real scene, in any size and number: the demo clip that streamvae ships."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from streamvae.models import demo_latents
from streamvae.report._bench_clip import pictures as demo_pictures

#: Height and width of a rehearsal's latents.
CORNER = 8


def latents(steps: int, *, quick: bool) -> torch.Tensor:
    """Give the first ``steps`` latents of the demo clip; a corner of them for a rehearsal."""
    whole, _ = demo_latents()
    return whole[:, :, :steps, :CORNER, :CORNER] if quick else whole[:, :, :steps]


def pictures(count: int, height: int, width: int, *, quick: bool) -> npt.NDArray[np.uint8]:
    """Give ``count`` frames (count, height, width, 3), uint8: the clip to and fro, resized."""
    return demo_pictures(count, height, width, latents=2 if quick else None)
