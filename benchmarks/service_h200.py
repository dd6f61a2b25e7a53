"""Many at once: eight streams through one Service, and a job that somebody watches.

Wan 2.1's autoencoder in its own size, random weights, bfloat16: one stream alone and eight at once,
480x832, 21 latents each. Frames a second of all together, each stream's first frame, whether each
stream's frames are those it has alone. Then two jobs with and without `live.preview`: an SDXL UNet
(1024x1024, short steps) with AutoencoderTiny, and Wan 2.1 1.3B's transformer (480x832, 81 frames)
with a small Wan autoencoder; both with random weights. Prints tables and whether each promise is
kept, and writes all samples as JSON.

    python benchmarks/service_h200.py
    python benchmarks/service_h200.py --quick       # tiny weights, also without a GPU: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from _measure import (
    Json,
    alternate,
    clocks,
    facts,
    promised,
    show,
    show_promises,
    summary,
    write,
)
from diffusers import AutoencoderKL, AutoencoderKLWan, AutoencoderTiny

from streamvae import FrameStream
from streamvae.live import Picture, Service, preview

RESULTS = Path(__file__).parent / "results"
JOBS = ("sdxl", "wan")


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few frames")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--streams", type=int, default=8, help="at once")
    parser.add_argument("--latents", type=int, help="latent frames of each")
    parser.add_argument("--rounds", type=int, help="samples of every figure")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=JOBS, help="watched jobs")
    parser.add_argument("--steps", type=int, help="of each job")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    quick = said.quick
    said.device = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.latents = said.latents or (4 if quick else 21)
    said.rounds = said.rounds or (1 if quick else 5)
    said.out = said.out or RESULTS / f"service_{'quick' if quick else 'full'}.json"
    return said


def made(make: Callable[[], torch.nn.Module], device: torch.device) -> Any:  # noqa: ANN401
    """A model with random weights, on the device; every parameter drawn."""
    torch.manual_seed(0)
    with torch.device(device):
        model = make().eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def drawn(seed: int, *shape: int, like: torch.nn.Module) -> torch.Tensor:
    """Seeded noise where ``like`` is."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(next(like.parameters()))


async def watched(service: Service, latents: torch.Tensor) -> tuple[float, int]:
    """Decode; give the seconds to the first frame and the frames."""
    began = time.perf_counter()
    first, frames = 0.0, 0
    async with service.stream(latents) as stream:
        async for chunk in stream.chunks():
            first = first or time.perf_counter() - began
            frames += len(chunk)
            del chunk
    return first, frames


async def hashed(service: Service, latents: torch.Tensor) -> str:
    """SHA-256 of all frames."""
    digest = hashlib.sha256()
    async with service.stream(latents) as stream:
        async for chunk in stream.chunks():
            await asyncio.to_thread(digest.update, chunk.data)
            del chunk
    return digest.hexdigest()


async def at_once(service: Service, clips: list[torch.Tensor]) -> tuple[float, list[float]]:
    """Frames a second of all clips together, and the seconds to each first frame, in order."""
    if clips[0].is_cuda:
        torch.cuda.synchronize(clips[0].device)
    began = time.perf_counter()
    came = await asyncio.gather(*(watched(service, latents) for latents in clips))
    seconds = time.perf_counter() - began
    return sum(frames for _, frames in came) / seconds, sorted(first for first, _ in came)


async def together(said: argparse.Namespace, device: torch.device) -> Json:
    """One stream alone beside all at once, turn by turn."""
    small = {"base_dim": 8, "num_res_blocks": 1}
    vae = made(lambda: AutoencoderKLWan(**(small if said.quick else {})), device)
    side = (4, 6) if said.quick else (60, 104)
    shape = (1, vae.config.z_dim, said.latents, *side)
    clips = [drawn(seed, *shape, like=vae) for seed in range(said.streams)]
    one: list[float] = []
    all_: list[float] = []
    alone_first: list[float] = []
    firsts: list[list[float]] = []
    async with Service(vae, max_streams=said.streams, warmup=shape) as service:
        alone = [await hashed(service, latents) for latents in clips]
        equal = alone == await asyncio.gather(*(hashed(service, latents) for latents in clips))
        for _ in range(said.rounds):
            rate, (first,) = await at_once(service, clips[:1])
            one.append(rate)
            alone_first.append(first)
            rate, came = await at_once(service, clips)
            all_.append(rate)
            firsts.append(came)
        health = service.health()
        async with service.stream(clips[0]) as stream:
            step = _step(stream)
    bound = max(
        came[k] / (2 * (k + 1) * first)
        for came, first in zip(firsts, alone_first, strict=True)
        for k in range(len(came))
    )
    return {
        "shape": shape,
        "step": step,
        "memory budget": health["memory"],
        "frames a second": {"one": summary(one), "all": summary(all_)},
        "first frame of one": summary(alone_first),
        "first frames of all": firsts,
        "equal to alone": equal,
        "rate, all / one": summary([a / b for a, b in zip(all_, one, strict=True)]),
        "first frame, k-th / (2k x one's)": bound,
    }


def _step(stream: FrameStream) -> str:
    return stream.info.step


