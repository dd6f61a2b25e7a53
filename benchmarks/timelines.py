"""The two timelines of the documentation: a synchronous loop, and streamvae, one below the other.

The same chunks are decoded and real pictures are encoded: by a loop that does one thing after the
other, and by a stream that does all at once. On a CPU with the embedded autoencoder into PNG files,
on a CUDA device with the Wan 2.1 autoencoder (random weights, bfloat16) at 720p into an MP4. Draws
a picture, a page and a trace, and writes what both say of themselves with versions, command,
machine and date.

    python benchmarks/timelines.py --out docs/images     # timelines_cpu.png or timelines_cuda.png
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from _measure import Json, clocks, facts, write
from PIL import Image

from streamvae import ChunkSpan, HostChunk, StageTimes, StreamStats, stream_decode
from streamvae._recipe import Recipe
from streamvae.abc import Sink
from streamvae.codecs import codec_for
from streamvae.models import demo_latents
from streamvae.report import advice, write_timeline
from streamvae.report._bench_clip import RANDOM_WAN, Clip, autoencoder, latents, pictures
from streamvae.report._bench_video import CRF, FPS, PRESET, BareVideo, RealContent
from streamvae.sinks import ThreadSink

RESULTS = Path(__file__).parent / "results"


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--latents", type=int, default=8, help="latent frames")
    parser.add_argument("--size", default="720x1280", help="height and width, on a CUDA device")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--into", choices=("mp4", "png"), help="png on a CPU, else mp4")
    parser.add_argument("--crop", type=int, help="latents of height and width at most, on a CPU")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    said = parser.parse_args()
    said.device = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.into = said.into or ("png" if said.device == "cpu" else "mp4")
    return said


def clip_of(said: argparse.Namespace, runner: asyncio.Runner, scratch: Path) -> Clip:
    """The autoencoder, its latents and the pictures that are encoded."""
    if said.device == "cpu":
        torch.set_num_threads(said.threads)
        vae = autoencoder(None, said.device)
        z = demo_latents()[0][:, :, : said.latents, : said.crop, : said.crop].contiguous()
    else:
        vae = autoencoder(RANDOM_WAN, said.device)
        height, width = (int(part) for part in said.size.split("x"))
        z = latents(codec_for(vae), (height, width), said.latents)
    codec = codec_for(vae)
    frames, picture = codec.frames(said.latents), codec.picture(tuple(z.shape))
    if frames is None or picture is None:
        raise RuntimeError("expected a codec that knows how many frames of what size it gives")
    clip = Clip(vae, z, scratch, runner, pictures(frames, *picture, device=said.device))
    _ = clip.planes
    return clip


class Writer(Protocol):
    """Keeps pictures as they come, on the thread that brings them."""

    def encode(self, picture: npt.NDArray[np.uint8]) -> None:
        """One picture (H, W, 3), uint8."""
        ...

    def close(self) -> None:
        """That was all."""
        ...


class Pictures:
    """PNG files, small ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def encode(self, picture: npt.NDArray[np.uint8]) -> None:
        """One file."""
        path = self._folder / f"{self._count:05d}.png"
        Image.fromarray(picture).save(path, compress_level=6)
        self._count += 1

    def close(self) -> None:
        """Nothing is left to do."""


def writer(clip: Clip, into: str) -> Writer:
    """What the loop writes with."""
    if into == "png":
        return Pictures(clip.scratch)
    height, width = real_of(clip).shape[1:3]
    return BareVideo(clip.scratch / "out.mp4", (width, height), fps=FPS, crf=CRF, preset=PRESET)


def real_of(clip: Clip) -> npt.NDArray[np.uint8]:
    """The pictures that are encoded in the place of those that are decoded."""
    if clip.real is None:
        raise RuntimeError("expected pictures for the encoder")
    return clip.real


def synchronous(clip: Clip, into: str) -> StreamStats:
    """Decode a chunk, wait, ``.cpu()``, encode it; and again. Every step as the clock saw it."""
    real, keep = real_of(clip), writer(clip, into)
    recipe = Recipe(clip.codec, clip.codec.decoder(), "uint8")
    spans: list[ChunkSpan] = []
    frames, began = 0, time.monotonic()
    moments: Callable[[], float] = lambda: time.monotonic() - began  # noqa: E731
    for index, piece in enumerate(clip.pieces()):
        begin = moments()
        rendered = recipe.decode((piece,))
        clip.finish_launches()
        decoded = moments()
        if rendered is None:
            raise RuntimeError("expected a family that gives frames for every chunk")
        pixels = rendered.pixels.cpu().numpy()
        copied = moments()
        for picture in real[frames : frames + pixels.shape[1]]:
            keep.encode(picture)
        frames += pixels.shape[1]
        encoded = moments()
        told = {"frames": pixels.shape[1], "nbytes": pixels.nbytes}
        spans += [
            ChunkSpan("decode", index, begin, begin, decoded, **on_device(begin, decoded)),
            ChunkSpan("download", index, begin, decoded, copied, **on_device(decoded, copied)),
            ChunkSpan("persist", index, begin, copied, encoded, **told),
        ]
    total = moments()
    keep.close()
    recipe.decoder.close()
    return summed_up(spans, frames, total)


