"""Streams of latents in host memory: these are on their way while the chunk before is decoded."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from streamvae import stages, stream_decode
from streamvae._chunks import LatentChunk
from streamvae._pixels import render
from streamvae._recipe import Recipe
from streamvae.testing import FakeBackend, TagCodec, one_by_one, run_virtual, tagged_latents
from tests import tiny

from .flow import UNIT, Scene, take, virtual


def uploading(**options: float) -> FakeBackend:
    """A device whose latents have a way to go."""
    return FakeBackend(**({"decode": 10 * UNIT, "download": 3 * UNIT, "upload": UNIT} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("upload", [0.0, UNIT, 15 * UNIT])
@pytest.mark.parametrize("latents_per_chunk", [1, 3])
@pytest.mark.parametrize("given", ["whole", "one by one", "pieces"])
@virtual
async def test_every_frame_comes_in_order(
    given: str, latents_per_chunk: int, upload: float
) -> None:
    """Each frame comes once, in order, with its own pixels, however slow the way is."""
    scene = Scene(backend=uploading(upload=upload), codec=TagCodec(2, held=1))
    seen = list[int]()
    latents = {
        "whole": scene.latents,
        "one by one": one_by_one(scene.latents),
        "pieces": [scene.latents[:, :, :2], scene.latents[:, :, 2:3], scene.latents[:, :, 3:]],
    }[given]
    await take(scene.stream(latents, latents_per_chunk=latents_per_chunk), seen)
    assert seen == scene.sink.tags == scene.expected
    await scene.nothing_left()


@virtual
async def test_streams_share_the_slots() -> None:
    """Streams side by side each get their own latents through the same two slots."""
    scene = Scene(backend=uploading(upload=4 * UNIT))
    given = [tagged_latents(10, start=60 * number) for number in range(4)]

    async def one(latents: torch.Tensor) -> list[int]:
        seen = list[int]()
        await take(scene.stream(latents, sinks=()), seen)
        return seen

    results = await asyncio.gather(*map(one, given))
    assert results == [scene.codec.expected(latents) for latents in given]
    await scene.nothing_left()


def test_a_chunk_s_latents_come_while_the_one_before_is_decoded() -> None:
    """Twenty chunks take no longer than with latents that are there, but for the first."""

    async def seconds(backend: FakeBackend) -> float:
        clock = asyncio.get_running_loop().time
        began = clock()
        latents = tagged_latents(20)
        await stream_decode(latents, TagCodec(), backend=backend).finish()
        return clock() - began

    async def main(upload: float | None) -> float:
        return await seconds(FakeBackend(decode=0.2, download=0.05, upload=upload))

    there, coming = run_virtual(main(None)), run_virtual(main(0.1))
    assert there + 0.1 <= coming <= there + 0.11


@pytest.mark.parametrize("after", [0, 1, 5])
@virtual
async def test_a_stream_that_is_left_gives_its_slots_back(after: int) -> None:
    """Wherever it is left, slots and chunks are given back and the next stream is right."""
    scene = Scene(backend=uploading(upload=5 * UNIT))
    seen = list[int]()
    async with scene.stream() as stream:
        if after:
            await take(stream, seen, stop_after=after)
        else:
            await asyncio.sleep(UNIT)
    await scene.check(seen)


@pytest.mark.parametrize("timeout", [UNIT, 7 * UNIT])
@virtual
async def test_a_cancel_at_any_moment(timeout: float) -> None:
    """A cancelled wait for a slot, or for an upload, loses neither."""
    scene = Scene(backend=uploading(upload=6 * UNIT))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(timeout):
            await take(scene.stream(), [])
    await scene.nothing_left()
    scene.sink.calls.clear()
    await scene.next_is_right()


async def test_all_latents_at_once() -> None:
    """An autoencoder that walks all latents first gets them, uploaded too, and is exact."""
    vae = tiny.wan21()
    z = torch.randn(1, 4, 4, 4, 6, generator=torch.Generator().manual_seed(3))
    frames = await stream_decode(z, vae, output="float32", backend=uploading()).collect()
    with torch.no_grad():
        expected = render(vae.decode(z).sample, "video", "float32").numpy()
    assert np.array_equal(frames, expected)


async def test_many_latents_at_once_come_in_parts() -> None:
    """What is large comes a few latents at a time; the first launch waits for it and holds it."""
    codec, backend = TagCodec(), FakeBackend(upload=0.0, manual=True)
    whole = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2048, 1024).contiguous()
    recipe = Recipe(codec, codec.decoder(), "uint8", everything=(whole,))
    uploading = asyncio.ensure_future(stages._upload_everything(recipe, backend, None))
    uploaded = await uploading
    assert [part.shape[2] for part in uploaded.tensors] == [2, 1]
    assert len(uploaded.arrived) == 2
    assert recipe.everything == uploaded.tensors
    for event in backend.arrivals:
        event.set()
    assert all(event.query() for event in uploaded.arrived)
    assert torch.equal(torch.cat(uploaded.tensors, 2), whole)


async def test_everything_is_held_until_the_first_launch_is_done() -> None:
    """All latents at once are read by the first launch, which holds them until it is done."""
    codec, backend = TagCodec(), FakeBackend(upload=0.0, manual=True)
    latents = tagged_latents(2)
    recipe = Recipe(codec, codec.decoder(), "uint8", everything=(latents,))

    async def chunks() -> Iterator[LatentChunk]:  # type: ignore[misc]
        for step in range(2):
            yield LatentChunk(step, (latents[:, :, step : step + 1],))

    launches = stages.decode(chunks(), recipe, backend)  # type: ignore[arg-type]
    await anext(launches)
    held = [hold.things for hold in backend._held.holds]
    assert [len(things) for things in held] == [2]
    for event in backend.arrivals:
        event.set()
    await anext(launches)
    assert [len(hold.things) for hold in backend._held.holds] == [2, 1]
    for event in (*backend.arrivals, *backend.launches):
        event.set()
    await launches.aclose()
    recipe.close()