def sdxl(device: torch.device, *, quick: bool) -> tuple[Any, Any, Json]:
    """An SDXL pipeline without text encoders, a tiny autoencoder, and its call."""
    config: Json = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    }
    if quick:
        config |= {
            "block_out_channels": (8, 8, 8),
            "layers_per_block": 1,
            "transformer_layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
    unet = made(lambda: diffusers.UNet2DConditionModel(**config), device)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=AutoencoderKL(scaling_factor=0.13025),  # decodes nothing here
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    pipe.vae_scale_factor = 8
    side = 64 if quick else 1024
    call: Json = {
        "prompt_embeds": drawn(1, 1, 77, 2048, like=unet),
        "pooled_prompt_embeds": drawn(2, 1, 1280, like=unet),
        "guidance_scale": 1.0,
        "height": side,
        "width": side,
    }
    return pipe, made(AutoencoderTiny, device), call


def wan(device: torch.device, *, quick: bool) -> tuple[Any, Any, Json]:
    """Wan 2.1 1.3B without a text encoder, a small autoencoder of its latents, and its call."""
    config: Json = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    if quick:
        config |= {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 8}
        config |= {"num_layers": 1, "text_dim": 8}
    transformer = made(lambda: diffusers.WanTransformer3DModel(**config), device)
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(base_dim=8, num_res_blocks=1),  # decodes nothing here
        transformer=transformer,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ),
    )
    text = transformer.config["text_dim"]
    call: Json = {
        "prompt_embeds": drawn(1, 1, 8 if quick else 512, text, like=transformer),
        "guidance_scale": 1.0,
        "height": 32 if quick else 480,
        "width": 48 if quick else 832,
        "num_frames": 9 if quick else 81,
    }
    small = made(lambda: AutoencoderKLWan(base_dim=8, num_res_blocks=1), device)
    return pipe, small, call


async def job(pipe: Any, vae: Any, call: Json, device: torch.device, seen: list[int]) -> float:  # noqa: ANN401
    """Run a job; watched, if ``vae`` is given. Give its seconds, and add the pictures seen."""

    def run(arguments: Json) -> None:
        pipe(**arguments, output_type="latent", generator=torch.Generator().manual_seed(0))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    if vae is None:
        began = time.perf_counter()
        await asyncio.to_thread(run, call)
        return time.perf_counter() - began
    pictures: list[Picture] = []

    async def watch() -> None:
        async for picture in forming:
            pictures[:] = [picture]
            seen[-1] += 1

    seen.append(0)
    async with preview(pipe, vae) as forming:
        watching = asyncio.create_task(watch())
        began = time.perf_counter()
        await asyncio.to_thread(run, forming.call(**call))
        seconds = time.perf_counter() - began
        forming.end()
        await watching
    return seconds


def previewed(name: str, said: argparse.Namespace, device: torch.device) -> Json:
    """One job with and without somebody watching, turn by turn."""
    pipe, vae, call = {"sdxl": sdxl, "wan": wan}[name](device, quick=said.quick)
    pipe.to(device).set_progress_bar_config(disable=True)
    steps = said.steps or (4 if said.quick else {"sdxl": 50, "wan": 10}[name])
    call |= {"num_inference_steps": steps}
    seen: list[int] = []
    with asyncio.Runner() as runner:
        ways: dict[str, Callable[[], float]] = {
            "alone": lambda: runner.run(job(pipe, None, call, device, seen)),
            "watched": lambda: runner.run(job(pipe, vae, call, device, seen)),
        }
        walls = alternate(ways, said.rounds)
    slower = walls["watched"]["median"] / walls["alone"]["median"]
    return {"steps": steps, "walls": walls, "pictures": seen, "watched / alone": slower}


def kept(result: Json) -> Json:
    """Each promise: what was measured, what was promised, and whether it holds."""
    many = result["service"]
    rate, unequal = many["rate, all / one"]["median"], not many["equal to alone"]
    rows = {
        "rate of one / of all": (1 / rate, round(1 / 0.97, 4)),
        "first frame, k-th / (2k x one's)": (many["first frame, k-th / (2k x one's)"], 1.0),
        "streams unequal to alone": (float(unequal), 0.0),
    }
    for name, one in result["jobs"].items():
        rows[f"{name}, watched / alone"] = (one["watched / alone"], 1.03)
        rows[f"{name}, jobs nobody saw"] = (float(one["pictures"].count(0)), 0.0)
    return promised(rows)


def report(result: Json, *, quick: bool) -> None:
    """Print tables."""
    many = result["service"]
    print(f"\n== {result['streams']} streams of {many['shape']}, step {many['step']}")
    show("frames a second", many["frames a second"], "")
    show("seconds to the first frame, alone", {"one": many["first frame of one"]})
    print(
        "  in the last round, all: "
        + ", ".join(f"{s:.3f}" for s in many["first frames of all"][-1])
    )
    for name, one in result["jobs"].items():
        show(f"{name}, {one['steps']} steps, pictures {one['pictures']}", one["walls"])
    show_promises(result["promises"], quick=quick)


def main() -> None:
    """Measure, print, write."""
    said = options()
    device = torch.empty(0, device=said.device).device
    result: Json = facts(device) | {
        "what": "AutoencoderKLWan, " + ("tiny" if said.quick else "its own size"),
        "streams": said.streams,
        "rounds": said.rounds,
        "clocks before": clocks(device),
        "service": asyncio.run(together(said, device)),
        "jobs": {},
    }
    write(result, said.out)
    for name in said.jobs:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        result["jobs"][name] = previewed(name, said, device)
    result["clocks after"] = clocks(device)
    result["promises"] = kept(result)
    report(result, quick=said.quick)
    write(result, said.out)


if __name__ == "__main__":
    main()
