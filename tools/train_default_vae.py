r"""Train the embedded default VAE and export it, with the demo latents, into the package.

Crops first, then whole pictures and clips as long as the demo: what was trained on crops and short
clips alone falls apart on anything larger or longer, since the convolutions reach to the border
and far into the past, and the padding there is all they have seen::

    python tools/train_default_vae.py train --device cuda --seconds 330 --weights run/crops.pt
    python tools/train_default_vae.py train --device cuda --seconds 270 --weights run/vae.pt \
        --start run/crops.pt --clips 2x33x256x448 1x97x256x448
    python tools/train_default_vae.py export --weights run/vae.pt

`refine_default_vae.py` goes on from there, without a GPU. Training stops when its time is over; the
learning rate rises for a fiftieth of it and falls along a cosine. On CUDA a step is replayed as one
graph. What is kept is the moving average of the weights.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from default_vae_data import FPS, HEIGHT, WIDTH, TrainingSet, demo_clip, pan
from default_vae_model import build, decode, encode
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

MODELS = Path(__file__).parents[1] / "streamvae" / "models"
WARM_UP = 0.02  # part of the time


class Trainer:
    """Weights, their moving average and the optimiser.

    Args:
        weights: where to start from, None for a fresh start.
        rate: peak learning rate.
        device: cpu or cuda.
        keep: how much of the moving average a step keeps.
        absolute: weight of the mean absolute error beside five times the mean squared one.
    """

    def __init__(
        self, weights: Path | None, rate: float, device: str, *, keep: float, absolute: float
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.keep = keep
        self.absolute = absolute
        self.vae = build().to(device).train()
        if weights is not None:
            self.vae.load_state_dict(torch.load(weights, weights_only=True))
        self.average = copy.deepcopy(self.vae).requires_grad_(requires_grad=False)
        self.rate = torch.tensor(rate, device=device)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.vae.parameters() if p.requires_grad],
            lr=self.rate,
            betas=(0.9, 0.98),
            weight_decay=1e-4,
            capturable=device != "cpu",
        )
        self.pairs = (list(self.average.parameters()), list(self.vae.parameters()))


class Step:
    """One optimisation step over a batch that lies always in the same memory."""

    def __init__(self, trainer: Trainer, shape: tuple[int, ...]) -> None:
        self.trainer = trainer
        self.video = torch.zeros(shape, device=trainer.device)
        self.squared = torch.ones((), device=trainer.device)

    def __call__(self) -> None:
        """Do one step."""
        trainer = self.trainer
        with torch.autocast(trainer.device, torch.bfloat16, cache_enabled=False):
            posterior = encode(trainer.vae, self.video)
            output = decode(trainer.vae, posterior.sample()).float()
        squared = functional.mse_loss(output, self.video)
        absolute = functional.l1_loss(output, self.video)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        trainer.optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(5 * squared + trainer.absolute * absolute + 1e-6 * divergence)
        torch.nn.utils.clip_grad_norm_(trainer.pairs[1], 1.0, foreach=True)
        trainer.optimizer.step()
        average, current = trainer.pairs
        torch._foreach_lerp_(average, [p.detach() for p in current], 1 - trainer.keep)
        self.squared.lerp_(squared.detach(), 0.05)

    def replayed(self) -> Callable[[], object]:
        """Return the step as a CUDA graph: one launch instead of some thousands."""
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay


def factor(done: float) -> float:
    """Return the part of the peak learning rate used when ``done`` of the time has passed."""
    return min(done / WARM_UP, 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))) + 1e-4


def train(args: argparse.Namespace) -> None:
    """Train for ``--seconds`` and write the moving average."""
    data = TrainingSet.load().to(args.device)
    trainer = Trainer(
        args.start, args.rate * 0.01, args.device, keep=args.keep, absolute=args.absolute
    )
    rng = np.random.default_rng(0)
    steps = []
    for clip in args.clips:
        count, frames, height, width = map(int, clip.split("x"))
        step = Step(trainer, (count, 3, frames, height, width))
        step.video.copy_(data.batch(count, frames, (height, width), rng))
        steps.append((step, step if args.device == "cpu" else step.replayed()))
    began = last = time.monotonic()
    done = 0
    while (passed := time.monotonic() - began) < args.seconds:
        trainer.rate.fill_(args.rate * factor(passed / args.seconds))
        step, run = steps[done % len(steps)]
        count, _, frames, height, width = step.video.shape
        step.video.copy_(data.batch(count, frames, (height, width), rng))
        run()
        done += 1
        if time.monotonic() - last > 10:
            last = time.monotonic()
            psnr = [round(-10 * math.log10(float(step.squared) / 4), 2) for step, _ in steps]
            print(f"{passed:.0f} s  step {done}  training PSNR {psnr} dB", flush=True)
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    weights = trainer.average.state_dict().items()
    torch.save({name: value.half().cpu().contiguous() for name, value in weights}, args.weights)
    print(f"{done} steps in {args.seconds:.0f} s", flush=True)


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write weights (float16), config with measured latent statistics, and the demo latents."""
    saved = torch.load(args.weights, map_location="cpu", weights_only=True)
    weights = saved.get("vae", saved)
    vae = build().eval()
    vae.load_state_dict(weights)
    # Refined latents decode better than those that the encoder gives.
    demo = saved["latents"].float() if "latents" in saved else encode(vae, demo_clip()).mean
    photos = TrainingSet.load().photos
    clips = [pan(photo, 33, (HEIGHT, WIDTH), (1.0, 0.9))[None] for photo in photos]
    samples = [demo, *(encode(vae, clip).mean for clip in clips)]
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


def _write(tensors: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """Write safetensors that everybody may read."""
    save_file(tensors, path, metadata=facts)
    path.chmod(0o644)


def main() -> None:
    """Parse the command line and run one of the two commands."""
    parser = argparse.ArgumentParser(description="Train and export the embedded default VAE.")
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--weights", type=Path, required=True, help="written, or exported")
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--output", type=Path, default=MODELS, help="where export writes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument(
        "--clips", nargs="+", default=["16x13x128x128"], help="batch x frames x height x width"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--keep", type=float, default=0.997, help="of the moving average")
    parser.add_argument("--absolute", type=float, default=0.1, help="weight of the L1 error")
    args = parser.parse_args()
    {"train": train, "export": export}[args.command](args)


if __name__ == "__main__":
    main()
