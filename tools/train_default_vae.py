r"""Train the embedded default VAE and export it, with the demo latents, into the package.

Crops first, then whole pictures and clips as long as the demo: what was trained on crops and short
clips alone falls apart on anything larger or longer, since the convolutions reach to the border
and far into the past, and the padding there is all they have seen::

    python tools/train_default_vae.py train --device cuda --seconds 330 --weights run/crops.pt
    python tools/train_default_vae.py train --device cuda --seconds 270 --weights run/vae.pt \
        --start run/crops.pt --clips 2x33x256x448 1x97x256x448
    python tools/train_default_vae.py train --device cuda --seconds 300 --weights run/demo.pt \
        --start run/vae.pt --clips 2x33x256x448 1x97x256x448 --demo 1 --photos 0.5 --rate 6e-4
    python tools/train_default_vae.py export --weights run/demo.pt

The last run also decodes the demo clip from latents of its own, ``--demo`` times after every step,
and trains them with the decoder (`default_vae_demo.py`); `refine_default_vae.py` does without a
GPU. Training stops when its time is over; the learning rates rise for a fiftieth of it and fall
along a cosine. On CUDA a step is replayed as one graph. What is kept is the moving average of the
weights; it is written now and then, and measured then as it would ship.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from default_vae_data import (
    FPS,
    HEIGHT,
    WIDTH,
    TrainingSet,
    demo_clip,
    held_out_clips,
    pan,
)
from default_vae_demo import Demo
from default_vae_model import build, decode, encode, halved
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
        self,
        weights: dict[str, Tensor] | None,
        rate: float,
        device: str,
        *,
        keep: float,
        absolute: float,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.keep = keep
        self.absolute = absolute
        self.vae = build().to(device).train()
        if weights is not None:
            self.vae.load_state_dict(weights)
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
        with halved(trainer.device):
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
        side.wait_stream(torch.cuda.current_stream())
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


class Run:
    """All that one call of ``train`` works on, made from its command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rng = np.random.default_rng(0)
        self.data = TrainingSet.load().to(args.device)
        held_out = held_out_clips() if args.held_out else {}
        self.held_out = {name: clip.to(args.device) for name, clip in held_out.items()}
        saved = torch.load(args.start, map_location="cpu", weights_only=True) if args.start else {}
        self.trainer = Trainer(
            saved.get("vae", saved) or None,
            args.rate * 0.01,
            args.device,
            keep=args.keep,
            absolute=args.absolute,
        )
        graphs = args.device != "cpu"
        self.steps = []
        for clip in args.clips:
            count, frames, height, width = map(int, clip.split("x"))
            step = Step(self.trainer, (count, 3, frames, height, width))
            self.fill(step)
            self.steps.append((step, step.replayed() if graphs else step))
        self.demo = self._demo(saved.get("latents")) if args.demo else None
        self.pass_over = self.demo and (self.demo.replayed() if graphs else self.demo)

    @torch.no_grad()
    def _demo(self, latents: Tensor | None) -> Demo:
        args, trainer = self.args, self.trainer
        clip = demo_clip()[:, :, : args.demo_frames].to(args.device)
        if latents is None:
            latents = encode(trainer.vae, clip).mean
        latents = latents[:, :, : (clip.shape[2] + 3) // 4].float().to(args.device)
        with torch.enable_grad():
            return Demo(
                trainer.vae, trainer.average, latents, clip, window=args.window, keep=args.keep
            )

    def fill(self, step: Step) -> None:
        """Put new clips where ``step`` takes them from."""
        count, _, frames, height, width = step.video.shape
        clips = self.data.batch(count, frames, (height, width), self.rng, photos=self.args.photos)
        step.video.copy_(clips)

    def once(self, number: int, done: float) -> None:
        """Do one step, and the passes over the demo after it, when ``done`` of the time is over."""
        args = self.args
        self.trainer.rate.fill_(args.rate * factor(done))
        step, run = self.steps[number % len(self.steps)]
        self.fill(step)
        run()
        if self.demo is not None and self.pass_over is not None:
            self.demo.set_rates(args.demo_rate * factor(done), args.latents_rate * factor(done))
            for _ in range(args.demo):
                self.pass_over()
        if args.device != "cpu":  # or the host would be far ahead when the time is over
            torch.cuda.synchronize()

    def progress(self) -> str:
        """PSNR of the clips trained on, and of the demo, both of late."""
        text = f"training PSNR {[decibels(step.squared) for step, _ in self.steps]} dB"
        return text if self.demo is None else f"{text}  demo {decibels(self.demo.squared)} dB"

    @torch.no_grad()
    def save(self, path: Path) -> None:
        """Write the averages (float16), and print how well they decode."""
        weights = self.trainer.average.state_dict().items()
        halves = {name: value.half().cpu().contiguous() for name, value in weights}
        saved: dict[str, object] = {"vae": halves}
        if self.demo is not None:
            saved["latents"] = self.demo.average.half().cpu()
        if not all(bool(value.isfinite().all()) for value in halves.values()):
            raise FloatingPointError(f"expected finite weights, got others; {path} is as it was")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(saved, part)
        part.replace(path)
        vae = build().eval().to(self.args.device)
        vae.load_state_dict(halves)
        rows = {}
        if self.demo is not None:
            output = vae.decode(self.demo.average.half().float()).sample
            rows["demo"] = decibels((output - self.demo.clip).square().mean())
        for name, target in self.held_out.items():
            output = vae.decode(vae.encode(target).latent_dist.mean).sample
            rows[f"held-out {name}"] = decibels((output - target).square().mean())
        print(f"wrote {path}: as it would ship, PSNR {rows} dB", flush=True)


def decibels(squared: Tensor) -> float:
    """PSNR of a mean squared error of pictures in [-1, 1]."""
    return round(-10 * math.log10(float(squared) / 4), 2)


def train(args: argparse.Namespace) -> None:
    """Train for ``--seconds``, and write the moving average now and then, and at the end."""
    run = Run(args)
    began = told = written = time.monotonic()
    number = 0
    while (passed := time.monotonic() - began) < args.seconds:
        run.once(number, passed / args.seconds)
        number += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{passed:.0f} s  step {number}  {run.progress()}", flush=True)
        if time.monotonic() - written > args.save_every:
            run.save(args.weights)
            written = time.monotonic()
    print(f"{number} steps in {time.monotonic() - began:.0f} s  {run.progress()}", flush=True)
    run.save(args.weights)


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
    parser.add_argument("--photos", type=float, default=0.3, help="share of clips from photographs")
    parser.add_argument("--demo", type=int, default=0, help="passes over the demo after a step")
    parser.add_argument("--demo-rate", type=float, default=1e-4, help="the decoder's, there")
    parser.add_argument("--latents-rate", type=float, default=1e-2, help="the demo's latents'")
    parser.add_argument("--demo-frames", type=int, default=65, help="fewer for a rehearsal")
    parser.add_argument("--window", type=int, default=4, help="latents a step over the demo")
    parser.add_argument("--save-every", type=float, default=60, help="seconds")
    parser.add_argument(
        "--held-out",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode the held-out clips whenever weights are written",
    )
    args = parser.parse_args()
    {"train": train, "export": export}[args.command](args)


if __name__ == "__main__":
    main()
