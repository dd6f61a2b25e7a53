"""The ways of a clip: the device alone, a synchronous loop, what people do, fastvae, streamvae."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from .._chunks import StreamInfo
from .._options import Mode
from .._recipe import Recipe
from .._stream import stream_decode
from ..abc import Codec, Rendered, Sink
from ..fast import launched
from ..sinks import RawFile, VideoFile
from ._bench_clip import Clip
from ._bench_video import CRF, FPS, PRESET, BareVideo, RealContent

#: Where frames go: to the host and no further, into a raw file, into H.264 in MP4.
Into = Literal["nothing", "raw", "mp4"]

#: What the ways are called.
ALONE, PEOPLE, LOOP = "the device alone", "what people do", "synchronous chunk loop"
FASTVAE, EXACT, EAGER = "fastvae", "streamvae, exact", "streamvae, exact, eager"
FAST = "streamvae, fast"
#: Chunk by chunk, kernel by kernel: what `PEOPLE` decode with.
OWN = "the autoencoder's own decoder"

#: Set to 0, it keeps streams from launching chunks as CUDA graphs.
GRAPHS = "STREAMVAE_GRAPHS"


def timed(clip: Clip, call: Callable[[], object]) -> float:
    """Seconds that ``call`` takes, from an idle device and an empty folder."""
    clip.settle()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def on_launch_thread(clip: Clip, call: Callable[[Clip], None]) -> float:
    """Like `timed`, for a loop of its own on the thread and in the stream streamvae launches in."""
    return timed(clip, lambda: clip.backend.run(lambda: call(clip)).result())


def streamed(clip: Clip, make: Callable[[], Awaitable[object]]) -> float:
    """Like `timed`, for flow code."""

    async def run() -> None:
        await make()

    return timed(clip, lambda: clip.runner.run(run()))


def rendered(
    clip: Clip, codec: Codec | None = None, *, graphs: bool = False
) -> Generator[Rendered, None, None]:
    """Each chunk's pixels on the device, decoded as streams decode them, one after another.

    Args:
        clip: What to decode; on the launch thread.
        codec: What to decode it with; None for the clip's.
        graphs: Whether chunks are launched as streams launch them, as graphs where that can be.
    """
    codec = codec or clip.codec
    if graphs:
        codec = launched(codec, getattr(clip.backend, "graphs", None)).codec
    recipe = Recipe(codec, codec.decoder(), "uint8")
    if clip.codec.wants_all:
        recipe.everything = (clip.z,)
    try:
        for piece in clip.pieces():
            if (made := recipe.decode((piece,))) is not None:
                yield made
        for _ in range(clip.codec.drains(clip.steps)):
            if (made := recipe.drain()) is not None:
                yield made
    finally:
        recipe.close()


def device_alone(clip: Clip, chunks: int | None = None, *, graphs: bool = False) -> None:
    """Decode and quantise, and throw away.

    Args:
        clip: What to decode.
        chunks: How many of the first chunks; None for all.
        graphs: Whether chunks are launched as streams launch them, as graphs where that can be.
    """
    with contextlib.closing(rendered(clip, graphs=graphs)) as each:
        for index, _ in enumerate(each, 1):
            if index == chunks:
                break
        clip.finish_launches()


def synchronous(clip: Clip, into: Into) -> None:
    """Decode a chunk, ``.cpu()``, keep it; and again."""
    with contextlib.closing(rendered(clip)) as each, _kept(clip, into) as keep:
        for chunk in each:
            keep(chunk.pixels.flatten(0, 1).cpu().numpy())


def people(clip: Clip, into: Into) -> None:
    """Decode all of it, make pictures of it, keep them: a pipeline's and an export's last lines."""
    _all_at_once(clip, into, clip.whole)


def fastvae(clip: Clip, into: Into, decode: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The same by fastvae's own ``decode``, which `fastvae_of` gives."""
    _all_at_once(clip, into, decode)


def fastvae_of(clip: Clip, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What fastvae decodes with, if it is installed and made for this; it copies the weights.

    Args:
        clip: With the autoencoder.
        device: Where it decodes; there are no kernels but for CUDA.
    """
    known = clip.codec.family == "AutoencoderKLWan" and device.type == "cuda"
    if not known or find_spec("fastvae") is None:
        return None
    decoder = importlib.import_module("fastvae").FastVAEDecoder.from_vae(clip.vae)
    return cast("Callable[[torch.Tensor], torch.Tensor]", decoder.decode)


async def stream(clip: Clip, into: Into, mode: Mode = "exact") -> StreamInfo:
    """Streamvae.

    Returns:
        What was known of the stream at its end.
    """
    sinks = sinks_of(clip, into)
    fps = FPS if into == "mp4" else None
    streaming = stream_decode(clip.z, clip.vae, sinks=sinks, fps=fps, mode=mode)
    await streaming.finish()
    return streaming.info


def sinks_of(clip: Clip, into: Into) -> tuple[Sink, ...]:
    """Where a stream keeps its frames."""
    if into == "nothing":
        return ()
    path = clip.scratch / f"out.{into}"
    if into == "raw":
        return (RawFile(path),)
    if clip.real is None:
        return (VideoFile(path, crf=CRF, preset=PRESET),)
    return (RealContent(path, clip.real, clip.planes),)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Keep streams that begin meanwhile from CUDA graphs."""
    before = os.environ.get(GRAPHS)
    os.environ[GRAPHS] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[GRAPHS]
        else:
            os.environ[GRAPHS] = before


def _all_at_once(clip: Clip, into: Into, decode: Callable[[torch.Tensor], torch.Tensor]) -> None:
    from diffusers.video_processor import VideoProcessor

    with torch.no_grad():
        video = decode(clip.z)
    frames: npt.NDArray[np.float32] = VideoProcessor().postprocess_video(video, output_type="np")[0]
    del video
    with _kept(clip, into) as keep:
        if into != "nothing":
            for picture in [(frame * 255).astype(np.uint8, order="C") for frame in frames]:
                keep(picture[None])


@contextlib.contextmanager
def _kept(clip: Clip, into: Into) -> Iterator[Callable[[npt.NDArray[np.uint8]], None]]:
    """What keeps pictures (N, H, W, 3), uint8, in whatever it is, as bare as can be."""
    path = clip.scratch / f"out.{into}"
    if into == "nothing":
        yield lambda _: None
    elif into == "raw":
        with path.open("wb", buffering=0) as file:

            def write(frames: npt.NDArray[np.uint8]) -> None:
                left = np.ascontiguousarray(frames).reshape(-1).data
                while left:
                    left = left[file.write(left) :]

            yield write
    else:
        yield from _encoded(clip, path)


def _encoded(clip: Clip, path: Path) -> Iterator[Callable[[npt.NDArray[np.uint8]], None]]:
    made: list[BareVideo] = []
    done = 0

    def encode(frames: npt.NDArray[np.uint8]) -> None:
        nonlocal done
        if not made:
            size = (frames.shape[2], frames.shape[1])
            made.append(BareVideo(path, size, fps=FPS, crf=CRF, preset=PRESET))
        real = frames if clip.real is None else clip.real[done : done + len(frames)]
        done += len(frames)
        for picture in real:
            made[0].encode(picture)

    yield encode
    for one in made:
        one.close()
