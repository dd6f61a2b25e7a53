"""Many pictures through one AutoencoderKL: decoding one chunk while the one before is written.

Stable Diffusion's autoencoder in its own size, random weights, bfloat16, eager, warm; 64 drawn
latents, in chunks of 4 and of 1. The device alone, a synchronous loop and streamvae, into a raw
file and into PNG files; the first picture; whether the pictures are those of ``vae.decode``; peak
memory. Prints a table and whether each promise is kept, and writes all samples as JSON.

    python benchmarks/images_h200.py
    python benchmarks/images_h200.py --quick       # tiny weights, also without a GPU: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import _loops as loops
import numpy as np
import numpy.typing as npt
import torch
from _measure import Json, alternate, clocks, facts, filesystem, show, summary, write
from diffusers import AutoencoderKL
from PIL import Image

from streamvae import FrameStream, HostChunk, RawFile, stream_decode
from streamvae._pixels import render

RESULTS = Path(__file__).parent / "results"
#: Fast to make, as one does who makes many; ten times as fast as PIL's own level.
PNG_LEVEL = 1


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few pictures")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--sizes", nargs="+", help="heights and widths of latents, such as 64x64")
    parser.add_argument("--items", type=int, help="pictures")
    parser.add_argument("--per-chunk", nargs="+", type=int, default=[4, 1], help="in a chunk")
    parser.add_argument("--rounds", type=int, help="samples of every figure")
    parser.add_argument("--threads", type=int, default=8, help="that write PNG files")
    parser.add_argument("--scratch", type=Path, help="folder for the files written")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    quick = said.quick
    said.device = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.sizes = said.sizes or (["4x6"] if quick else ["64x64"])
    said.items = said.items or (9 if quick else 64)
    said.rounds = said.rounds or (2 if quick else 5)
    said.out = said.out or RESULTS / f"images_{'quick' if quick else 'full'}.json"
    return said


def autoencoder(device: torch.device, *, quick: bool) -> AutoencoderKL:
    """Random weights; every parameter drawn, those too that start as zeros or ones."""
    torch.manual_seed(0)
    widths = (8, 8, 16, 16) if quick else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4 if quick else 32,
        sample_size=512,
    )
    vae.eval().requires_grad_(requires_grad=False)
    for parameter in vae.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return vae.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


@dataclass
class Pictures(loops.Case):
    """Latents (N, C, h, w), how many a chunk has, and the threads that make PNG files."""

    per_chunk: int = 1
    pool: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    def pieces(self) -> Iterator[torch.Tensor]:
        """The latents, cut as the stream cuts them."""
        return iter(torch.split(self.z, self.per_chunk))

    def stream(self, z: torch.Tensor, sinks: object = (), output: str = "uint8") -> FrameStream:
        """One stream; several pictures a chunk are equal within rounding only, which is asked."""
        return stream_decode(
            z,
            self.vae,
            sinks=sinks,  # type: ignore[arg-type]
            output=output,  # type: ignore[arg-type]
            latents_per_chunk=self.per_chunk,
            mode="exact" if self.per_chunk == 1 else "fast",
        )

    def png(self, index: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write one picture (H, W, 3)."""
        Image.fromarray(pixels).save(self.scratch / f"{index}.png", compress_level=PNG_LEVEL)


def synchronous_png(case: Pictures) -> None:
    """Decode a chunk, ``.cpu()``, write its pictures on all threads, wait; and again."""
    index = 0
    with contextlib.closing(loops.rendered(case)) as each:
        for chunk in each:
            pixels = chunk.pixels.cpu().numpy()[:, 0]
            list(case.pool.map(case.png, range(index, index + len(pixels)), pixels))
            index += len(pixels)


