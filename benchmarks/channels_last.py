"""Decoders channels last beside diffusers' own, in turns: on a card, or on a CPU.

On a card: Wan 2.1 as it is shipped and AutoencoderKL as in SDXL, random weights, bfloat16; times,
errors against float32, peak memory, and what takes how long in a steady chunk. On a CPU: the
embedded autoencoder over its demo clip, and Wans of few channels, float32.

    python benchmarks/channels_last.py                 # about a minute on a card
    python benchmarks/channels_last.py --device cpu    # some three on two cores
    python benchmarks/channels_last.py --quick --device cpu
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import _fast as fast
import torch
from _measure import Json, alternate, clocks, facts, promised, show, show_promises, summary, write
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import nn
from torch.profiler import ProfilerActivity, profile

from streamvae.codecs import WalkingCodec, codec_for
from streamvae.fast._portable import PortablePictures, PortableWan, portable_pictures, portable_wan
from streamvae.models import default_vae, demo_latents

M = TypeVar("M", bound=nn.Module)
RESULTS = Path(__file__).parent / "results"


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few frames")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=3, help="clips of every way")
    parser.add_argument("--sizes", nargs="+", default=("480x832", "720x1280"), help="HxW, of Wan")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    name = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.device = torch.empty(0, device=name).device
    kind = "quick" if said.quick else "h200" if said.device.type == "cuda" else "cpu"
    said.out = said.out or RESULTS / f"channels_last_{kind}.json"
    return said


def wan(said: argparse.Namespace, **config: object) -> AutoencoderKLWan:
    """A Wan with random weights, its gammas random too."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**config).eval().requires_grad_(requires_grad=False)
    for name, parameter in vae.named_parameters():
        if "gamma" in name:
            parameter.data.copy_(1 + 0.2 * torch.randn_like(parameter))
    return _placed(vae, said)


def sdxl(said: argparse.Namespace) -> AutoencoderKL:
    """SDXL's autoencoder, random weights."""
    widths = (16, 32, 32, 32) if said.quick else (128, 256, 512, 512)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8 if said.quick else 32,
    )
    return _placed(vae.eval().requires_grad_(requires_grad=False), said)


def _placed(vae: M, said: argparse.Namespace) -> M:
    dtype = torch.bfloat16 if said.device.type == "cuda" else torch.float32
    return cast("M", nn.Module.to(vae, said.device, dtype))


def ours(vae: nn.Module, said: argparse.Namespace) -> PortableWan:
    """The Wan codec.

    Raises:
        TypeError: It is not to be had, and why.
    """
    codec = portable_wan(codec_for(vae), said.device, anywhere=True)
    if not isinstance(codec, PortableWan):
        raise TypeError(f"expected the codec channels last, got: {codec}")
    return codec


def eager(vae: nn.Module, said: argparse.Namespace) -> WalkingCodec:  # noqa: ARG001
    """Diffusers' decoder, chunk by chunk."""
    return cast("WalkingCodec", codec_for(vae))


WAYS: dict[str, Callable[[nn.Module, argparse.Namespace], WalkingCodec]] = {
    "eager": eager,
    "channels last": ours,
}


@torch.no_grad()
def video(vae: AutoencoderKLWan, said: argparse.Namespace, size: tuple[int, int]) -> Json:
    """First use, times in turns, errors and memory of one size."""
    z, found = fast.noise(vae, size, 7), dict[str, dict[str, list[float]]]()
    began = time.perf_counter()
    _clip(ours(vae, said), z[:, :, :2])
    result: Json = {"first use, s": time.perf_counter() - began}
    for number in range(said.rounds + 1):
        for name, way in WAYS.items():
            for key, values in fast._timed(way(vae, said), z, said.device, 2).items():
                if number:  # the first is to warm up
                    found.setdefault(name, {}).setdefault(key, []).extend(values)
    result["times"] = {
        name: {key: summary(values) for key, values in each.items()} for name, each in found.items()
    }
    short = z[:, :, :3]
    frames = {name: _clip(way(vae, said), short) for name, way in WAYS.items()}
    again = _clip(ours(vae, said), short)
    result["two runs equal"] = torch.equal(frames["channels last"], again)
    result["errors"] = _errors(
        vae, frames, lambda: _clip(eager(vae, said), short.float()), said.device
    )
    if said.device.type == "cuda":
        result["peak bytes"] = {name: _peak(way(vae, said), z) for name, way in WAYS.items()}
        result["operations, ms"] = _operations(ours(vae, said), z)
    return result


def _clip(codec: WalkingCodec, z: torch.Tensor) -> torch.Tensor:
    decoder, pieces = fast.chunks(codec, z)
    found = torch.cat([cast("torch.Tensor", decoder.decode(one)).cpu() for one in pieces], 2)
    decoder.close()
    return found


def _errors(
    vae: nn.Module,
    given: dict[str, torch.Tensor],
    decode: Callable[[], torch.Tensor],
    device: torch.device,
) -> Json:
    """Relative errors against what ``decode`` gives while weights are float32."""
    dtype = next(vae.parameters()).dtype
    nn.Module.to(vae, torch.float32)
    try:
        with torch.backends.cudnn.flags(enabled=device.type == "cuda", allow_tf32=False):
            right = decode()
    finally:
        nn.Module.to(vae, dtype)
    found = {
        name: float((one.float() - right).norm() / right.norm()) for name, one in given.items()
    }
    return found | {"ratio": found["channels last"] / max(found["eager"], 1e-6)}


def _peak(codec: WalkingCodec, z: torch.Tensor) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(z.device)
    decoder, pieces = fast.chunks(codec, z)
    for piece in pieces:
        decoder.decode(piece)
    decoder.close()
    return torch.cuda.max_memory_allocated(z.device)


