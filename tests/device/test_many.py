"""Many streams on one device, and streams that end early."""

import asyncio
import gc
import random
import threading
import time

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import stream_decode
from streamvae.backends import for_device
from streamvae.backends._streamed import StreamedBackend

from . import card

pytestmark = pytest.mark.cuda

CANCELS = 1000
WARM_UP = 100


async def test_streams_side_by_side(vae: AutoencoderKLWan) -> None:
    """Streams interleaved on one autoencoder give what each gives alone."""
    given = [card.latents(vae, 4 + seed, seed=seed) for seed in range(4)]
    expected = [card.whole(vae, z) for z in given]
    together = await asyncio.gather(*(stream_decode(z, vae).collect() for z in given))
    assert all(card.equal(*pair) for pair in zip(together, expected, strict=True))


async def test_somebody_else_decodes_in_between(vae: AutoencoderKLWan) -> None:
    """A ``vae.decode`` of somebody else's between two chunks changes neither."""
    z, others = card.latents(vae, 6), card.latents(vae, 3, seed=5)
    expected, theirs = card.whole(vae, z), card.whole(vae, others)
    chunks = []
    async for chunk in stream_decode(z, vae).chunks():
        chunks.append(chunk.data)
        assert card.equal(card.whole(vae, others), theirs)
    assert b"".join(chunk.tobytes() for chunk in chunks) == expected.tobytes()


def test_loops_in_several_threads(vae: AutoencoderKLWan) -> None:
    """Event loops in three threads share the device."""
    given = [card.latents(vae, 5, seed=seed) for seed in range(3)]
    expected = [card.whole(vae, z) for z in given]
    got: dict[int, object] = {}

    def run(index: int) -> None:
        got[index] = asyncio.run(_collected(given[index], vae))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(card.equal(got[index], expected[index]) for index in range(3))


async def _collected(z: torch.Tensor, vae: AutoencoderKLWan) -> object:
    return await stream_decode(z, vae).collect()


async def test_a_thousand_cancels(vae: AutoencoderKLWan) -> None:
    """Cancelled at any moment: memory and threads stay flat and the next stream is right."""
    z = card.latents(vae, 12)
    expected = card.whole(vae, z)
    dice = random.Random(0)
    footprint: tuple[int, int] | None = None
    for count in range(CANCELS):
        task = asyncio.ensure_future(_collected(z, vae))
        await asyncio.sleep(dice.random() * 0.02)
        task.cancel()
        await asyncio.wait([task])
        if count == WARM_UP:
            footprint = await _footprint()
    assert footprint is not None
    reserved, threads = await _footprint()
    assert reserved <= footprint[0] * 1.02 + 2**21
    assert threads <= footprint[1]
    assert card.equal(await _collected(z, vae), expected)


async def _footprint() -> tuple[int, int]:
    """Reserved bytes and threads, when the device has nothing left of anybody's."""
    backend = for_device(card.DEVICE)
    assert isinstance(backend, StreamedBackend)
    await card.idle(backend)
    gc.collect()
    return torch.cuda.memory_reserved(card.DEVICE), threading.active_count()


async def test_a_cancel_leaves_the_device_idle(
    real: AutoencoderKLWan, backend: StreamedBackend
) -> None:
    """After a cancel the device finishes what was launched, two chunks at most, and is idle."""
    z = card.latents(real, 21, 60, 104)
    arrivals: list[float] = []
    stream = stream_decode(z, real, backend=backend)
    async with stream:
        async for _ in stream.chunks():
            arrivals.append(time.perf_counter())
            if len(arrivals) == 6:
                break
    left = time.perf_counter()
    await card.launched_is_done(backend)
    chunk = (arrivals[-1] - arrivals[1]) / (len(arrivals) - 2)
    assert time.perf_counter() - left <= 2.1 * chunk + 0.005
