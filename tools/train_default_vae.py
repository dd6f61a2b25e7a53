"""
Train the embedded default VAE and export it, with the demo latents, into the package.

Two steps, both resumable and repeatable (every step draws its crops from its own seed)::

    python tools/train_default_vae.py train --checkpoint run/vae.pt --steps 6000
    python tools/train_default_vae.py export --checkpoint run/vae.pt

On a GPU, with larger crops and batches::

    python tools/train_default_vae.py train --checkpoint run/vae.pt --device cuda \\
        --steps 40000 --batch 16 --crop 192

The learning rate warms up, stays, and falls linearly to nothing over the last ``--decay`` part
of ``--steps``. A run that was stopped goes on from its checkpoint, also with other ``--steps``,
which is how a run is brought to its end early. What is exported is the moving average.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from default_vae_data import FPS, HEIGHT, WIDTH, TrainingSet, demo_clip, pan
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from torch import Tensor

MODELS = Path(__file__).parents[1] / "streamvae" / "models"

#: Wan 2.2 in miniature: 4x4 pixels are folded into channels, two levels halve space and time.
#: 64 channels at 64x112 keep a 256x448 decode on the fast convolutions of a two-core CPU.
CONFIG: dict[str, Any] = {
    "base_dim": 48,
    "decoder_base_dim": 64,
    "z_dim": 64,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "in_channels": 48,
    "out_channels": 48,
    "patch_size": 4,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 64,
    "latents_std": [1.0] * 64,
}
FRAMES = 9  # three latents: the first, the second and a steady one all walk differently
WARM_UP = 100
AVERAGE = 0.998


def build() -> AutoencoderKLWan:
    """Return an untrained VAE whose posterior starts narrow."""
    vae = AutoencoderKLWan(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = -8
    return vae


def encode(vae: AutoencoderKLWan, video: Tensor) -> DiagonalGaussianDistribution:
    """Encode (B, 3, 4(T-1)+1, H, W) in the causal walk: the first frame, then all others."""
    x = patchify(video, vae.config.patch_size)
    cache = [None] * vae._cached_conv_counts["encoder"]
    parts = [vae.encoder(c, feat_cache=cache, feat_idx=[0]) for c in _first_and_rest(x)]
    return DiagonalGaussianDistribution(vae.quant_conv(torch.cat(parts, 2)))


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode as ``vae.decode`` does, but leave out the clamp, which has no gradient outside."""
    z = vae.post_quant_conv(latents)
    cache = [None] * vae._cached_conv_counts["decoder"]
    parts = [
        vae.decoder(c, feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
        for i, c in enumerate(_first_and_rest(z))
    ]
    return unpatchify(torch.cat(parts, 2), vae.config.patch_size)


def _first_and_rest(x: Tensor) -> list[Tensor]:
    """Split off the first frame: what follows may be walked in one go, to rounding."""
    return [part for part in (x[:, :, :1], x[:, :, 1:]) if part.shape[2]]


def loss_of(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return the training loss and the mean squared error of one batch."""
    posterior = encode(vae, video)
    output = decode(vae, posterior.sample()).float()
    squared = F.mse_loss(output, video)
    variance, mean = posterior.var.float(), posterior.mean.float()
    divergence = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
    return 5 * squared + 0.5 * F.l1_loss(output, video) + 1e-4 * divergence, squared.detach()


def rate(step: int, steps: int, decay: float) -> float:
    """Return the part of the peak learning rate used at ``step``."""
    left = (steps - step) / max(1, decay * steps)
    return min((step + 1) / WARM_UP, 1.0, left)


def train(args: argparse.Namespace) -> None:
    """Train until ``--steps``, resuming from the checkpoint when there is one."""
    torch.manual_seed(args.seed)
    vae = build().to(args.device).train()
    average = copy.deepcopy(vae).eval().requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99))
    optimizer.param_groups[0]["weight_decay"] = 1e-3
    done, seconds = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=args.device, weights_only=True)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds = state["step"], state["seconds"]
    data = TrainingSet.load()
    began, recent = time.monotonic(), []
    for step in range(done, args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * rate(step, args.steps, args.decay)
        recent.append(_step(vae, average, optimizer, data, args, step))
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            total = seconds + time.monotonic() - began
            psnr = -10 * float(torch.stack(recent).mean().log10()) + 6.02
            print(f"step {step + 1}  {total:.0f} s  training PSNR {psnr:.2f} dB", flush=True)
            recent.clear()
            _save(args.checkpoint, vae, average, optimizer, step + 1, total)


def _step(
    vae: AutoencoderKLWan,
    average: AutoencoderKLWan,
    optimizer: torch.optim.Optimizer,
    data: TrainingSet,
    args: argparse.Namespace,
    step: int,
) -> Tensor:
    """Do one step and return its mean squared error."""
    torch.manual_seed(args.seed + step)
    rng = np.random.default_rng((args.seed, step))
    video = data.batch(args.batch, FRAMES, args.crop, rng).to(args.device)
    with torch.autocast(args.device, torch.bfloat16):
        loss, squared = loss_of(vae, video)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    weight = 1 - min(AVERAGE, (step + 1) / (step + 10))
    with torch.no_grad():
        for kept, current in zip(average.parameters(), vae.parameters(), strict=True):
            kept.lerp_(current, weight)
    return squared


def _save(
    path: Path,
    vae: AutoencoderKLWan,
    average: AutoencoderKLWan,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Write a checkpoint in one piece, so that a run killed meanwhile keeps the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"vae": vae.state_dict(), "average": average.state_dict(), "step": step}
    state |= {"optimizer": optimizer.state_dict(), "seconds": seconds}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write weights (float16), config with measured latent statistics, and the demo latents."""
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    weights = {name: value.half().contiguous() for name, value in state["average"].items()}
    vae = build().eval()
    vae.load_state_dict({name: value.float() for name, value in weights.items()})
    demo = encode(vae, demo_clip()).mean
    samples = [demo, *(encode(vae, clip).mean for clip in _photo_clips())]
    values = torch.cat([sample.transpose(0, 1).flatten(1) for sample in samples], 1)
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in values.mean(1).tolist()],
        latents_std=[round(value, 4) for value in values.std(1).tolist()],
    )
    folder = args.output / "default_vae"
    vae.save_config(folder)
    save_file(
        weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"}
    )
    facts = {
        "fps": str(FPS),
        "source": "Big Buck Bunny, (c) Blender Foundation, www.bigbuckbunny.org",
        "licence": "CC BY 3.0",
        "space": "decode-ready: vae.decode(latents) is the clip",
    }
    save_file({"latents": demo.half()}, args.output / "demo_latents.safetensors", metadata=facts)
    print(f"exported step {state['step']} after {state['seconds']:.0f} s of training")


def _photo_clips() -> list[Tensor]:
    """Return one panned clip of each training photograph, (1, 3, 9, 256, 448)."""
    photos = TrainingSet.load().photos
    return [pan(photo, FRAMES, (HEIGHT, WIDTH), (1.0, 0.9))[None] for photo in photos]


def main() -> None:
    """Parse the command line and run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=MODELS, help="where export writes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--decay", type=float, default=0.3, help="part of the steps that cools")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128, help="pixels, a multiple of 16")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    {"train": train, "export": export}[args.command](args)


if __name__ == "__main__":
    main()
