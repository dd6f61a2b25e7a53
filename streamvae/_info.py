"""What ``streamvae info`` and the end of ``streamvae decode`` tell."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from ._chunks import StreamInfo
from ._stats import StreamStats
from ._terminal import UNITS, seconds
from .codecs import ModuleCodec, codec_for, known_families
from .latents import open_latents
from .sinks import BY_SUFFIX


def versions(ours: str) -> Iterator[str]:
    """What is installed here, beside streamvae ``ours``, and what is known."""
    installed = (f"{name} {_version(name)}" for name in ("torch", "diffusers", "av"))
    yield f"streamvae {ours}, {', '.join(installed)}, python {platform.python_version()}"
    yield f"devices: {', '.join(_devices())}"
    yield f"families: {', '.join(known_families())}"
    absent = () if find_spec("av") else (".flac", ".mp4", ".y4m")
    missing = dict.fromkeys(absent, " (needs: pip install 'streamvae[video]')")
    yield f"sinks: {', '.join(suffix + missing.get(suffix, '') for suffix in BY_SUFFIX)}"


def latents(path: Path) -> tuple[int, ...]:
    """The shape of the latents in a file.

    Raises:
        LatentsError: It holds none.
    """

    async def shape() -> tuple[int, ...] | None:
        source = open_latents(path, lambda _: None)
        try:
            await source.open()
            return source.shape
        finally:
            await source.aclose()

    return asyncio.run(shape()) or ()


def plan(shape: tuple[int, ...] | None, vae: torch.nn.Module, *, embedded: bool) -> Iterator[str]:
    """What an autoencoder is, and what it makes of latents of ``shape``.

    Raises:
        LatentsError: It does not decode latents of this shape.
    """
    codec = codec_for(vae)
    name = f"{codec.family}{', the embedded one' if embedded else ''}"
    yield f"vae: {name}, {str(codec.dtype).removeprefix('torch.')}, C = {codec.channels}"
    yield f"exact: {codec.exactness}"
    if shape is None:
        return
    yield f"latents: {', '.join(codec.layout)} = {', '.join(map(str, shape))}"
    codec.check(shape)
    cut = codec.cut(shape[codec.axis], None, "exact")
    length, unit = shape[codec.axis], UNITS[codec.kind]
    picture = codec.picture(shape)
    size = "" if picture is None else f" of {picture[1]}x{picture[0]}"
    chunks = 1 + max(0, -(-(length - cut.first) // cut.rest))
    yield f"gives: {codec.frames(length)} {unit}{size}"
    yield f"chunks: {chunks}, of {cut.first} latent(s) first, then of {cut.rest}"
    if isinstance(codec, ModuleCodec):
        yield from codec.plan(shape).memory


def summary(info: StreamInfo, stats: StreamStats, files: Sequence[str]) -> Iterator[str]:
    """What a stream was like."""
    unit = UNITS[info.kind]
    size = "" if info.width is None else f" of {info.width}x{info.height}"
    rate = stats.frames / stats.total if stats.total else 0.0
    yield (
        f"{stats.frames} {unit}{size} in {seconds(stats.total)} ({rate:.1f} {unit}/s), "
        f"the first after {seconds(stats.first_chunk)}: {', '.join(files)}"
    )
    yield stats.bottleneck


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _devices() -> Iterator[str]:
    yield f"cpu ({torch.get_num_threads()} threads)"
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index} ({torch.cuda.get_device_name(index)})"
