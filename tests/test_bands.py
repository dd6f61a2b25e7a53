"""Bands of pictures on their whole way: to chunks, frames, arrays and sinks."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streamvae import (
    Band,
    DeviceFrames,
    HostChunk,
    NonFiniteError,
    NpyFile,
    RawFile,
    ShapeError,
    UsageError,
    iter_decode,
    stream_decode,
)
from streamvae._bands import Joiner
from streamvae._recipe import Recipe
from streamvae.codecs import codec_for
from streamvae.sinks import ThreadSink
from tests import tiny
from tests.codecs.walk import noise, whole
from tests.families import pictures


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    """An AutoencoderKL that gives pictures of 13 x 7 latents in bands of 12, 12 and 2 rows."""
    made = tiny.kl()
    made.enable_tiling()
    made.tile_latent_min_size, made.tile_sample_min_size = 8, 16
    return made


LATENTS = noise(3, 4, 13, 7)
ROWS = [range(12), range(12, 24), range(24, 26)]


def expected(vae: nn.Module, latents: torch.Tensor = LATENTS) -> np.ndarray:
    """What diffusers gives for each item, (N, H, W, C)."""
    each = [whole(vae, item) for item in latents.split(1)]
    return torch.cat(each).permute(0, 2, 3, 1).float().numpy()


@pytest.mark.parametrize("given", ["tensor", "one by one"])
async def test_chunks_are_bands(vae: nn.Module, given: str) -> None:
    """Chunks are bands with their rows, each row once, in order; joined they are the pictures."""
    latents = LATENTS if given == "tensor" else iter(LATENTS.split(1))
    async with stream_decode(latents, vae, output="float32") as stream:
        chunks = [chunk async for chunk in stream.chunks()]
        assert stream.info.bands == 3

    assert [chunk.band for chunk in chunks] == [Band(rows, 26) for rows in ROWS] * 3
    assert [chunk.start for chunk in chunks] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [len(chunk) for chunk in chunks] == [0, 0, 1] * 3
    assert [chunk.index for chunk in chunks] == list(range(9))
    joined = [np.concatenate([one.data[0, 0] for one in chunks[at : at + 3]]) for at in (0, 3, 6)]
    assert np.array_equal(np.stack(joined), expected(vae))
    assert stream.stats.frames == 3
    assert stream.stats.chunks == 9
    with pytest.raises(UsageError, match=r"rows 12 to 24 of 26.*chunks\(bands=False\)"):
        next(chunks[1].frames(None))


async def test_frames_are_pictures(vae: nn.Module) -> None:
    """Iterating over a stream gives whole pictures, read-only, and so does chunks(bands=False)."""
    frames = [frame async for frame in stream_decode(LATENTS, vae, output="float32")]
    chunks = [
        chunk async for chunk in stream_decode(LATENTS, vae, output="float32").chunks(bands=False)
    ]

    assert [frame.index for frame in frames] == [0, 1, 2]
    assert np.array_equal(np.stack([np.asarray(frame.data) for frame in frames]), expected(vae))
    assert not any(frame.data.flags.writeable for frame in frames)  # type: ignore[union-attr]
    assert [(chunk.start, len(chunk), chunk.band) for chunk in chunks] == [
        (0, 1, None), (1, 1, None), (2, 1, None),
    ]  # fmt: skip
    assert [chunk.index for chunk in chunks] == [0, 3, 6]
    assert np.array_equal(np.concatenate([chunk.data[:, 0] for chunk in chunks]), expected(vae))
    by_hand = [np.asarray(frame.data) for frame in iter_decode(LATENTS, vae, output="float32")]
    assert np.array_equal(np.stack(by_hand), expected(vae))


@pytest.mark.parametrize("known", [True, False])
async def test_collected(vae: nn.Module, known: bool) -> None:
    """All pictures in one array, of known number or not."""
    latents = LATENTS if known else iter(LATENTS.split(1))
    given = await stream_decode(latents, vae, output="float32").collect()

    assert np.array_equal(given, expected(vae))


async def test_on_the_device(vae: nn.Module) -> None:
    """Bands can stay on the device; frames are then whole pictures there."""
    chunks = [chunk async for chunk in stream_decode(LATENTS, vae, output="device").chunks()]
    frames = [frame async for frame in stream_decode(LATENTS, vae, output="device")]

    assert all(isinstance(chunk, DeviceFrames) for chunk in chunks)
    assert [chunk.band.rows for chunk in chunks if chunk.band] == ROWS * 3
    assert sum(map(len, chunks)) == 3
    assert all(isinstance(frame.data, torch.Tensor) for frame in frames)
    assert np.array_equal(np.stack([np.asarray(frame.data) for frame in frames]), expected(vae))


async def test_progress_counts_pictures(vae: nn.Module) -> None:
    """Progress is that of pictures, not of bands."""
    said: list[tuple[int, int | None]] = []
    await stream_decode(LATENTS, vae, progress=lambda *said_now: said.append(said_now)).finish()

    assert said == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("output", ["uint8", "float32"])
async def test_files_take_bands(vae: nn.Module, tmp_path: Path, output: str) -> None:
    """Files of bare numbers take bands as they come and end up with whole pictures."""
    raw, npy = RawFile(tmp_path / "a.raw"), NpyFile(tmp_path / "a.npy")
    stream = stream_decode(LATENTS, vae, sinks=(raw, npy), output=output)  # type: ignore[arg-type]
    async with stream:
        pictures_then = []
        async for chunk in stream.chunks():
            assert chunk.band is not None
            # Ahead of the reader, never behind.
            assert npy.committed >= chunk.start + len(chunk)
            pictures_then.append(chunk.data[0, 0])
    joined = np.concatenate(pictures_then).reshape(3, 26, -1, 3)

    assert np.array_equal(np.load(tmp_path / "a.npy"), joined)
    assert np.array_equal(np.fromfile(tmp_path / "a.raw", joined.dtype), joined.ravel())
    assert '"shape": [\n  3,\n  26,' in (tmp_path / "a.raw.json").read_text()


async def test_broken_off_within_a_picture(vae: nn.Module, tmp_path: Path) -> None:
    """What is left of a stream that ends within a picture is the whole pictures before it."""
    raw, npy = RawFile(tmp_path / "a.raw"), NpyFile(tmp_path / "a.npy")

    async def latents() -> AsyncIterator[torch.Tensor]:
        yield LATENTS[:1]
        yield LATENTS[1:2]
        raise RuntimeError("no more")

    async with stream_decode(latents(), vae, sinks=(raw, npy)) as stream:
        async for chunk in stream.chunks():
            if chunk.start == 1:
                break
    first = await stream_decode(LATENTS[:1], vae).collect()
    for sink in (raw, npy):
        assert sink.committed in {1, 2}  # as far as the sinks were ahead
    kept = np.load(tmp_path / "a.npy.partial")

    assert len(kept) == npy.committed
    assert np.array_equal(kept[:1], first)
    size = (tmp_path / "a.raw.partial").stat().st_size
    assert size == raw.committed * np.asarray(first).nbytes


@pytest.mark.parametrize("sink", [RawFile, NpyFile])
async def test_sinks_refuse_gaps(vae: nn.Module, tmp_path: Path, sink: type[RawFile]) -> None:
    """A band that does not follow on the one before is refused; without a picture nothing stays."""
    stream = stream_decode(LATENTS[:1], vae)
    chunks = [chunk async for chunk in stream.chunks()]
    file = sink(tmp_path / f"a.{sink.__name__}")
    await file.open(stream.info)
    assert isinstance(chunks[0], HostChunk)
    assert isinstance(chunks[2], HostChunk)
    await file.write(chunks[0])
    with pytest.raises(UsageError, match="expected the rows at 12, got 24"):
        await file.write(chunks[2])
    await file.abort()

    assert not list(tmp_path.iterdir())


async def test_few_bands_are_alive(vae: nn.Module) -> None:
    """However many bands a picture has, no more are alive than the design allows for chunks."""
    seen: list[weakref.ref[object]] = []
    alive = []

    class Tap(ThreadSink):
        takes_bands = True

        def put(self, chunk: HostChunk) -> None:
            seen.append(weakref.ref(chunk.data))
            alive.append(sum(ref() is not None for ref in seen))

    async with stream_decode(noise(1, 4, 120, 5), vae, sinks=Tap("tap")) as stream:
        assert stream.info.bands == 20
        async for chunk in stream.chunks():
            del chunk

    assert len(seen) == 20
    assert max(alive) <= 7
    assert all(ref() is None for ref in seen)


async def test_sinks_of_pictures(vae: nn.Module, tmp_path: Path) -> None:
    """Where a sink takes whole pictures only, everybody gets those, and info says so."""
    taken: list[HostChunk] = []

    async def call(chunk: HostChunk) -> None:
        taken.append(chunk)

    async with stream_decode(LATENTS, vae, sinks=(call, tmp_path / "a.npy")) as stream:
        assert stream.info.bands == 1
        chunks = [chunk async for chunk in stream.chunks()]

    assert all(one is other for one, other in zip(taken, chunks, strict=True))
    assert [chunk.band for chunk in chunks] == [None] * 3
    assert np.array_equal(
        np.load(tmp_path / "a.npy"), np.concatenate([one.data[:, 0] for one in taken])
    )


async def test_transforms_get_pictures(vae: nn.Module) -> None:
    """What looks at neighbouring rows sees whole pictures."""
    seen: list[tuple[int, ...]] = []

    def flipped(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(pixels.shape))
        return pixels.flip(2)

    async with stream_decode(LATENTS, vae, transform=flipped, output="float32") as stream:
        assert stream.info.bands == 1
        chunks = [chunk async for chunk in stream.chunks()]

    assert seen == [(1, 3, *expected(vae).shape[1:3])] * 3
    given = np.concatenate([chunk.data[:, 0] for chunk in chunks])
    assert np.array_equal(given, expected(vae)[:, ::-1])


@torch.no_grad()
def test_tiling_changed_meanwhile() -> None:
    """Tiling that is switched off before its launch ends the stream with what to do, not wrongly.

    Within a picture it may be switched off.
    """
    changed = tiny.kl()
    changed.enable_tiling()
    changed.tile_latent_min_size, changed.tile_sample_min_size = 8, 16
    codec = codec_for(changed)
    recipe = Recipe(codec, codec.decoder(), "float32")
    pieces = (LATENTS[:1],)
    bands = recipe.bands(pieces)
    given = [recipe.decode(pieces, bands[0])]
    changed.disable_tiling()
    given += [recipe.decode(pieces, band) for band in bands[1:]]
    joined = torch.cat([one.pixels for one in given if one is not None], 2)
    with pytest.raises(ShapeError, match="12 rows of AutoencoderKL, got 0; leave tiling as it is"):
        recipe.decode(pieces, bands[0])
    recipe.close()
    changed.enable_tiling()

    assert np.array_equal(joined[:, 0].numpy(), expected(changed, LATENTS[:1]))


async def test_not_finite(vae: nn.Module) -> None:
    """Latents that are not finite are told with the first band."""
    latents = LATENTS.clone()
    latents[1, :, 12] = torch.nan
    seen = []
    with pytest.raises(NonFiniteError, match="chunk 3: the latents"):
        async for chunk in stream_decode(latents, vae).chunks():
            seen.append(chunk.index)

    assert seen == [0, 1, 2]


async def test_halo_in_fast_mode() -> None:
    """AutoencoderTiny in fast mode gives rows with a halo, whose pictures are right to rounding."""
    small = pictures.tiny()
    small.tile_latent_min_size = 5
    latents = noise(2, 4, 12, 3)
    async with stream_decode(latents, small, mode="fast", output="float32") as stream:
        given = await stream.collect()
        assert stream.info.bands == 3
    async with stream_decode(latents, small, output="float32") as stream:
        assert stream.info.bands == 1

    assert np.abs(np.asarray(given) - expected(small, latents)).max() <= 2e-6


async def test_joiner_lets_go() -> None:
    """Its thread starts with the first band and ends when it is closed or dropped."""

    def thread() -> threading.Thread | None:
        named = (one for one in threading.enumerate() if one.name == "streamvae join")
        return next(named, None)

    band = HostChunk(0, 0, "image", np.zeros((1, 1, 2, 4, 3), np.uint8), Band(range(2), 4))
    plain = HostChunk(0, 0, "image", np.zeros((1, 1, 4, 4, 3), np.uint8))
    joiner = Joiner(bands=False)
    assert await joiner.add(plain) is plain
    assert thread() is None
    assert await joiner.add(band) is None
    running = thread()
    assert running is not None
    joiner.close()
    running.join(10)
    assert not running.is_alive()
