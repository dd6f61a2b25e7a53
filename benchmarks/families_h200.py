"""Every video autoencoder of diffusers under the pipeline, beside diffusers' own decode.

Default configs, random weights, bfloat16, a 480p-like clip: whether frames are equal, and wall
time, first frame and peak memory of both, side by side in one run::

    python benchmarks/families_h200.py                    # some minutes on an H200
    python benchmarks/families_h200.py --quick            # tiny weights on any device: a rehearsal

Diffusers: ``vae.decode``, quantise, ``.cpu()``; streamvae: ``stream_decode(…).chunks()``. Neither
writes a file. A family that fails is reported and the others go on.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from _families import ENTRIES, Entry, Reference, build
from _measure import Json, clocks, facts, summary, write
from torch import nn

from streamvae import stream_decode
from streamvae._pixels import render

RESULTS = Path(__file__).parent / "results"


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the tests' tiny autoencoders")
    parser.add_argument("--only", nargs="+", help="names that begin so")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=2, help="samples of every figure")
    parser.add_argument("--seconds", type=float, default=500, help="start no family after that")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    said.device = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.out = said.out or RESULTS / f"families_{'quick' if said.quick else 'full'}.json"
    return said


class Bench:
    """One autoencoder and its clip."""

    def __init__(
        self, vae: nn.Module, z: torch.Tensor, call: Mapping[str, object], reference: Reference
    ) -> None:
        self.vae = vae
        self.z = z
        self.call = call
        self.reference = reference
        self.cuda = z.device.type == "cuda"

    @torch.no_grad()
    def whole(self) -> torch.Tensor:
        """What diffusers gives, as uint8 on the host."""
        frames = self.reference(self.vae, self.z, self.call)
        return render(frames, "video", "uint8").cpu()

    async def stream(self, output: str = "uint8") -> tuple[float, object]:
        """Seconds to the first chunk, and what is known of the stream."""
        began = time.perf_counter()
        first = 0.0
        async with stream_decode(self.z, self.vae, output=output, call=self.call) as stream:
            async for chunk in stream.chunks():
                first = first or time.perf_counter() - began
                del chunk
            return first, stream.info

    def measured(self, runner: asyncio.Runner, rounds: int) -> Json:
        """Everything about one family."""
        result = self.compared(runner)
        walls: dict[str, list[float]] = {"diffusers": [], "streamvae": []}
        firsts: list[float] = []
        peaks: dict[str, int] = {}
        for _ in range(rounds):
            with self.peak(peaks, "diffusers"):
                walls["diffusers"].append(self.timed(self.whole))
            with self.peak(peaks, "streamvae"):
                walls["streamvae"].append(
                    self.timed(lambda: firsts.append(runner.run(self.stream())[0]))
                )
        result["wall"] = {name: summary(samples) for name, samples in walls.items()}
        result["first frame"] = summary(firsts)
        result["peak bytes"] = peaks
        return result

    def compared(self, runner: asyncio.Runner) -> Json:
        """How far the stream's floats are from diffusers'; also the warm-up of both."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            with torch.no_grad():
                expected = self.reference(self.vae, self.z, self.call).float().movedim(1, -1).cpu()
        with torch.random.fork_rng():
            torch.manual_seed(0)

            async def collect() -> tuple[torch.Tensor, object]:
                stream = stream_decode(self.z, self.vae, output="float32", call=self.call)
                frames = torch.as_tensor(await stream.collect())
                return frames, stream.info

            frames, info = runner.run(collect())
        if frames.shape != expected.shape:
            return {"error": f"frames {tuple(frames.shape)}, diffusers {tuple(expected.shape)}"}
        return self.apart(frames, expected) | {
            "frames": frames.shape[1],
            "equal": torch.equal(frames, expected),
            "equal values": float((frames == expected).float().mean()),
            "greatest difference": float((frames - expected).abs().max()),
            "greatest value": float(expected.abs().max()),
            "exactness": getattr(info, "exactness", ""),
            "notes": list(getattr(info, "notes", ())),
        }

    @torch.no_grad()
    def apart(self, frames: torch.Tensor, expected: torch.Tensor) -> Json:
        """Where both differ: how far each is from what diffusers gives in float32."""
        dtype = self.z.dtype
        if torch.equal(frames, expected) or dtype == torch.float32:
            return {}
        with torch.random.fork_rng(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            torch.manual_seed(0)
            try:
                self.vae.float()
                wide = self.reference(self.vae, self.z.float(), self.call).movedim(1, -1).cpu()
            except torch.OutOfMemoryError:
                return {"rms error": None}
            finally:
                self.vae.to(dtype)
        both = {"diffusers": expected, "streamvae": frames}
        return {
            "rms error": {who: float((x - wide).square().mean().sqrt()) for who, x in both.items()}
        }

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds from an idle device."""
        if self.cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def peak(self, into: dict[str, int], name: str) -> Peak:
        """Note the allocator's peak above what lay there before."""
        return Peak(into, name, cuda=self.cuda)


class Peak:
    """The allocator's peak inside the block."""

    def __init__(self, into: dict[str, int], name: str, *, cuda: bool) -> None:
        self.into, self.name, self.cuda, self.before = into, name, cuda, 0

    def __enter__(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - self.before
            self.into[self.name] = max(self.into.get(self.name, 0), peak)


def benches(said: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Bench]]]:
    """Each family's name, and what builds it."""
    device = torch.device(said.device)
    if said.quick:
        from tests.test_families import FAMILIES

        for family in FAMILIES.values():
            length = max(family.lengths)
            yield (
                family.name,
                lambda f=family, n=length: Bench(
                    f.make().to(device), f.noise(n).to(device), f.call(n), f.reference
                ),
            )
        return
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for entry in ENTRIES:

        def make(entry: Entry = entry) -> Bench:
            vae = build(entry, device, dtype)
            generator = torch.Generator().manual_seed(1)
            z = torch.randn(entry.latents, generator=generator).to(device, dtype)
            return Bench(vae, z, entry.call(device), entry.reference)

        yield entry.name, make