def on_device(begin: float, end: float) -> dict[str, float]:
    """What a span says of the device."""
    return {"device_begin": begin, "device_end": end}


def summed_up(spans: list[ChunkSpan], frames: int, total: float) -> StreamStats:
    """What a stream would say of the same chunks."""
    names = ("decode", "download", "persist")
    of = {name: [span for span in spans if span.stage == name] for name in names}
    steady, first = of["decode"][1:], of["decode"][0]
    window = steady[-1].end - first.end if steady else 0.0
    return StreamStats(
        stages=tuple(
            StageTimes(
                name,
                len(done),
                sum(span.end - span.begin for span in done),
                device=sum(span.device for span in done),
            )
            for name, done in of.items()
        ),
        frames=frames,
        chunks=len(of["persist"]),
        first_chunk=of["persist"][0].end,
        total=total,
        timeline=tuple(spans),
        device_busy=sum(span.device for span in steady) / window if window else None,
    )


class Kept(ThreadSink):
    """The same writer as a sink."""

    def __init__(self, clip: Clip, into: str) -> None:
        super().__init__(into)
        self._keep = writer(clip, into)
        self._real = real_of(clip)

    def put(self, chunk: HostChunk) -> None:
        """Encode as many of the clip's pictures as came."""
        for picture in self._real[chunk.start : chunk.start + len(chunk)]:
            self._keep.encode(picture)

    def finish(self) -> None:
        """Complete the file."""
        self._keep.close()


def sink(clip: Clip, into: str) -> Sink:
    """What the stream writes with: of a video the sink that takes 4:2:0 from the device."""
    if into == "png":
        return Kept(clip, into)
    return RealContent(clip.scratch / "out.mp4", real_of(clip), clip.planes)


async def overlapped(clip: Clip, into: str) -> StreamStats:
    """Streamvae into the same files."""
    return await stream_decode(clip.z, clip.vae, sinks=sink(clip, into), fps=FPS).finish()


def measured(clip: Clip, into: str) -> dict[str, StreamStats]:
    """Both, warm, from an idle device."""
    kept: dict[str, StreamStats] = {}

    def loop(clip: Clip) -> None:
        kept["synchronous loop"] = synchronous(clip, into)

    async def stream() -> None:
        kept["streamvae"] = await overlapped(clip, into)

    for _ in range(2):  # the first is the warm-up
        clip.settle()
        clip.backend.run(lambda: loop(clip)).result()
        clip.settle()
        clip.runner.run(stream())
    clip.settle()
    return kept


def told(kept: dict[str, StreamStats]) -> Json:
    """What both say of themselves."""
    return {
        name: {
            "total_s": stats.total - stats.opening,
            "first_chunk_s": stats.first_chunk,
            "device_busy": stats.device_busy,
            "between_chunks_s": stats.between_chunks and stats.between_chunks._asdict(),
        }
        for name, stats in kept.items()
    }


def main() -> None:
    """Run both, draw, write."""
    said = options()
    device = torch.empty(0, device=said.device).device
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner() as runner:
        clip = clip_of(said, runner, Path(scratch))
        before = clocks(device)
        kept = measured(clip, said.into)
    said.out.mkdir(parents=True, exist_ok=True)
    name = f"timelines_{device.type}"
    for end in (".png", ".html", "_trace.json"):
        print(f"wrote {write_timeline(kept, said.out / f'{name}{end}')}")
    print(f"\n{advice(kept['streamvae'])}")
    result: Json = facts(device) | {
        "what": f"{type(clip.vae).__name__}, {tuple(clip.z.shape)} {clip.z.dtype}",
        "into": said.into,
        "threads": torch.get_num_threads(),
        "load, in processes": os.getloadavg()[0],
        "clocks before": before,
        "ways": told(kept),
        "advice": advice(kept["streamvae"]).splitlines(),
    }
    write(result, said.results / f"{name}.json")


if __name__ == "__main__":
    main()