class Book:
    """When a sink's writes began and ended, and PNG files if it has to write them itself."""

    def __init__(self, case: Pictures) -> None:
        self.case = case
        self.spans: list[tuple[float, float]] = []

    async def png(self, chunk: HostChunk) -> None:
        """Write the pictures of a chunk, each on a thread of its own."""
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(
                loop.run_in_executor(self.case.pool, self.case.png, chunk.start + at, picture)
                for at, picture in enumerate(chunk.data[:, 0])
            )
        )
        self.spans.append((began, time.perf_counter()))

    def told(self, wall: float) -> Json:
        """How many chunks were written when the last one came from the device, and how busy."""
        last, _ = self.spans[-1]
        return {
            "chunks": len(self.spans),
            "written when the last chunk came": sum(end <= last for _, end in self.spans),
            "sink busy": sum(end - begin for begin, end in self.spans) / wall,
            "last write": self.spans[-1][1] - last,
        }


async def streamed_png(case: Pictures, book: Book) -> None:
    """Streamvae into PNG files, by an async function."""
    await case.stream(case.z, book.png).finish()


async def streamed_raw(case: Pictures) -> None:
    """Streamvae into a raw file."""
    await case.stream(case.z, RawFile(case.scratch / "out.raw")).finish()


def throughput(case: Pictures, rounds: int) -> tuple[dict[str, Json], list[Json]]:
    """All ways of decoding and keeping the pictures, and what the PNG sink did meanwhile."""
    told: list[Json] = []

    def png() -> float:
        book = Book(case)
        wall = loops.streamed(case, lambda: streamed_png(case, book))
        told.append(book.told(wall))
        return wall

    alone = functools.partial(loops.on_launch_thread, case)
    ways: dict[str, Callable[[], float]] = {
        "device alone": lambda: alone(loops.device_alone),
        "raw, synchronous": lambda: alone(loops.synchronous_raw),
        "raw, streamvae": lambda: loops.streamed(case, lambda: streamed_raw(case)),
        "png, synchronous": lambda: alone(lambda _: synchronous_png(case)),
        "png, streamvae": png,
    }
    clips = alternate(ways, rounds)
    return clips, told[1:]  # the first was the warm-up


def first_picture(case: Pictures, rounds: int) -> dict[str, Json]:
    """Seconds to the first picture on the host, beside the first chunk alone on the device."""

    async def one() -> float:
        case.settle()
        began = time.perf_counter()
        async with case.stream(case.z) as frames:
            async for frame in frames:
                del frame
                break
            return time.perf_counter() - began

    return alternate(
        {
            "first chunk on the device alone": lambda: loops.on_launch_thread(
                case, lambda this: loops.device_alone(this, 1)
            ),
            "first picture on the host": lambda: case.runner.run(one()),
        },
        rounds,
    )


@torch.no_grad()
def exactness(case: Pictures) -> Json:
    """How far the stream is from ``vae.decode`` of each item, in bytes of all and in floats."""
    loops.streamed(case, lambda: streamed_raw(case))
    raw = np.fromfile(case.scratch / "out.raw", np.uint8)
    items = [case.vae.decode(item).sample for item in torch.split(case.z, 1)]
    whole = np.concatenate([render(item, "image", "uint8").cpu().numpy() for item in items])
    few = case.z[:8]

    async def collect() -> torch.Tensor:
        return torch.as_tensor(await case.stream(few, output="float32").collect())

    floats = case.runner.run(collect()).squeeze(1).permute(0, 3, 1, 2)
    expected = torch.cat(items[:8]).float().cpu()
    return {
        "bytes equal": bool(np.array_equal(raw, whole.reshape(-1))),
        "share of equal bytes": float((raw == whole.reshape(-1)).mean()),
        "floats equal": torch.equal(floats, expected),
        "greatest difference": float((floats - expected).abs().max()),
    }


def memory(case: Pictures) -> Json:
    """Peak device memory above what lay there: this many pictures, twice as many, and diffusers."""
    device = case.codec.device
    peaks: Json = {}

    def stream(z: torch.Tensor) -> None:
        async def run() -> None:
            await case.stream(z).finish()

        case.runner.run(run())

    @torch.no_grad()
    def sliced() -> None:
        torch.cat([case.vae.decode(item).sample for item in torch.split(case.z, 1)])

    twice = case.z.repeat(2, 1, 1, 1)
    ways = {
        "stream": lambda: stream(case.z),
        "stream, twice as many": lambda: stream(twice),
        "vae.decode, sliced": sliced,
    }
    for name, way in ways.items():
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        torch.cuda.synchronize(device)
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def measured(case: Pictures, rounds: int) -> Json:
    """Everything, for one size and one number of pictures a chunk."""
    result: Json = {"exactness": exactness(case), "clocks before": clocks(case.codec.device)}
    result["clips"], told = throughput(case, rounds)
    result["png sink"] = {name: summary([each[name] for each in told]) for name in told[0]}
    result["first picture"] = first_picture(case, rounds)
    if case.codec.device.type == "cuda":
        result["peak bytes"] = memory(case)
    result["clocks after"] = clocks(case.codec.device)
    result["promises"] = kept(case, result)
    return result


