r"""Train a decoder of Wan 2.1's released widths on the scene that streamvae ships, in minutes.

Precision is to be measured on trained weights too, and there are none of those widths that may be
shipped. So a fresh `AutoencoderKLWan` as diffusers builds it learns to decode the demo clip from
the embedded VAE's latents, folded from 64 channels of 16x16 pixels to 16 channels of 8x8: random
crops and lengths, mean squared and absolute error, AdamW, learning rates along a cosine, layers in
bfloat16 on CUDA. What comes out knows that scene and nothing else, which is enough: its weights
and activations are spread as training spreads them. Nothing is downloaded::

    python tools/train_wide_decoder.py --minutes 3 --device cuda
    python tools/train_wide_decoder.py --minutes 3 --device cuda --weights run/wide.pt

``benchmarks/precision_h200.py --trained-minutes 3`` calls `train` in its own process.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from default_vae_model import decode, halved
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional

from streamvae.models import default_vae, demo_latents

#: The embedded VAE's latents have 64 channels and a place for 16x16 pixels: four of ours each.
FOLD = 2
#: Of the time, in which the learning rate rises.
WARM_UP = 0.03
#: A rehearsal: the same layers, a fifteenth of the width.
SMALL: dict[str, Any] = {"base_dim": 8, "num_res_blocks": 1}


@dataclass(frozen=True)
class Scene:
    """What is learnt: latents (1, 16, T, 2h, 2w) and their frames (1, 3, 4(T-1)+1, 16h, 16w)."""

    latents: Tensor
    frames: Tensor

    @classmethod
    @torch.no_grad()
    def load(cls, device: torch.device, *, quick: bool = False) -> Scene:
        """Decode the demo clip.

        Args:
            device: Where to.
            quick: Only a corner, and its first frames.
        """
        latents, places = (3, 4) if quick else (17, 28)
        given, _ = demo_latents()
        given = given[:, :, :latents, :places, :places].to(device)
        frames = default_vae().to(device).decode(given).sample
        return cls(fold(given), frames)

    def crop(self, rng: np.random.Generator, steps: int, places: int) -> tuple[Tensor, Tensor]:
        """A crop of latents that begins with the clip, and its frames.

        It begins there since the first latent is one frame, of which there is no other.
        """
        height, width = self.latents.shape[3:]
        high, wide = min(places, height), min(places, width)
        y = int(rng.integers(height - high + 1))
        x = int(rng.integers(width - wide + 1))
        latents = self.latents[:, :, :steps, y : y + high, x : x + wide]
        frames = self.frames[:, :, : 4 * steps - 3]
        return latents, frames[..., 8 * y : 8 * (y + high), 8 * x : 8 * (x + wide)]


def fold(latents: Tensor) -> Tensor:
    """Turn (B, 64, T, h, w) into (B, 16, T, 2h, 2w): four channels for each place are four places.

    Also normalise them: the released ones are near to a standard normal distribution.
    """
    steps = latents.transpose(1, 2).flatten(0, 1)
    folded = functional.pixel_shuffle(steps, FOLD)
    whole = folded.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)
    mean = whole.mean((0, 2, 3, 4), keepdim=True)
    return (whole - mean) / whole.std((0, 2, 3, 4), keepdim=True)


def extended(latents: Tensor, steps: int, height: int, width: int) -> Tensor:
    """More of the same scene: latents to and fro in time, mirrored at every edge.

    Args:
        latents: (B, C, T, h, w).
        steps: T of the result; the other two are its h and w.
        height: See there.
        width: See there.
    """
    for axis, length in ((2, steps), (3, height), (4, width)):
        there = latents.shape[axis]
        way = [*range(there), *range(there - 2, 0, -1)]
        index = torch.tensor([way[place % len(way)] for place in range(length)])
        latents = latents.index_select(axis, index.to(latents.device))
    return latents


def build(*, quick: bool) -> AutoencoderKLWan:
    """Wan 2.1's autoencoder, drawn from seed 0, in train mode, of which the decoder is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(**(SMALL if quick else {})).train()
    vae.encoder.requires_grad_(requires_grad=False)
    vae.quant_conv.requires_grad_(requires_grad=False)
    return vae


