"""Every figure streamvae promises on one NVIDIA card, side by side in one run.

The Wan 2.1 autoencoder as it is shipped, random weights, bfloat16, warm, batch 1. The
latents are drawn, not zero. Prints a table and whether each promise is kept, and writes all samples
with versions, clocks, command, machine and date as JSON.

    python benchmarks/wan_h200.py                   # a few minutes
    python benchmarks/wan_h200.py --quick           # tiny weights, also without a GPU: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import tempfile
from importlib.util import find_spec
from pathlib import Path

import _host_memory as host
import _loops as loops
import _people as people
import _promises as promises
import numpy as np
import torch
from _measure import (
    Json,
    alternate,
    clocks,
    facts,
    filesystem,
    promised,
    show,
    show_promises,
    write,
)
from _real import pictures
from _trace import profiled
from diffusers import AutoencoderKLWan

from streamvae import warmup
from streamvae.fast import release
from streamvae.report._bench_clip import random_wan

RESULTS = Path(__file__).parent / "results"
#: How often what people do is measured: it takes long, and nothing hangs on its last per cent.
PEOPLE_ROUNDS = 2


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few frames")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--sizes", nargs="+", help="heights and widths, such as 720x1280")
    parser.add_argument("--latents", type=int, help="latent frames")
    parser.add_argument("--rounds", type=int, help="samples of every figure")
    parser.add_argument("--scratch", type=Path, help="folder for the files written")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    parser.add_argument("--only", choices=("host-memory",), help=argparse.SUPPRESS)
    said = parser.parse_args()
    quick = said.quick
    said.device = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.sizes = said.sizes or (["32x48"] if quick else ["720x1280", "480x832"])
    said.latents = said.latents or (5 if quick else 21)
    said.rounds = said.rounds or (2 if quick else 5)
    said.out = said.out or RESULTS / f"wan_{'quick' if quick else 'full'}.json"
    return said


def autoencoder(device: torch.device, *, quick: bool) -> AutoencoderKLWan:
    """Random weights; every parameter drawn, those too that start as zeros or ones."""
    vae = random_wan(**({"base_dim": 8, "num_res_blocks": 1} if quick else {}))
    return vae.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def size_of(size: str) -> tuple[int, int]:
    """Height and width."""
    height, width = (int(part) for part in size.split("x"))
    return height, width


def drawn(vae: AutoencoderKLWan, size: str, steps: int) -> torch.Tensor:
    """Latents (1, C, steps, h, w) for frames of ``size``."""
    height, width = size_of(size)
    shape = (1, vae.config.z_dim, steps, height // 8, width // 8)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).to(vae.device, vae.dtype)


def case_of(
    vae: AutoencoderKLWan, size: str, said: argparse.Namespace, runner: asyncio.Runner, at: Path
) -> loops.Case:
    """Latents and pictures for frames of ``size``."""
    height, width = size_of(size)
    z = drawn(vae, size, said.latents)
    count = 4 * said.latents - 3
    real = pictures(count, height, width, quick=said.quick) if find_spec("av") else None
    case = loops.Case(vae, z, at, runner, real)
    if real is not None:
        _ = case.planes  # made now, not while something is timed
    return case


def alone(case: loops.Case) -> None:
    """The device alone, its chunks launched as streams launch them."""
    loops.device_alone(case, graphs=True)


def throughput(case: loops.Case, rounds: int) -> Json:
    """Whole clips: the device alone, and both loops into a raw file and into an MP4."""
    floor = {
        "device alone": functools.partial(loops.on_launch_thread, case, alone),
    }
    raw = {
        "raw, synchronous": functools.partial(loops.on_launch_thread, case, loops.synchronous_raw),
        "raw, streamvae": lambda: loops.streamed(case, lambda: loops.streamed_raw(case)),
    }
    mp4 = {
        "mp4, synchronous": functools.partial(loops.on_launch_thread, case, loops.synchronous_mp4),
        "mp4, streamvae": lambda: loops.streamed(case, lambda: loops.streamed_mp4(case)),
    }
    return alternate(floor | raw | (mp4 if case.real is not None else {}), rounds)


def exactness(case: loops.Case) -> bool:
    """Whether the raw file holds, byte for byte, what ``vae.decode`` and the PIL rule give."""
    from streamvae._pixels import render

    loops.streamed(case, lambda: loops.streamed_raw(case))
    with torch.no_grad():
        whole = render(case.vae.decode(case.z).sample, "video", "uint8").cpu().numpy()
    return bool(np.array_equal(np.fromfile(case.scratch / "out.raw", np.uint8), whole.reshape(-1)))


def measured(case: loops.Case, rounds: int) -> Json:
    """Everything, for one size; chunks are graphs, unless ``STREAMVAE_GRAPHS=0``."""
    release()
    info = case.runner.run(warmup(case.vae, tuple(case.z.shape)))
    result: Json = {
        "step": info.step,
        "exact": exactness(case),
        "clocks before": clocks(case.codec.device),
    }
    result["clips"] = throughput(case, rounds)
    if case.real is not None:
        result["clips"] |= people.ways(case, min(rounds, PEOPLE_ROUNDS))
    result["first frame"] = promises.first_frame(case, rounds)
    result["phases"] = promises.phases(case, rounds)
    result["heartbeat"] = promises.heartbeat(case, 1)
    if case.codec.device.type == "cuda":
        steady = result["clips"]["device alone"]["median"] / case.z.shape[2]
        result["cancel"] = promises.cancelling(case, rounds, steady)
        result["peak bytes"] = promises.memory(case, 4)
        result["utilisation"] = {
            "streamvae": profiled(lambda: loops.streamed(case, lambda: loops.streamed_raw(case))),
            # What the same kernels leave idle when nothing else happens at all.
            "device alone": profiled(lambda: loops.on_launch_thread(case, alone)),
        }
    result["clocks after"] = clocks(case.codec.device)
    result["promises"] = kept(result)
    return result


def kept(result: Json) -> dict[str, Json]:
    """Each promise: what was measured, what was promised, and whether it holds."""
    clips, first, beats = result["clips"], result["first frame"], result["heartbeat"]["decoding"]
    floor, raw = clips["device alone"]["median"], clips["raw, streamvae"]["median"]
    own = first["first chunk on the device alone"]["median"]
    rows: dict[str, tuple[float, float]] = {
        "raw / device alone": (raw / floor, 1.02),
        "raw / synchronous": (raw / clips["raw, synchronous"]["median"], 1.0),
        "first frame / first chunk": (first["first frame on the host"]["median"] / own, 1.15),
        "heartbeat p99.9, ms late": (beats["p99.9_ms"], 5.0),
        "heartbeat worst, ms late": (beats["worst_ms"], 20.0),
    }
    if "mp4, streamvae" in clips:
        pair = clips["mp4, streamvae"]["median"], clips["mp4, synchronous"]["median"]
        rows["mp4 / synchronous"] = (pair[0] / pair[1], 1.0)
        rows["mp4 / device alone"] = (pair[0] / floor, 1.03)
    if "cancel" in result:
        idle = result["cancel"]["device idle after"]["max"]
        # Not kept so far: two chunks are launched, and what is launched cannot be taken back.
        rows["cancel to idle, in chunks, worst"] = (idle / result["cancel"]["chunk"], 1.0)
        rows["idle share of the device"] = (1 - result["utilisation"]["streamvae"]["share"], 0.015)
        short, long, whole = result["peak bytes"].values()
        rows["peak, four times as long / once"] = (long / short, 1.02)
        rows["peak / vae.decode"] = (short / whole, 1.0)
    return promised(rows)


def host_memory(said: argparse.Namespace) -> None:
    """Print resident bytes while a clip, and one four times as long, stream in this process."""
    vae = autoencoder(torch.empty(0, device=said.device).device, quick=said.quick)
    counts = (said.latents, 4 * said.latents)
    clips = {f"{count} latents": drawn(vae, said.sizes[0], count) for count in counts}
    with tempfile.TemporaryDirectory(dir=said.scratch) as scratch:
        print(json.dumps(host.lengths(vae, clips, Path(scratch))))


def in_another_process(said: argparse.Namespace) -> Json:
    """What `host_memory` prints, for the largest of the sizes."""
    size = max(said.sizes, key=lambda one: math.prod(size_of(one)))
    args = ["--only", "host-memory", "--sizes", size, "--device", said.device]
    args += ["--latents", str(said.latents)] + (["--quick"] if said.quick else [])
    args += ["--scratch", str(said.scratch)] if said.scratch else []
    peaks = host.told_by(__file__, *args)
    short, long = list(peaks.values())[1:]
    return {
        "size": size,
        "resident bytes": peaks,
        "promises": promised({
            "host, four times as long - once, MiB": ((long - short) / 2**20, host.NOISE / 2**20)
        }),
    }


def report(size: str, result: Json, *, quick: bool) -> None:
    """Print one size's table."""
    print(f"\n== {size}: equal to vae.decode, byte for byte: {result['exact']}")
    show("whole clips", result["clips"])
    show("first frame", result["first frame"])
    show("a stream, part by part", result["phases"])
    for name in ("heartbeat", "cancel", "peak bytes", "utilisation"):
        for key, value in result.get(name, {}).items():
            print(f"  {name}: {key}: {value}")
    show_promises(result["promises"], quick=quick)


def main() -> None:
    """Measure, print, write."""
    said = options()
    if said.only:
        host_memory(said)
        return
    device = torch.empty(0, device=said.device).device
    vae = autoencoder(device, quick=said.quick)
    result: Json = facts(device) | {
        "what": "AutoencoderKLWan, batch 1, " + ("tiny" if said.quick else "as shipped"),
        "dtype": str(vae.dtype),
        "latents": said.latents,
        "rounds": said.rounds,
        "sizes": {},
    }
    with tempfile.TemporaryDirectory(dir=said.scratch) as scratch, asyncio.Runner() as runner:
        result["filesystem"] = filesystem(Path(scratch))
        for size in said.sizes:
            case = case_of(vae, size, said, runner, Path(scratch))
            result["sizes"][size] = measured(case, said.rounds)
            report(size, result["sizes"][size], quick=said.quick)
            write(result, said.out)
    if host.resident():
        result["host memory"] = in_another_process(said)
        for name, peak in result["host memory"]["resident bytes"].items():
            print(f"  host memory, {name:30s} {peak / 2**20:9.1f} MiB")
        show_promises(result["host memory"]["promises"], quick=said.quick)
        write(result, said.out)


if __name__ == "__main__":
    main()