def kept(case: Pictures, result: Json) -> dict[str, Json]:
    """Each promise: what was measured, what was promised, and whether it holds."""
    clips, sink, first = result["clips"], result["png sink"], result["first picture"]
    walls = {name: row["median"] for name, row in clips.items()}
    own = first["first chunk on the device alone"]["median"]
    waiting = sink["chunks"]["median"] - sink["written when the last chunk came"]["median"]
    rows: dict[str, tuple[float, float]] = {
        "raw / device alone": (walls["raw, streamvae"] / walls["device alone"], 1.02),
        "raw / synchronous": (walls["raw, streamvae"] / walls["raw, synchronous"], 1.0),
        # The last chunk's files cannot be written while anything is decoded.
        "png less its last write / device alone": (
            (walls["png, streamvae"] - sink["last write"]["median"]) / walls["device alone"],
            1.02,
        ),
        "png / synchronous": (walls["png, streamvae"] / walls["png, synchronous"], 1.0),
        "first picture / first chunk": (first["first picture on the host"]["median"] / own, 1.15),
        "chunks unwritten when the last came": (waiting, 2.0),
    }
    if case.per_chunk == 1:
        rows["pictures unequal to vae.decode"] = (not result["exactness"]["floats equal"], 0)
    if "peak bytes" in result:
        once, twice, _ = result["peak bytes"].values()
        rows["peak, twice as many / once"] = (twice / once, 1.02)
    return {
        name: {"measured": float(value), "at most": limit, "kept": value <= limit}
        for name, (value, limit) in rows.items()
    }


def report(title: str, result: Json, *, quick: bool) -> None:
    """Print one table."""
    print(f"\n== {title}: {result['exactness']}")
    show("all pictures", result["clips"])
    show("the sink of PNG files", result["png sink"], "")
    show("first picture", result["first picture"])
    for name, value in result.get("peak bytes", {}).items():
        print(f"  peak: {name}: {value / 2**30:.2f} GiB")
    print("\npromises" + (" (this is a rehearsal: nothing follows from it)" if quick else ""))
    for name, row in result["promises"].items():
        word = "kept" if row["kept"] else "BROKEN"
        print(f"  {name:36s} {row['measured']:9.4f}   at most {row['at most']:<6} {word}")


def main() -> None:
    """Measure, print, write."""
    said = options()
    device = torch.empty(0, device=said.device).device
    vae = autoencoder(device, quick=said.quick)
    result: Json = facts(device) | {
        "what": "AutoencoderKL, eager, " + ("tiny" if said.quick else "Stable Diffusion's size"),
        "dtype": str(vae.dtype),
        "items": said.items,
        "rounds": said.rounds,
        "threads": said.threads,
        "sizes": {},
    }
    with (
        tempfile.TemporaryDirectory(dir=said.scratch) as scratch,
        asyncio.Runner() as runner,
        ThreadPoolExecutor(said.threads) as pool,
    ):
        result["filesystem"] = filesystem(Path(scratch))
        for size in said.sizes:
            shape = (said.items, vae.config.latent_channels, *map(int, size.split("x")))
            z = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            z = z.to(vae.device, vae.dtype)
            for per_chunk in said.per_chunk:
                case = Pictures(vae, z, Path(scratch), runner, per_chunk=per_chunk, pool=pool)
                title = f"{said.items} of {size}, {per_chunk} a chunk"
                result["sizes"][title] = measured(case, said.rounds)
                report(title, result["sizes"][title], quick=said.quick)
                write(result, said.out)


if __name__ == "__main__":
    main()
