"""The ways a clip is decoded and kept: the device alone, a synchronous loop, streamvae."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _bare import BareVideo

from streamvae import HostChunk, RawFile, VideoFile, stream_decode
from streamvae._pixels import yuv420p
from streamvae._recipe import Recipe
from streamvae.abc import Backend, Codec
from streamvae.backends import for_device
from streamvae.codecs import codec_for

#: How both loops encode: `VideoFile`'s own defaults, one keyframe a second.
FPS, CRF, PRESET = 24, 18, "veryfast"


@dataclass
class Case:
    """One autoencoder and one clip of latents, and where files go.

    Attributes:
        vae: A diffusers autoencoder.
        z: Latents (1, C, T, h, w) on its device.
        scratch: An empty folder; everything in it is deleted between runs.
        runner: The one event loop of this run.
        real: Frames (N, H, W, 3), uint8, of a real scene in the clip's size; for the encoder.
    """

    vae: torch.nn.Module
    z: torch.Tensor
    scratch: Path
    runner: asyncio.Runner
    real: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        self.codec: Codec = codec_for(self.vae)
        self.backend: Backend = for_device(self.codec.device)

    @functools.cached_property
    def planes(self) -> npt.NDArray[np.uint8]:
        """``real`` as a device turns it into 4:2:0, for sinks that are given that."""
        real = torch.from_numpy(_real(self))[None]
        parts = [yuv420p(real[:, i : i + 8])[0] for i in range(0, real.shape[1], 8)]
        planes: npt.NDArray[np.uint8] = torch.cat(parts).unsqueeze(-1).numpy()
        return planes

    def pieces(self) -> Iterator[torch.Tensor]:
        """The latents, cut as a stream cuts them."""
        begin, steps = 0, self.z.shape[2]
        for size in self.codec.cut(steps, None, "exact").sizes():
            if begin >= steps:
                return
            yield self.z[:, :, begin : begin + size]
            begin += size

    def finish_launches(self) -> None:
        """Wait for everything the device was given on the calling thread's stream."""
        if self.codec.device.type == "cuda":
            torch.cuda.current_stream(self.codec.device).synchronize()

    def settle(self) -> None:
        """Empty the folder, and wait until the device has nothing left of what ran before."""
        for path in self.scratch.iterdir():
            path.unlink()
        if self.codec.device.type == "cuda":
            torch.cuda.synchronize(self.codec.device)


def timed(case: Case, call: Callable[[], object]) -> float:
    """Seconds that ``call`` takes, from an idle device and an empty folder."""
    case.settle()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def on_launch_thread(case: Case, call: Callable[[Case], None]) -> float:
    """Like `timed`, for a loop of its own on the thread and in the stream streamvae launches in."""
    return timed(case, lambda: case.backend.run(lambda: call(case)).result())


def streamed(case: Case, make: Callable[[], Awaitable[object]]) -> float:
    """Like `timed`, for flow code."""

    async def run() -> None:
        await make()

    return timed(case, lambda: case.runner.run(run()))


def device_alone(case: Case, chunks: int | None = None) -> None:
    """Decode and quantise, and throw away; the first ``chunks`` chunks, or all."""
    with _recipe(case) as recipe:
        for index, piece in enumerate(case.pieces()):
            if index == chunks:
                break
            recipe.decode((piece,))
        case.finish_launches()


def synchronous_raw(case: Case) -> None:
    """Decode a chunk, ``.cpu()``, write; and again."""
    with _recipe(case) as recipe, (case.scratch / "out.raw").open("wb", buffering=0) as file:
        for piece in case.pieces():
            file.write(_downloaded(recipe, piece).reshape(-1).data)


def synchronous_mp4(case: Case) -> None:
    """Decode a chunk, ``.cpu()``, encode a chunk of real content; and again."""
    real = _real(case)
    size = (real.shape[2], real.shape[1])
    with _recipe(case) as recipe:
        encoder = BareVideo(case.scratch / "out.mp4", size, fps=FPS, crf=CRF, preset=PRESET)
        start = 0
        for piece in case.pieces():
            for _ in _downloaded(recipe, piece)[0]:
                encoder.encode(real[start])
                start += 1
        encoder.close()


async def streamed_raw(case: Case) -> None:
    """Streamvae into a raw file."""
    await stream_decode(case.z, case.vae, sinks=RawFile(case.scratch / "out.raw")).finish()


async def streamed_mp4(case: Case) -> None:
    """Streamvae into an MP4 of real content."""
    sink = RealContent(case.scratch / "out.mp4", _real(case), case.planes)
    await stream_decode(case.z, case.vae, sinks=sink, fps=FPS).finish()


class RealContent(VideoFile):
    """Encodes given pictures in the place of those that come.

    Random weights decode to noise, which no encoder is made for and no user encodes.
    """

    def __init__(
        self, path: Path, real: npt.NDArray[np.uint8], planes: npt.NDArray[np.uint8]
    ) -> None:
        super().__init__(path, fps=FPS, crf=CRF, preset=PRESET)
        self._real = {"rgb24": real, "yuv420p": planes}

    def put(self, chunk: HostChunk) -> None:
        """Encode as many real pictures as came, laid out as they came."""
        real = self._real[chunk.format][None, chunk.start : chunk.start + len(chunk)]
        super().put(replace(chunk, data=real))


@contextlib.contextmanager
def _recipe(case: Case) -> Iterator[Recipe]:
    recipe = Recipe(case.codec, case.codec.decoder(), "uint8")
    try:
        yield recipe
    finally:
        recipe.decoder.close()


def _downloaded(recipe: Recipe, piece: torch.Tensor) -> npt.NDArray[np.uint8]:
    rendered = recipe.decode((piece,))
    if rendered is None:
        raise RuntimeError("expected a family that gives frames for every chunk")
    pixels: npt.NDArray[np.uint8] = rendered.pixels.cpu().numpy()
    return pixels


def _real(case: Case) -> npt.NDArray[np.uint8]:
    if case.real is None:
        raise RuntimeError("expected pictures for the encoder")
    return case.real
