"""Chunks as CUDA graphs: bit for bit, recorded in warm-ups alone, and nothing poisoned."""

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from streamvae import release, stream_decode, warmup
from streamvae.backends import _libcuda
from streamvae.backends._cuda import CudaDriver, mark
from streamvae.backends._graphs import CudaGraph, CudaGraphs
from streamvae.backends._streamed import StreamedBackend
from streamvae.codecs import codec_for
from streamvae.fast._slots import idle_slots
from tests import tiny
from tests.families import causal, partition

from . import card

pytestmark = pytest.mark.cuda

#: Latents of a picture of 720x1280.
LARGE = (90, 160)


def shape_of(z: torch.Tensor) -> tuple[int, ...]:
    """The shape to warm up for, with latents enough."""
    return (*z.shape[:2], 21, *z.shape[3:])


class Spoiled(CudaGraphs):
    """Graphs whose recording goes wrong, after it has begun."""

    def __init__(self, spoil: Callable[[], object]) -> None:
        super().__init__(card.DEVICE)
        self.spoil = spoil

    def capture(self, work: Callable[[], torch.Tensor]) -> CudaGraph:
        """Record until something happens."""

        def spoiled() -> torch.Tensor:
            frames = work()
            if torch.cuda.is_current_stream_capturing():
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


def draws() -> object:
    """Random numbers of the default generator, which would be the same at every replay."""
    return torch.randn(4, device=card.DEVICE)


def raises() -> object:
    """Any error."""
    raise RuntimeError("on purpose")


