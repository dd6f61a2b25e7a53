"""Steady chunks as CUDA graphs: bit for bit, beside other streams, and nothing poisoned."""

import asyncio
import random
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from streamvae import release, stream_decode, warmup
from streamvae.backends._cuda import CudaDriver
from streamvae.backends._graphs import CudaGraph, CudaGraphs
from streamvae.backends._streamed import StreamedBackend
from streamvae.codecs import codec_for
from streamvae.fast._slots import slots_of
from tests import tiny
from tests.families import causal, partition

from . import card

pytestmark = pytest.mark.cuda

#: Latents of a picture of 720x1280.
LARGE = (90, 160)


class Spoiled(CudaGraphs):
    """Graphs whose recording goes wrong, after it has begun."""

    def __init__(self, spoil: Callable[[], object]) -> None:
        super().__init__(card.DEVICE)
        self.spoil = spoil

    def capture(self, work: Callable[[], torch.Tensor]) -> CudaGraph:
        """Record until something happens."""

        def spoiled() -> torch.Tensor:
            frames = work()
            self.spoil()
            return frames

        return super().capture(spoiled)


class SpoiledDriver(CudaDriver):
    """A device on which nothing can be recorded."""

    def __init__(self, spoil: Callable[[], object]) -> None:
        super().__init__(card.DEVICE)
        self.graphs = Spoiled(spoil)


def waits() -> object:
    """What a graph cannot hold: the host waits for the device."""
    return torch.ones((), device=card.DEVICE).item()


def fills_memory() -> object:
    """More than there is."""
    return torch.empty(1 << 50, dtype=torch.uint8, device=card.DEVICE)


def raises() -> object:
    """Any error."""
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
async def test_equal(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Fresh and used slots, several lengths, batch 2, every dtype."""
    vae = make().to(card.DEVICE, dtype)
    for steps, seed in ((7, 1), (3, 2), (9, 3)):
        z = card.latents(vae, steps, seed=seed).repeat(seed % 2 + 1, 1, 1, 1, 1)
        given = stream_decode(z, vae, output="float32")
        assert card.equal(await given.collect(), card.whole(vae, z, "float32"))
        assert given.info.step == "graph"


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
async def test_tiles(make: Callable[[], nn.Module]) -> None:
    """With spatial tiles each has its graph."""
    vae = make().to(card.DEVICE, torch.bfloat16)
    vae.enable_tiling(64, 64, 48, 48)
    for seed in (1, 2):
        z = card.latents(vae, 5, 11, 9, seed=seed)
        given = stream_decode(z, vae)
        assert card.equal(await given.collect(), card.whole(vae, z))
        assert given.info.step == "graph"


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (causal.mochi, 5),
        (partition.cogvideox, 8),
        (partition.kvae_video, 14),
        (partition.kandinsky6_sr, 14),
        (partition.magvit, 5),
    ],
)
async def test_state_from_chunk_to_chunk(make: Callable[[], nn.Module], steps: int) -> None:
    """Families with state of another form: as kernel by kernel, fresh slots and used ones."""
    vae = make().to(card.DEVICE, torch.bfloat16)
    channels = codec_for(vae).channels
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(1, channels, steps, 8, 6, generator=generator).to(vae.device, vae.dtype)
        torch.cuda.synchronize()
        given = stream_decode(z, vae, output="float32")
        frames = await given.collect()
        assert given.info.step == "graph"
        plain = stream_decode(z, codec_for(vae), backend=_without_graphs(), output="float32")
        assert card.equal(frames, await plain.collect())


def _without_graphs() -> StreamedBackend:
    driver = CudaDriver(card.DEVICE)
    driver.graphs = None
    return StreamedBackend(driver)


async def test_two_interleaved_and_cancels(real: AutoencoderKLWan) -> None:
    """The shipped configuration: two streams at once, after twenty cancels at random moments."""
    choice = random.Random(0)
    z, other = (card.latents(real, 21, 30, 52, seed=seed) for seed in (1, 2))
    for _ in range(20):
        task = asyncio.create_task(stream_decode(z, real).collect())
        await asyncio.sleep(choice.random() * 0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    given = await asyncio.gather(
        stream_decode(z, real).collect(), stream_decode(other, real).collect()
    )
    assert card.equal(given[0], card.whole(real, z))
    assert card.equal(given[1], card.whole(real, other))


async def test_equal_at_full_size(real: AutoencoderKLWan) -> None:
    """720x1280 of the shipped configuration, by a graph made in a warm-up of at most 3 s."""
    await stream_decode(card.latents(real, 3, 30, 52), real).collect()
    release()
    began = time.perf_counter()
    info = await warmup(real, (1, 16, 21, *LARGE))
    assert time.perf_counter() - began <= 3
    assert info.step == "graph"
    z = card.latents(real, 9, *LARGE)
    assert card.equal(await stream_decode(z, real).collect(), card.whole(real, z))
    assert slots_of(real).nbytes > 4e9
    assert release() > 4e9


@pytest.mark.parametrize("spoil", [waits, fills_memory, raises])
async def test_failing_poisons_nothing(spoil: Callable[[], object], vae: AutoencoderKLWan) -> None:
    """A capture that fails: frames right, said once, memory where it was, the next one works."""
    release()
    backend = StreamedBackend(SpoiledDriver(spoil))
    z = card.latents(vae, 7)
    given = stream_decode(z, vae, backend=backend)
    assert card.equal(await given.collect(), card.whole(vae, z))
    assert given.info.step.startswith("eager (it could not be recorded")
    allocated = []
    for _ in range(4):
        given = stream_decode(z, vae)
        assert card.equal(await given.collect(), card.whole(vae, z))
        assert given.info.step == "graph"
        allocated.append(torch.cuda.memory_reserved())
    assert allocated[-1] == allocated[1]


async def test_captures_beside_a_stream(real: AutoencoderKLWan, vae: AutoencoderKLWan) -> None:
    """While one stream runs, others record: its frames stay right, and so do theirs."""
    z, small = card.latents(real, 41, 30, 52), [card.latents(vae, 5, 4 + k, 8) for k in range(8)]
    long = asyncio.create_task(stream_decode(z, real).collect())
    for one in small:
        given = stream_decode(one, vae)
        assert card.equal(await given.collect(), card.whole(vae, one))
    assert card.equal(await long, card.whole(real, z))


async def test_weights_that_move(vae: AutoencoderKLWan) -> None:
    """A model that was away and came back is read where it is now."""
    z = card.latents(vae, 5)
    for _ in range(2):
        assert card.equal(await stream_decode(z, vae).collect(), card.whole(vae, z))
        vae.to("cpu")
        torch.cuda.synchronize()
        vae.to(card.DEVICE)