def _operations(codec: WalkingCodec, z: torch.Tensor) -> Json:
    """What took longest on the device in the last chunk: launches and milliseconds."""
    decoder, pieces = fast.chunks(codec, z)
    for piece in pieces[:-1]:
        decoder.decode(piece)
    torch.cuda.synchronize(z.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        decoder.decode(pieces[-1])
        torch.cuda.synchronize(z.device)
    decoder.close()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.device_time_total)[:25]
    return {row.key[:120]: [row.count, row.device_time_total / 1000] for row in rows}


@torch.no_grad()
def pictures(said: argparse.Namespace) -> Json:
    """AutoencoderKL, one picture of 1024x1024."""
    vae = sdxl(said)
    codec = portable_pictures(codec_for(vae), said.device, anywhere=True)
    if not isinstance(codec, PortablePictures):
        raise TypeError(f"expected the codec channels last, got: {codec}")
    side = 8 if said.quick else 128
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, side, side, generator=generator).to(said.device, vae.dtype)
    ways = {"eager": lambda: vae.decode(z).sample, "channels last": lambda: codec.pictures(z)}

    def timed(way: Callable[[], torch.Tensor]) -> Callable[[], float]:
        def run() -> float:
            fast._settle(said.device)
            began = time.perf_counter()
            for _ in range(4):
                way()
            fast._settle(said.device)
            return (time.perf_counter() - began) / 4

        return run

    times = alternate({name: timed(way) for name, way in ways.items()}, said.rounds * 3)
    frames = {name: way().cpu() for name, way in ways.items()}

    def right() -> torch.Tensor:
        return vae.decode(z.float()).sample.cpu()

    return {
        "step": codec.step_name,
        "times, s": times,
        "errors": _errors(vae, frames, right, said.device),
    }


@torch.no_grad()
def on_a_cpu(said: argparse.Namespace) -> Json:
    """Seconds of whole clips, the embedded autoencoder's and some small Wans'."""
    demo, found = demo_latents()[0][:, :, : 2 if said.quick else 4], Json()
    small = {"base_dim": 8, "num_res_blocks": 1} if said.quick else {"base_dim": 32}
    forms = {
        "embedded": (default_vae(), demo),
        "Wan 2.1, a third of its channels": (wan(said, **small), torch.randn(1, 16, 3, 16, 24)),
    }
    for name, (vae, z) in forms.items():

        def timed(way: str, vae: nn.Module = vae, z: torch.Tensor = z) -> Callable[[], float]:
            def run() -> float:
                began = time.perf_counter()
                _clip(WAYS[way](vae, said), z)
                return time.perf_counter() - began

            return run

        frames = [_clip(make(vae, said), z) for make in WAYS.values()]
        found[name] = {
            "times, s": alternate({way: timed(way) for way in WAYS}, 1 if said.quick else 5),
            "greatest difference": float((frames[0] - frames[1]).abs().max()),
        }
    return found


def kept(result: Json) -> dict[str, Json]:
    """Each promise that was measured."""
    rows: dict[str, tuple[float, float]] = {}
    for size, one in result.get("video", {}).items():
        steady = {way: each["steady chunk, ms"]["median"] for way, each in one["times"].items()}
        rows[f"{size}: steady chunk / eager"] = (steady["channels last"] / steady["eager"], 1 / 2.8)
        rows[f"{size}: error / diffusers' own"] = (one["errors"]["ratio"], 1.02)
        rows[f"{size}: runs that differ"] = (int(not one["two runs equal"]), 0)
    if "pictures" in result:
        times = {way: one["median"] for way, one in result["pictures"]["times, s"].items()}
        rows["a picture / eager"] = (times["channels last"] / times["eager"], 1 / 2)
        rows["a picture: error / diffusers' own"] = (result["pictures"]["errors"]["ratio"], 1.02)
    for name, one in result.get("cpu", {}).items():
        times = {way: each["median"] for way, each in one["times, s"].items()}
        rows[f"{name} / eager"] = (times["channels last"] / times["eager"], 1 / 1.3)
        rows[f"{name}: greatest difference"] = (one["greatest difference"], 1e-4)
    return promised(rows)


def main() -> None:
    """Measure, print, write."""
    said = options()
    result: Json = facts(said.device) | {"clocks before": clocks(said.device)}
    if said.device.type == "cpu":
        result["cpu"] = on_a_cpu(said)
        for name, one in result["cpu"].items():
            show(name, one["times, s"])
    if said.device.type == "cuda" or said.quick:
        result["pictures"] = pictures(said)
        show("a picture", result["pictures"]["times, s"])
        result["promises"] = kept(result)
        write(result, said.out)
        vae = wan(said, **({"base_dim": 8, "num_res_blocks": 1} if said.quick else {}))
        result["video"] = {}
        for name in ("32x48",) if said.quick else said.sizes:
            height, width = map(int, name.split("x"))
            one = result["video"][name] = video(vae, said, (height, width))
            for key in one["times"]["eager"]:
                show(f"{name}: {key}", {way: each[key] for way, each in one["times"].items()}, "ms")
            print(f"  first use {one['first use, s']:.1f} s; errors {one['errors']}")
            for row, (count, spent) in one.get("operations, ms", {}).items():
                print(f"  {spent:8.3f} ms {count:4d} x {row}")
            result["promises"] = kept(result)
            write(result, said.out)
    result["clocks after"] = clocks(said.device)
    result["promises"] = kept(result)
    write(result, said.out)
    show_promises(result["promises"], quick=said.quick)


if __name__ == "__main__":
    main()
