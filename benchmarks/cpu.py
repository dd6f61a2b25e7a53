"""The same comparison without a GPU: the embedded autoencoder and its demo clip.

On a processor that decodes and writes with the same cores there is little to overlap; what this
shows is that streaming costs nothing, when the first frame is there, and how much memory it takes.

    python benchmarks/cpu.py
    python benchmarks/sinks_cpu.py      # sinks by themselves
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import _host_memory as host
import _loops as loops
import torch
from _measure import Json, alternate, facts, promised, show, show_promises, write
from _promises import first_frame
from _real import latents, pictures

from streamvae import stream_decode
from streamvae.models import default_vae, demo_latents


def peak_memory(way: str, steps: int) -> int:
    """Bytes that a process of its own reached; ``way`` is ``"stream"`` or ``"whole"``."""
    command = [sys.executable, __file__, "--only", way, "--latents", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return int(done.stdout.split()[-1])


def run_alone(way: str, z: torch.Tensor) -> None:
    """Decode once, then print this process's own peak of resident memory in bytes."""
    if way == "stream":
        asyncio.run(_finish(z))
    elif way == "whole":
        with torch.no_grad():
            default_vae().decode(z)
    else:
        default_vae()
    print(host.highest())


async def _finish(z: torch.Tensor) -> None:
    await stream_decode(z).finish()


def flat_memory() -> Json:
    """Resident bytes while a clip, and one four times as long, stream in a process of its own."""
    peaks = host.told_by(__file__, "--only", "lengths")
    short, long = list(peaks.values())[1:]
    rows = {"host, four times as long - once, MiB": ((long - short) / 2**20, host.NOISE / 2**20)}
    return {"resident bytes": peaks, "promises": promised(rows)}


def run_lengths(*, quick: bool) -> None:
    """Print what `flat_memory` reads: clips of 21 and 84 latents, a part of the demo's picture."""
    clip, _ = demo_latents()
    rows, columns, count = (4, 4, 2) if quick else (32, 40, 21)
    short = clip[:, :, :, :rows, :columns].repeat(1, 1, 2, 1, 1)[:, :, :count]
    each = {f"{count} latents": short, f"{4 * count} latents": short.repeat(1, 1, 4, 1, 1)}
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(host.lengths(default_vae(), each, Path(scratch))))


def clips(case: loops.Case, rounds: int) -> dict[str, Json]:
    """Both loops, into a raw file and into an MP4."""
    ways = {
        "decode alone": functools.partial(loops.on_launch_thread, case, loops.device_alone),
        "raw, synchronous": functools.partial(loops.on_launch_thread, case, loops.synchronous_raw),
        "raw, streamvae": lambda: loops.streamed(case, lambda: loops.streamed_raw(case)),
    }
    if case.real is not None:
        ways["mp4, synchronous"] = functools.partial(
            loops.on_launch_thread, case, loops.synchronous_mp4
        )
        ways["mp4, streamvae"] = lambda: loops.streamed(case, lambda: loops.streamed_mp4(case))
    return alternate(ways, rounds)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latents", type=int, default=5, help="latent frames of the demo clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: a corner of the clip")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    parser.add_argument(
        "--only", choices=("load", "stream", "whole", "lengths"), help=argparse.SUPPRESS
    )
    said = parser.parse_args()
    if said.only == "lengths":
        run_lengths(quick=said.quick)
        return
    z = latents(said.latents, quick=said.quick)
    if said.only:
        run_alone(said.only, z)
        return
    vae = default_vae()
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner() as runner:
        case = loops.Case(vae, z, Path(scratch), runner)
        if find_spec("av"):
            height, width = case.codec.picture(tuple(z.shape)) or (0, 0)
            case.real = pictures(
                case.codec.frames(z.shape[2]) or 0, height, width, quick=said.quick
            )
        result = facts(torch.device("cpu")) | {"threads": torch.get_num_threads()}
        result["clips"] = clips(case, said.rounds)
        result["first frame"] = first_frame(case, said.rounds)
    show("whole clips", result["clips"])
    show("first frame", result["first frame"])
    if not said.quick and Path("/proc/self/status").exists():
        ways = ("load", "stream", "whole")
        result["peak bytes"] = {way: peak_memory(way, said.latents) for way in ways}
        print("\npeak memory of a process")
        for way, peak in result["peak bytes"].items():
            print(f"  {way:34s} {peak / 2**20:9.1f} MiB")
    if not said.quick and host.resident():
        result["host memory"] = flat_memory()
        for name, peak in result["host memory"]["resident bytes"].items():
            print(f"  resident, {name:24s} {peak / 2**20:9.1f} MiB")
        show_promises(result["host memory"]["promises"], quick=False)
    if said.out:
        write(result, said.out)


if __name__ == "__main__":
    main()