SPOILS = [waits, fills_memory, draws, raises]


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
async def test_equal(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Fresh and used slots, several lengths, batch 2, every dtype."""
    vae = make().to(card.DEVICE, dtype)
    for batch in (1, 2):
        z = card.latents(vae, 7).repeat(batch, 1, 1, 1, 1)
        assert (await warmup(vae, shape_of(z))).step == "graph"
    for steps, seed in ((7, 1), (4, 2), (9, 3)):
        z = card.latents(vae, steps, seed=seed).repeat(seed % 2 + 1, 1, 1, 1, 1)
        given = stream_decode(z, vae, output="float32")
        assert card.equal(await given.collect(), card.whole(vae, z, "float32"))
        assert given.info.step == "graph"


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
async def test_tiles(make: Callable[[], nn.Module]) -> None:
    """With spatial tiles each has its graph."""
    vae = make().to(card.DEVICE, torch.bfloat16)
    vae.enable_tiling(64, 64, 48, 48)
    assert (await warmup(vae, (1, codec_for(vae).channels, 5, 11, 9))).step == "graph"
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
    plain = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(1, channels, steps, 8, 6, generator=generator).to(vae.device, vae.dtype)
        torch.cuda.synchronize()
        given = stream_decode(z, vae, output="float32")
        plain.append((z, await given.collect()))
        assert given.info.step == "eager"
    assert (await warmup(vae, (1, channels, steps, 8, 6))).step == "graph"
    for z, expected in plain:
        given = stream_decode(z, vae, output="float32")
        assert card.equal(await given.collect(), expected)
        assert given.info.step == "graph"


async def test_two_interleaved_and_cancels(real: AutoencoderKLWan) -> None:
    """The shipped configuration: two streams at once, after twenty cancels at random moments."""
    choice = random.Random(0)
    z, other = (card.latents(real, 21, 30, 52, seed=seed) for seed in (1, 2))
    await warmup(real, tuple(z.shape), streams=2)
    for _ in range(20):
        task = asyncio.create_task(stream_decode(z, real).collect())
        await asyncio.sleep(choice.random() * 0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    streams = stream_decode(z, real), stream_decode(other, real)
    given = await asyncio.gather(*(one.collect() for one in streams))
    assert [one.info.step for one in streams] == ["graph", "graph"]
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
    given = stream_decode(z, real)
    assert card.equal(await given.collect(), card.whole(real, z))
    assert given.info.step == "graph"
    assert sum(slot.nbytes for slot in idle_slots(real)) > 4e9
    assert release() > 4e9


@pytest.mark.parametrize("living", [False, True])
@pytest.mark.parametrize("spoil", SPOILS)
async def test_failing_poisons_nothing(
    spoil: Callable[[], object], living: bool, vae: AutoencoderKLWan
) -> None:
    """A recording that fails: said, random numbers and pinned memory as ever, the next one works.

    Without release() first, and with a living graph in the pool as well.
    """
    release()
    z = card.latents(vae, 7)
    driver = SpoiledDriver(lambda: None)
    backend = StreamedBackend(driver)
    if living:
        assert (await warmup(vae, shape_of(z), backend=backend)).step == "graph"
    driver.graphs.spoil = spoil
    torch.cuda.manual_seed(7)
    expected = torch.randn(8, device=card.DEVICE)
    torch.cuda.manual_seed(7)
    info = await warmup(vae, shape_of(z), streams=2, backend=backend)
    assert "it could not be recorded" in f"{info.step} {info.notes}"
    assert torch.equal(torch.randn(8, device=card.DEVICE), expected)
    assert torch.empty(1 << 20, dtype=torch.uint8, pin_memory=True).is_pinned()
    given = stream_decode(z, vae, backend=backend)
    assert card.equal(await given.collect(), card.whole(vae, z))
    assert given.info.step == ("graph" if living else "eager")
    driver.graphs.spoil = lambda: None
    assert (await warmup(vae, shape_of(z), streams=2, backend=backend)).step == "graph"
    torch.randn(8, device=card.DEVICE)
    allocated = []
    for _ in range(4):
        given = stream_decode(z, vae, backend=backend)
        assert card.equal(await given.collect(), card.whole(vae, z))
        assert given.info.step == "graph"
        allocated.append(torch.cuda.memory_reserved())
    assert allocated[-1] == allocated[1]


def test_a_graph_dropped_while_another_is_recorded() -> None:
    """Its destruction on the recording thread is no end of the recording."""
    driver, x = CudaDriver(card.DEVICE), torch.ones(8, device=card.DEVICE)
    torch.cuda.synchronize()
    with driver.on("compute"):
        held = [driver.graphs.capture(lambda: x * 2)]
        held[0].replay()

        def work() -> torch.Tensor:
            y = x * 2
            if torch.cuda.is_current_stream_capturing():
                held.clear()
            return y + 1

        graph = driver.graphs.capture(work)
        assert not held
        assert graph.replay().tolist() == [3.0] * 8


async def test_failures_keep_no_memory(vae: AutoencoderKLWan) -> None:
    """What recordings that failed took comes back."""
    release()
    z = card.latents(vae, 7)
    backend = StreamedBackend(SpoiledDriver(waits))
    reserved = []
    for _ in range(5):
        await warmup(vae, shape_of(z), backend=backend)
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[1]


async def test_weights_that_move(vae: AutoencoderKLWan) -> None:
    """A model that was away and came back is read where it is now."""
    z = card.latents(vae, 5)
    for _ in range(2):
        assert (await warmup(vae, shape_of(z))).step == "graph"
        assert card.equal(await stream_decode(z, vae).collect(), card.whole(vae, z))
        vae.to("cpu")
        torch.cuda.synchronize()
        vae.to(card.DEVICE)
        assert card.equal(await stream_decode(z, vae).collect(), card.whole(vae, z))


@torch.no_grad()
def relaid(vae: nn.Module) -> None:
    """Weights of another layout at their old places."""
    for part in vae.decoder.modules():
        if isinstance(part, nn.Conv3d):
            values = part.weight.detach().clone()
            strides = torch.empty_like(values, memory_format=torch.channels_last_3d).stride()
            part.weight.data = torch.as_strided(part.weight.data, part.weight.shape, strides)
            part.weight.copy_(values)
    torch.cuda.synchronize()


async def test_another_layout_at_the_same_places() -> None:
    """A graph of the old strides is not launched."""
    vae = card.wan(torch.float32)
    z = card.latents(vae, 6)
    await warmup(vae, shape_of(z))
    relaid(vae)
    given = stream_decode(z, vae, output="float32")
    assert card.equal(await given.collect(), card.whole(vae, z, "float32"))
    assert given.info.step.startswith("eager")


async def test_precision_switches() -> None:
    """Graphs go by torch's new switches, too."""
    vae = card.wan(torch.float32)
    z, conv = card.latents(vae, 6, 16, 16), torch.backends.cudnn.conv
    before = torch.backends.fp32_precision, conv.fp32_precision
    try:
        torch.backends.fp32_precision = "ieee"
        for precision, step in (("tf32", "graph"), ("ieee", "eager"), ("tf32", "graph")):
            conv.fp32_precision = precision
            if not idle_slots(vae):
                await warmup(vae, shape_of(z))
            given = stream_decode(z, vae, output="float32")
            assert card.equal(await given.collect(), card.whole(vae, z, "float32"))
            assert given.info.step.startswith(step)
    finally:
        torch.backends.fp32_precision, conv.fp32_precision = before


async def test_a_chunk_of_three_and_one_of_one(vae: AutoencoderKLWan) -> None:
    """A slot of three latents a chunk does not stand in the way of exact streams."""
    release()
    z = card.latents(vae, 7)
    await warmup(vae, shape_of(z), mode="fast", latents_per_chunk=3)
    for step in ("eager", "graph"):
        given = stream_decode(z, vae)
        assert card.equal(await given.collect(), card.whole(vae, z))
        assert given.info.step.partition(" ")[0] == step
        await warmup(vae, shape_of(z))


def test_streams_of_our_own() -> None:
    """Nothing that torch hands out later is one of our streams, and ours are one each for life."""
    ours = {_libcuda.own_stream(card.DEVICE, name).cuda_stream for name in ("compute", "copy")}
    assert len(ours) == 2
    assert CudaDriver(card.DEVICE)._compute.cuda_stream in ours
    others = {torch.cuda.Stream(card.DEVICE).cuda_stream for _ in range(100)}
    assert not ours & others
    assert _libcuda.own_stream(card.DEVICE, "copy").cuda_stream in ours


def test_our_streams_do_not_wait_for_the_default_one() -> None:
    """They are non-blocking: what is on the legacy stream is not waited for."""
    stream = _libcuda.own_stream(card.DEVICE, "compute")
    torch.cuda.synchronize()
    torch.cuda._sleep(card.CYCLES)
    with torch.cuda.stream(stream):
        event = torch.cuda.Event()
        event.record()
    event.synchronize()
    assert not torch.cuda.default_stream(card.DEVICE).query()
    torch.cuda.synchronize()


async def test_a_user_who_records(vae: AutoencoderKLWan) -> None:
    """Events are asked and chunks launched while somebody records in torch's default mode."""
    z = card.latents(vae, 21)
    expected = card.whole(vae, z)
    await stream_decode(z, vae).collect()
    side, x = torch.cuda.Stream(card.DEVICE), torch.ones(8, device=card.DEVICE)
    torch.cuda.synchronize()
    stop, failed, recorded = threading.Event(), [], 0

    def records() -> None:
        nonlocal recorded
        while not stop.is_set():
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.stream(side):
                    graph.capture_begin(capture_error_mode="global")
                    y = x * 2
                    for _ in range(200):
                        y = y + 1
                    graph.capture_end()
                recorded += 1
            except RuntimeError as error:
                failed.append(error)

    user = threading.Thread(target=records)
    user.start()
    try:
        for _ in range(5):
            assert card.equal(await stream_decode(z, vae).collect(), expected)
    finally:
        stop.set()
        user.join()
    assert not failed
    assert recorded


def test_marks_while_a_user_records() -> None:
    """The event of a giver's stream can be asked while another stream is being recorded."""
    side, x = torch.cuda.Stream(card.DEVICE), torch.ones(8, device=card.DEVICE)
    torch.cuda._sleep(card.CYCLES)
    event = mark(x)
    assert event is not None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="global")
        asked = []
        thread = threading.Thread(target=lambda: asked.append(event.query()))
        thread.start()
        thread.join()
        y = x * 2
        graph.capture_end()
    assert asked
    graph.replay()
    torch.cuda.synchronize()
    assert y.sum().item() == 16
    assert event.query()


