r"""Refine the embedded VAE's decoder, and the demo's latents with it, on the demo clip.

For a machine without a GPU: one latent at a time, exactly as the decoder walks, the caches carried
on from latent to latent (and cut off from the gradient there), one optimisation step for each. The
encoder stays as it is. Every third pass is over a training photograph, panned and zoomed, so that
the decoder goes on decoding other things::

    python tools/refine_default_vae.py --start run/vae.pt --weights run/refined.pt --passes 54
    python tools/train_default_vae.py export --weights run/refined.pt

What is kept is the moving average of the weights. ``--start`` is what either program wrote.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from default_vae_data import HEIGHT, TRAIN_PHOTOS, WIDTH, demo_clip, pan, read_photo, recoloured
from default_vae_model import build, encode
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

KEEP = 0.997  # of the moving average, at every step
PHOTO_FRAMES = 17
WARM_UP = 3  # passes


class Refiner:
    """Decoder weights, their moving average, the demo's latents and the optimiser.

    Args:
        start: Weights to start from, and latents if it has any.
        demo: The demo clip (1, 3, T, H, W).
        rate: Peak learning rate of the decoder; the latents' is ten times that.
    """

    def __init__(self, start: Path, demo: Tensor, rate: float) -> None:
        torch.manual_seed(0)
        saved = torch.load(start, map_location="cpu", weights_only=True)
        self.vae = build()
        self.vae.load_state_dict(saved.get("vae", saved))
        with torch.no_grad():
            latents = saved["latents"] if "latents" in saved else encode(self.vae, demo).mean
        self.latents = latents.float().clone().requires_grad_()
        self.decoder = [
            parameter
            for name, parameter in self.vae.named_parameters()
            if name.startswith(("decoder", "post_quant_conv")) and parameter.requires_grad
        ]
        self.average = [parameter.detach().clone() for parameter in self.decoder]
        self.rate = rate
        groups = [{"params": self.decoder}, {"params": [self.latents]}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0)

    def pass_over(self, latents: Tensor, clip: Tensor, part: float) -> float:
        """Go through ``clip`` once, at ``part`` of the peak rate; return the PSNR on the way."""
        for group, times in zip(self.optimizer.param_groups, (1, 10), strict=True):
            group["lr"] = self.rate * times * part
        cache: list[object] = [None] * self.vae._cached_conv_counts["decoder"]
        squared = 0.0
        for index in range(latents.shape[2]):
            frames = self._decode(latents[:, :, index : index + 1], cache, first=index == 0)
            first = max(0, 4 * index - 3)
            target = clip[:, :, first : 4 * index + 1]
            loss = ((frames - target) / 2).square().mean()
            self._step(loss)
            # In place: the decoder goes on with the very list.
            cache[:] = [one.detach() if isinstance(one, Tensor) else one for one in cache]
            squared += loss.item() * target.shape[2]
        return -10 * math.log10(squared / clip.shape[2])

    def _decode(self, latent: Tensor, cache: list[object], *, first: bool) -> Tensor:
        hidden = self.vae.post_quant_conv(latent)
        frames = self.vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=first)
        whole: Tensor = unpatchify(frames, self.vae.config.patch_size)
        return whole

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.decoder, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.decoder], 1 - KEEP)

    def save(self, path: Path) -> None:
        """Write the average's weights (float16) and the latents."""
        state = dict(self.vae.state_dict())
        names = {id(parameter): name for name, parameter in self.vae.named_parameters()}
        averages = zip(self.decoder, self.average, strict=True)
        state |= {names[id(parameter)]: average for parameter, average in averages}
        halves = {name: value.half().contiguous() for name, value in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"vae": halves, "latents": self.latents.detach().half()}, path)


def photograph(rng: np.random.Generator) -> Tensor:
    """Pan over a training photograph: (1, 3, 17, H, W)."""
    photo = read_photo(TRAIN_PHOTOS[rng.integers(len(TRAIN_PHOTOS))])
    zoom = rng.uniform(0.4, 1.0)
    start = rng.random(2)
    end = np.clip(start + rng.normal(0, 0.2, 2), 0, 1)
    clip = pan(
        photo,
        PHOTO_FRAMES,
        (HEIGHT, WIDTH),
        (zoom, min(1.0, zoom * rng.uniform(0.9, 1.1))),
        start=(start[0], start[1]),
        end=(end[0], end[1]),
    )
    return recoloured(clip, rng)[None]


def main() -> None:
    """Refine for ``--passes`` and write after every pass over the demo."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--start", type=Path, required=True, help="what train or this wrote")
    parser.add_argument("--weights", type=Path, required=True, help="written")
    parser.add_argument("--passes", type=int, default=54)
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    demo = demo_clip()
    refiner = Refiner(args.start, demo, args.rate)
    began = time.monotonic()
    for number in range(args.passes):
        fall = 0.5 * (1 + math.cos(math.pi * number / args.passes))
        part = min(1.0, (number + 0.3) / WARM_UP) * fall + 0.01
        if number % 3 == 2:
            clip = photograph(rng)
            with torch.no_grad():
                latents = encode(refiner.vae, clip).mean
            name, psnr = "photograph", refiner.pass_over(latents, clip, part)
        else:
            name, psnr = "demo", refiner.pass_over(refiner.latents, demo, part)
            refiner.save(args.weights)
        passed = time.monotonic() - began
        print(f"{passed:.0f} s  pass {number}  {name} {psnr:.2f} dB", flush=True)


if __name__ == "__main__":
    main()