def train(
    scene: Scene,
    *,
    minutes: float,
    quick: bool = False,
    rate: float = 4e-4,
    told: float = 10.0,
) -> AutoencoderKLWan:
    """Train, and give the autoencoder in float32, in eval mode, without gradients.

    Args:
        scene: What to learn; training runs where it is.
        minutes: For how long.
        quick: A rehearsal: two steps at most, with few channels and small crops.
        rate: Peak learning rate.
        told: Seconds from one line of progress to the next.

    Raises:
        FloatingPointError: It has come to nothing.
    """
    device = scene.latents.device
    batch, places, steps = (1, 4, 2) if quick else (4, 16, None)
    vae = build(quick=quick).to(device)
    weights = [one for one in vae.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=1e-4)
    rng, squared = np.random.default_rng(0), None
    began = last = time.monotonic()
    number = 0
    while (done := (time.monotonic() - began) / (60 * minutes)) < 1 and number != steps:
        share = done if steps is None else number / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(share)
        # Attention over small crops alone would not hold on a whole picture.
        size = (1, 2 * places) if number % 4 == 3 else (batch, places)
        found = _step(vae, optimizer, scene, rng, size)
        squared = found if squared is None else squared.lerp_(found, 0.05)
        number += 1
        if device.type == "cuda":  # or the host would be far ahead when the time is over
            torch.cuda.synchronize(device)
        if time.monotonic() - last > told:
            last = time.monotonic()
            print(f"{last - began:.0f} s  step {number}  PSNR {decibels(squared)} dB", flush=True)
    if not all(bool(one.isfinite().all()) for one in weights):
        raise FloatingPointError("expected finite weights, got others; try a lower rate")
    reached = "" if squared is None else f"  PSNR {decibels(squared)} dB"
    print(f"{number} steps in {time.monotonic() - began:.0f} s{reached}", flush=True)
    return vae.eval().requires_grad_(requires_grad=False)


def _step(
    vae: AutoencoderKLWan,
    optimizer: torch.optim.Optimizer,
    scene: Scene,
    rng: np.random.Generator,
    size: tuple[int, int],
) -> Tensor:
    """One step over crops of one length; returns the mean squared error."""
    batch, places = size
    # Two at least: then the walks of a first, a second and a steady chunk are all there.
    steps = min(int(rng.integers(2, 6)), scene.latents.shape[2])
    crops = [scene.crop(rng, steps, places) for _ in range(batch)]
    latents, frames = (torch.cat(parts) for parts in zip(*crops, strict=True))
    with halved(latents.device.type):
        output = decode(vae, latents)
    output = output.float()
    squared = functional.mse_loss(output, frames)
    absolute = functional.l1_loss(output, frames)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(5 * squared + 0.1 * absolute)
    weights = [one for group in optimizer.param_groups for one in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
    optimizer.step()
    return squared.detach()


def factor(done: float) -> float:
    """The part of the peak learning rate when ``done`` of the time has passed."""
    return min(done / WARM_UP, 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))) + 1e-3


def decibels(squared: Tensor) -> float:
    """PSNR of a mean squared error of pictures in [-1, 1]."""
    return round(-10 * math.log10(float(squared) / 4), 2)


@torch.no_grad()
def evaluate(vae: AutoencoderKLWan, scene: Scene) -> float:
    """PSNR of the whole clip, decoded at once, in dB."""
    return decibels((vae.decode(scene.latents).sample - scene.frames).square().mean())


def main() -> None:
    """Parse the command line, train, and say how well it decodes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", type=Path, help="written there; by default nowhere")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: two steps, few channels")
    said = parser.parse_args()
    scene = Scene.load(torch.device(said.device), quick=said.quick)
    vae = train(scene, minutes=said.minutes, quick=said.quick)
    print(f"the whole clip: PSNR {evaluate(vae, scene)} dB")
    if said.weights is not None:
        said.weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vae.state_dict(), said.weights)


if __name__ == "__main__":
    main()