def main() -> None:
    """Measure, print, write."""
    said = options()
    device = torch.empty(0, device=said.device).device
    result: Json = facts(device) | {"rounds": said.rounds, "families": {}}
    began = time.perf_counter()
    with asyncio.Runner() as runner:
        for name, make in benches(said):
            if said.only and not name.startswith(tuple(said.only)):
                continue
            if time.perf_counter() - began > said.seconds:
                result["families"][name] = {"error": "not run: no time was left"}
                continue
            try:
                row = make().measured(runner, said.rounds)
            except Exception as error:  # noqa: BLE001  # the others are to be measured all the same
                traceback.print_exc()
                row = {"error": f"{type(error).__name__}: {error}"}
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            result["families"][name] = row
            print(line(name, row), flush=True)
            write(result | {"clocks": clocks(device)}, said.out)


def line(name: str, row: Json) -> str:
    """One family for people."""
    if "error" in row:
        return f"{name:18s} FAILED: {row['error']}"
    wall, peak = row["wall"], row["peak bytes"]
    memory = " ".join(f"{peak.get(who, 0) / 2**30:6.2f}" for who in ("diffusers", "streamvae"))
    return (
        f"{name:18s} {row['frames']:4d} frames  "
        f"{'EQUAL' if row['equal'] else format(row['greatest difference'], '.1e'):>8s}  "
        f"{rounding(row):s}"
        f"diffusers {wall['diffusers']['median']:7.3f} s  "
        f"streamvae {wall['streamvae']['median']:7.3f} s  "
        f"first {row['first frame']['median']:6.3f} s  peak GiB {memory}"
    )


def rounding(row: Json) -> str:
    """The errors of both against float32."""
    errors = row.get("rms error")
    return f"rms to float32 {errors['diffusers']:.1e} {errors['streamvae']:.1e}  " if errors else ""


if __name__ == "__main__":
    main()
