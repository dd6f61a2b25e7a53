"""Decode, download and persist at once: how long it takes, and how much is alive meanwhile.

Note [How much is alive]
------------------------
With queues of ``q`` chunks, however slow one side is:

- launched and not finished: 2 (`LAUNCHES`);
- on the device: ``q + 2``: one that ``decode`` has launched and cannot hand on, ``q`` in the queue,
  one that ``download`` has in hand. What was launched and is not finished is among them.
- on the host: ``2 q + 3``, the design's 7 for queues of two: one that ``download`` cannot hand on,
  ``q`` in the queue, one that ``persist`` has in hand, ``q`` in the queue, one with the consumer.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

from streamvae import FrameStream
from streamvae._events import INTERVAL
from streamvae.testing import FakeBackend, MemorySink, TagCodec, one_by_one, tagged_latents

from .flow import Scene, take, virtual

#: Seconds of a unit of time here: twenty polls.
UNIT = 20 * INTERVAL
DECODE, DOWNLOAD, PERSIST = 10 * UNIT, 3 * UNIT, 8 * UNIT
CHUNKS = 20


def scene(queue_size: int = 2, **slow: float) -> Scene:
    """Twenty chunks, each of one frame; ``slow`` makes one side slower than everything else."""
    return Scene(
        queue_size,
        backend=FakeBackend(
            decode=slow.get("decode", DECODE), download=slow.get("download", DOWNLOAD)
        ),
        codec=TagCodec(),
        sink=MemorySink(seconds=slow.get("persist", PERSIST)),
        latents=tagged_latents(CHUNKS),
    )


async def one_after_the_other(stage: Scene) -> float:
    """The plain loop, chunk by chunk: decode, wait, copy, wait, write."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for step in range(CHUNKS):
        stream = stage.stream(stage.latents[:, :, step : step + 1], sinks=())
        async for chunk in stream.chunks():
            await stage.sink.write(chunk)  # type: ignore[arg-type]
    return clock() - began


@virtual
async def test_the_slowest_stage_sets_the_pace() -> None:
    """Twenty chunks take 10 x 20 + 3 + 8 units and a poll; one after the other, 21 x 20 = 420."""
    stage, seen = scene(), list[int]()
    clock = asyncio.get_running_loop().time
    began = clock()
    await take(stage.stream(), seen)
    elapsed = clock() - began
    assert seen == stage.expected
    least = CHUNKS * DECODE + DOWNLOAD + PERSIST
    assert least <= elapsed <= least + INTERVAL
    assert await one_after_the_other(scene()) >= CHUNKS * (DECODE + DOWNLOAD + PERSIST)


@virtual
async def test_the_device_never_idles() -> None:
    """Each launch ends ten units after the one before it: the next was always there already."""
    stage = scene()
    starts: list[float] = []
    clock = asyncio.get_running_loop().time

    def note(pixels: torch.Tensor) -> torch.Tensor:
        starts.append(clock())
        return pixels

    await take(stage.stream(transform=note), [])
    for number, start in enumerate(starts):
        # Launched while the one before it was still at work, at most two ahead of the device.
        assert start <= number * DECODE + INTERVAL
        assert start >= (number - 1) * DECODE


@virtual
async def test_the_first_frame_waits_for_nothing_else() -> None:
    """It is delivered after its own decode, copy and write, whatever is behind it."""
    stage = scene()
    clock = asyncio.get_running_loop().time
    began = clock()
    async with stage.stream() as stream:
        await anext(aiter(stream))
        least = DECODE + DOWNLOAD + PERSIST
        assert least <= clock() - began <= least + 2 * INTERVAL
        assert stream.stats.first_chunk == pytest.approx(clock() - began)


async def slowly(stream: FrameStream, seconds: float, stage: Scene) -> list[int]:
    """Consume with a rest after each frame, and look at what is alive."""
    seen = []
    async for frame in stream:
        seen.append(int(frame.data.flat[0]))
        await asyncio.sleep(seconds)
        assert stage.backend.unfinished <= 2
        assert stage.backend.copying <= 2
    return seen


