r"""Train the embedded default VAE and export it, with the demo latents, into the package.

Two steps, both resumable and repeatable (every step draws its crops from its own seed)::

    python tools/train_default_vae.py train --checkpoint run/vae.pt --steps 2200
    python tools/train_default_vae.py export --checkpoint run/vae.pt

On a GPU, with longer clips, larger crops and batches::

    python tools/train_default_vae.py train --checkpoint run/vae.pt --device cuda \
        --steps 40000 --batch 16 --crop 192

Clips must be longer than a few latents. What was trained on 9 frames fell apart after the third
latent: convolutions reach far into the past, and had never seen one.

The learning rate warms up, stays, and falls linearly to nothing over the last ``--decay`` part
of ``--steps``. A run that was stopped goes on from its checkpoint, also with other ``--steps``,
which is how a run is brought to its end early. What is exported is the moving average.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from default_vae_data import FPS, HEIGHT, WIDTH, TrainingSet, demo_clip, pan
from default_vae_model import build, bypass, decode, encode
from default_vae_optim import Muon
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

MODELS = Path(__file__).parents[1] / "streamvae" / "models"
WARM_UP = 100
AVERAGE = 0.998


def loss_of(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return the training loss and the mean squared error of one batch."""
    posterior = encode(vae, video)
    output = decode(vae, posterior.sample()).float()
    squared = functional.mse_loss(output, video)
    absolute = functional.l1_loss(output, video)
    variance, mean = posterior.var.float(), posterior.mean.float()
    divergence = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
    return 5 * squared + 0.5 * absolute + 1e-4 * divergence, squared.detach()


def rate(step: int, steps: int, decay: float) -> float:
    """Return the part of the peak learning rate used at ``step``."""
    left = (steps - step) / max(1, decay * steps)
    return min((step + 1) / WARM_UP, 1.0, left)


class Run:
    """One training run: weights, their moving average, the optimizer, and how far it got."""

    def __init__(self, checkpoint: Path, device: str, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.path, self.device, self.seed = checkpoint, device, seed
        self.vae = build().to(device).train()
        self.average = copy.deepcopy(self.vae).eval().requires_grad_(requires_grad=False)
        trained = [p for p in self.vae.parameters() if p.requires_grad]
        self.optimizer = Muon(trained, learning_rate)
        self.done, self.seconds = 0, 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            self.vae.load_state_dict(state["vae"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done, self.seconds = state["step"], state["seconds"]

    def step(self, video: Tensor, factor: float) -> Tensor:
        """Do one step at ``factor`` of the learning rate; return its mean squared error."""
        torch.manual_seed(self.seed + self.done)
        for group in self.optimizer.param_groups:
            group["factor"] = factor
        with torch.autocast(self.device, torch.bfloat16):
            loss, squared = loss_of(self.vae, video)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        weight = 1 - min(AVERAGE, (self.done + 1) / (self.done + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.vae.parameters(), strict=True)
            for kept, current in pairs:
                kept.lerp_(current, weight)
        self.done += 1
        return squared

    def save(self) -> None:
        """Write the checkpoint in one piece, so that a run killed meanwhile keeps the last one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "vae": self.vae.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.done,
            "seconds": self.seconds,
        }
        new = self.path.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.path)


def train(args: argparse.Namespace) -> None:
    """Train until ``--steps``, resuming from the checkpoint when there is one."""
    run = Run(args.checkpoint, args.device, args.lr, args.seed)
    data = TrainingSet.load()
    errors: list[Tensor] = []
    while run.done < args.steps:
        began = time.monotonic()
        bypass(run.vae, on=run.done < args.bypass)
        rng = np.random.default_rng((args.seed, run.done))
        video = data.batch(args.batch, args.frames, args.crop, rng).to(args.device)
        errors.append(run.step(video, rate(run.done, args.steps, args.decay)))
        run.seconds += time.monotonic() - began
        if run.done % args.every == 0 or run.done == args.steps:
            psnr = -10 * float((torch.stack(errors).mean() / 4).log10())
            print(f"step {run.done}  {run.seconds:.0f} s  training PSNR {psnr:.2f} dB", flush=True)
            errors.clear()
            run.save()


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write weights (float16), config with measured latent statistics, and the demo latents."""
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    weights = {name: value.half().contiguous() for name, value in state["average"].items()}
    vae = build().eval()
    vae.load_state_dict(weights)
    demo = encode(vae, demo_clip()).mean
    samples = [demo, *(encode(vae, clip).mean for clip in _photo_clips())]
    values = torch.cat([sample.transpose(0, 1).flatten(1) for sample in samples], 1)
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in values.mean(1).tolist()],
        latents_std=[round(value, 4) for value in values.std(1).tolist()],
    )
    folder = args.output / "default_vae"
    vae.save_config(folder)
    facts = {
        "fps": str(FPS),
        "source": "Big Buck Bunny, (c) Blender Foundation, www.bigbuckbunny.org",
        "licence": "CC BY 3.0",
        "space": "decode-ready: vae.decode(latents) is the clip",
    }
    _write(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    _write({"latents": demo.half()}, args.output / "demo_latents.safetensors", facts)
    print(f"exported step {state['step']} after {state['seconds']:.0f} s of training")


def _write(tensors: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """Write safetensors that everybody may read."""
    save_file(tensors, path, metadata=facts)
    path.chmod(0o644)


def _photo_clips() -> Iterator[Tensor]:
    """Yield one panned clip of each training photograph, (1, 3, 33, 256, 448)."""
    for photo in TrainingSet.load().photos:
        yield pan(photo, 33, (HEIGHT, WIDTH), (1.0, 0.9))[None]


def main() -> None:
    """Parse the command line and run one of the two commands."""
    parser = argparse.ArgumentParser(description="Train and export the embedded default VAE.")
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=MODELS, help="where export writes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--decay", type=float, default=0.3, help="part of the steps that cools")
    parser.add_argument("--bypass", type=int, default=1200, help="first steps without blocks")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--crop", type=int, default=64, help="pixels, a multiple of 8")
    parser.add_argument("--frames", type=int, default=33, help="4(T-1)+1 for T latents")
    parser.add_argument("--lr", type=float, default=0.02, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    {"train": train, "export": export}[args.command](args)


if __name__ == "__main__":
    main()