TIGHT = """
import asyncio, sys, torch
from diffusers import AutoencoderKLWan
from streamvae import stream_decode, warmup
from tests.device import card
with torch.device(card.DEVICE):
    vae = AutoencoderKLWan().to(torch.bfloat16)
z = card.latents(vae, 6, 60, 104)
with torch.no_grad():
    vae.decode(z[:, :, :2, :8, :8])
torch.cuda.synchronize(); torch.cuda.empty_cache()
limit, ballast = int(sys.argv[1]), 0
if limit:
    free, _ = torch.cuda.mem_get_info(card.DEVICE)
    ballast = max(free - max(limit - torch.cuda.memory_reserved(card.DEVICE), 0), 0) >> 21 << 21
    kept = torch.empty(ballast, dtype=torch.uint8, device=card.DEVICE)
torch.cuda.reset_peak_memory_stats()
async def run():
    warm = sys.argv[2] == "warm" and (await warmup(vae, tuple(z.shape))).step
    stream = stream_decode(z, vae)
    frames = await stream.collect()
    return warm, stream.info.step, frames.shape
said = asyncio.run(run())
print(torch.cuda.max_memory_reserved(card.DEVICE) - ballast, *said, sep="|")
"""


def tight(limit: int, way: str) -> tuple[int, str]:
    """Peak of reserved memory, and how chunks were launched, in a process with so much of it."""
    command = [sys.executable, "-c", TIGHT, str(limit), way]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, _, step, _ = done.stdout.splitlines()[-1].split("|")
    return int(peak), step


def test_little_memory() -> None:
    """Where eager chunks fit, streams give their frames, after a warm-up that had no room too."""
    peak, _ = tight(0, "cold")
    limit = int(1.1 * peak)
    assert tight(limit, "cold")[1] == "eager"
    assert tight(limit, "warm")[1] == "eager"
    assert tight(4 * peak, "warm")[1] == "graph"
