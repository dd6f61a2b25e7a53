"""Measure the VAE and the demo latents that are in the package, from the files as they ship.

Prints the PSNR of the demo clip (its stored latents decoded), of every held-out clip (encoded and
decoded), the speed of ``vae.decode`` at 256x448, whether streaming one latent at a time gives the
same bits, and the sizes of the files::

    python tools/evaluate_default_vae.py --threads 2 --pictures run/pictures

PSNR is over the whole clip, pictures in [0, 1], output clamped as ``vae.decode`` clamps it.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from default_vae_data import demo_clip, held_out_clips
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # also from a checkout that is not installed
from streamvae import collect
from streamvae.models import DEFAULT_VAE, DEMO_LATENTS, default_vae, demo_latents

LENGTHS = (1, 2, 3, 9)  # latents: the walk differs in its first, second and later steps


def psnr(output: Tensor, target: Tensor) -> float:
    """Return the PSNR in dB of pictures in [-1, 1]."""
    return float(-10 * ((output - target) / 2).square().mean().log10())


def speed(vae: AutoencoderKLWan, latents: Tensor, rounds: int) -> list[float]:
    """Return the frames per second of each round of ``vae.decode``, after a short warm-up."""
    vae.decode(latents[:, :, :2])
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        frames = vae.decode(latents).sample.shape[2]
        rates.append(frames / (time.perf_counter() - began))
    return rates


def save_pictures(folder: Path, name: str, output: Tensor, target: Tensor) -> None:
    """Write first, middle and last frame: the original above what the VAE made of it."""
    last = output.shape[2] - 1
    pair = torch.cat([target, output], 3)[0, :, [0, last // 2, last]]
    sheet = pair.permute(2, 1, 3, 0).flatten(1, 2)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = ((sheet + 1) * 127.5).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(folder / f"{name}.png")


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the embedded default VAE.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="timed decodes of the demo clip")
    parser.add_argument("--pictures", type=Path, help="folder for frames to look at")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vae = default_vae()
    latents, _ = demo_latents()

    clips = {"demo": (vae.decode(latents).sample, demo_clip())}
    for name, clip in held_out_clips().items():
        clips[f"held-out {name}"] = (vae.decode(vae.encode(clip).latent_dist.mean).sample, clip)
    for name, (output, target) in clips.items():
        print(f"PSNR {name}: {psnr(output, target):.2f} dB over {output.shape[2]} frames")
        if args.pictures:
            save_pictures(args.pictures, name.replace(" ", "-"), output, target)

    for count in LENGTHS:
        part = latents[:, :, :count]
        streamed = collect(part, vae, output="float32")
        whole = vae.decode(part).sample.permute(0, 2, 3, 4, 1)
        same = torch.equal(torch.as_tensor(streamed), whole)
        print(f"streamed {count} latents: {'same bits' if same else 'DIFFERENT'}")
    rates = ", ".join(f"{rate:.1f}" for rate in speed(vae, latents, args.rounds))
    print(f"vae.decode 256x448 float32, {args.threads} threads: {rates} frames/s")
    for file in (*sorted(DEFAULT_VAE.iterdir()), DEMO_LATENTS):
        print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