@pytest.mark.parametrize("queue_size", [1, 2])
@pytest.mark.parametrize("slow", ["consumer", "persist", "download", "decode", "source"])
@virtual
async def test_memory_is_bounded(queue_size: int, slow: str) -> None:
    """Whoever is slow, chunks alive stay within the bounds of Note [How much is alive]."""
    stage = scene(queue_size, **{slow: 30 * UNIT})
    source = one_by_one(stage.latents, seconds=30 * UNIT) if slow == "source" else None
    seen = await slowly(stage.stream(source), 30 * UNIT if slow == "consumer" else 0, stage)
    assert seen == stage.expected
    device, host = stage.backend.device_chunks, stage.backend.host_chunks
    assert (device.total, host.total) == (CHUNKS, CHUNKS)
    assert device.peak <= queue_size + 2
    assert host.peak <= 2 * queue_size + 3
    if slow == "consumer":
        # The bounds are reached: nothing waits for the consumer that need not.
        assert (device.peak, host.peak) == (queue_size + 2, 2 * queue_size + 3)
    await stage.nothing_left()


@pytest.mark.parametrize("latents", [16, 64])
@virtual
async def test_memory_does_not_grow_with_length(latents: int) -> None:
    """A stream four times as long has no more alive, and no more pinned."""
    stage = scene()
    stage.latents = tagged_latents(latents)
    await slowly(stage.stream(), 30 * UNIT, stage)
    assert stage.backend.host_chunks.peak == 7
    assert stage.backend.device_chunks.peak == 4
    assert stage.backend.pinned_bytes == 256  # of 194 a chunk; one slot is enough for one stream


class Transform:
    """Notes who launches; sees the launches that are not finished, its own not yet among them."""

    def __init__(self, order: list[int], number: int, stage: Scene) -> None:
        self.order, self.number, self.stage = order, number, stage

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.order.append(self.number)
        # Turns taken, this launch's included, and the device's own count.
        assert self.stage.backend.unfinished <= 2
        return pixels


@pytest.mark.parametrize("queue_size", [1, 2])
@pytest.mark.parametrize("streams", [2, 4])
@virtual
async def test_streams_take_turns(queue_size: int, streams: int) -> None:
    """Streams on one device launch in turn, chunk by chunk, two unfinished launches in all."""
    stage = scene(queue_size, persist=0)
    order: list[int] = []
    given = [tagged_latents(8, start=50 * number) for number in range(streams)]

    async def one(number: int) -> list[int]:
        sink = MemorySink(name=f"sink {number}")
        stream = stage.stream(given[number], sinks=sink, transform=Transform(order, number, stage))
        seen = await slowly(stream, 0, stage)
        assert seen == sink.tags
        return seen

    results = await asyncio.gather(*map(one, range(streams)))
    assert results == [stage.codec.expected(latents) for latents in given]
    for turn in range(8):
        assert sorted(order[turn * streams : (turn + 1) * streams]) == list(range(streams))
    await stage.nothing_left()


@pytest.mark.parametrize("streams", [1, 3])
@virtual
async def test_two_unfinished_launches(streams: int) -> None:
    """A device that finishes nothing is given two launches, by however many streams."""
    backend = FakeBackend(manual=True)
    scenes = [Scene(backend=backend, sink=MemorySink()) for _ in range(streams)]
    consuming = [asyncio.create_task(take(stage.stream(), [])) for stage in scenes]
    for finished in range(8):
        await asyncio.sleep(1)
        assert len(backend.launches) == finished + 2
        assert backend.unfinished == 2
        backend.launches[finished].set()
        for copy in backend.copies:
            copy.set()
    for task in consuming:
        task.cancel()
    await asyncio.gather(*consuming, return_exceptions=True)
    for event in (*backend.launches, *backend.copies):
        event.set()
    await scenes[0].nothing_left()


@virtual
async def test_a_source_is_read_as_it_is_decoded() -> None:
    """No more is taken from a source than the device can be given: two, and one to come."""
    stage = scene()
    taken = 0

    async def counted() -> AsyncIterator[torch.Tensor]:
        nonlocal taken
        for step in range(CHUNKS):
            taken += 1
            yield stage.latents[:, :, step : step + 1]

    async with stage.stream(counted()) as stream:
        await asyncio.sleep(5 * UNIT)
        assert taken <= 3
        await take(stream, seen := [])
    assert seen == stage.expected
