"""stream_decode and FrameStream: what comes out, in which order, and what is refused."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from streamvae import (
    ClosedError,
    DeviceFrames,
    FrameCountError,
    HostChunk,
    LatentsError,
    UsageError,
    stream_decode,
)
from streamvae._stats import StreamStats
from streamvae.testing import (
    FakeBackend,
    MemorySink,
    TagCodec,
    one_by_one,
    run_virtual,
    tagged_latents,
)

from .flow import UNIT, Scene, tag, take, virtual


@pytest.mark.parametrize("queue_size", [1, 2, 5])
@pytest.mark.parametrize("frames_per_latent", [1, 4])
@pytest.mark.parametrize("held", [0, 2])
@virtual
async def test_every_frame_comes_in_order(
    queue_size: int, frames_per_latent: int, held: int
) -> None:
    """Each frame comes once, in order, with its own pixels, from the consumer's and sinks' view."""
    scene = Scene(queue_size, codec=TagCodec(frames_per_latent, held=held))
    seen = list[int]()
    # One by one, each in memory of its own that nobody but the stream keeps.
    await take(scene.stream(one_by_one(scene.latents)), seen)
    assert seen == scene.sink.tags == scene.expected
    assert scene.sink.calls == ["open", "close"]
    await scene.nothing_left()


@virtual
async def test_frames_are_kept_by_who_wants_to() -> None:
    """A consumer who keeps every frame has every frame, in memory of its own, read-only."""
    scene = Scene()
    frames = [frame async for frame in scene.stream(fps=10)]
    assert [frame.index for frame in frames] == list(range(len(scene.expected)))
    assert [frame.time for frame in frames] == [index / 10 for index in range(len(frames))]
    assert [set(np.unique(frame.data)) for frame in frames] == [{t} for t in scene.expected]
    for frame in frames:
        assert isinstance(frame.data, np.ndarray)
        assert frame.data.shape == (8, 8, 3)
        with pytest.raises(ValueError, match="read-only"):
            frame.data[0] = 0


@pytest.mark.parametrize("streams", [2, 4])
@virtual
async def test_streams_share_a_device(streams: int) -> None:
    """Streams side by side, over one codec and device, each give what they give alone."""
    scene = Scene(backend=FakeBackend(decode=UNIT, download=5 * UNIT))
    given = [tagged_latents(10, start=60 * number) for number in range(streams)]

    async def one(latents: torch.Tensor) -> list[int]:
        seen = list[int]()
        await take(scene.stream(latents, sinks=()), seen)
        return seen

    results = await asyncio.gather(*map(one, given))
    assert results == [scene.codec.expected(latents) for latents in given]
    await scene.nothing_left()


@pytest.mark.parametrize("whole", [True, False])
@virtual
async def test_latents_that_are_still_being_written(whole: bool) -> None:
    """Latents are read when their giver has written them, which the loop does not await."""
    scene = Scene()
    latents = scene.latents.clone()
    written = scene.backend.give(latents)
    asyncio.get_running_loop().call_later(5 * UNIT, written.set)
    seen = list[int]()
    # Whole: a tensor, cut by the stream. Otherwise as the one item of a list.
    await take(scene.stream(latents if whole else [latents]), seen)
    assert seen == scene.expected


@virtual
async def test_a_frame_that_is_seen_was_accepted() -> None:
    """What a consumer sees, every sink has accepted before."""
    scene = Scene(backend=FakeBackend())
    other = MemorySink(seconds=3 * UNIT, name="slower")
    seen = list[int]()
    async for frame in scene.stream(sinks=[scene.sink, other]):
        seen.append(tag(frame.data))
        assert scene.sink.tags[: len(seen)] == other.tags[: len(seen)] == seen


@virtual
async def test_a_broken_step_is_the_last() -> None:
    """A step that is broken off just as its chunk comes ends the stream: no frame is skipped."""
    scene = Scene(codec=TagCodec())
    steps = list[asyncio.Task[object]]()

    async def break_the_step(chunk: HostChunk) -> None:
        if chunk.index == 3:
            # Runs after the chunk was handed over and before the consumer has it.
            asyncio.get_running_loop().call_soon(steps[-1].cancel)

    seen = list[int]()
    async with scene.stream(sinks=break_the_step) as stream:
        frames = aiter(stream)
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                steps.append(asyncio.ensure_future(anext(frames)))
                seen.append(tag((await steps[-1]).data))  # type: ignore[attr-defined]
        with pytest.raises(ClosedError):
            await anext(frames)
    assert seen == scene.expected[:3]


@virtual
async def test_chunks() -> None:
    """Whole chunks, numbered, each where the last one ended."""
    scene = Scene()
    chunks = [chunk async for chunk in scene.stream(latents_per_chunk=3).chunks()]
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3, 4]
    assert [(chunk.start, len(chunk)) for chunk in chunks] == [
        (0, 1), (1, 6), (7, 6), (13, 6), (19, 4),
    ]  # fmt: skip
    assert all(isinstance(chunk, HostChunk) and chunk.format == "rgb24" for chunk in chunks)


@pytest.mark.parametrize("counted", [True, False])
@virtual
async def test_collect(counted: bool) -> None:
    """All frames in one array, whether or not their number was known."""
    scene = Scene()
    stream = scene.stream(None if counted else one_by_one(scene.latents))
    whole = await stream.collect()
    assert whole.shape == (1, len(scene.expected), 8, 8, 3)
    assert whole[0, :, 0, 0, 0].tolist() == scene.expected
    del whole
    await scene.check(scene.expected, calls=("open", "close"))


@virtual
async def test_finish() -> None:
    """Running to the end for the sinks' sake gives the stats."""
    scene = Scene()
    assert scene.stream().stats == StreamStats()
    stats = await scene.stream().finish()
    assert scene.sink.tags == scene.expected
    assert (stats.chunks, stats.frames) == (12, len(scene.expected))
    assert [stage.name for stage in stats.stages] == ["decode", "download", "persist"]
    assert [stage.chunks for stage in stats.stages] == [12, 12, 12]
    assert stats.first_chunk is not None
    assert 15 * UNIT <= stats.first_chunk < stats.total
    assert "the device" in stats.bottleneck


@virtual
async def test_stats_while_it_runs() -> None:
    """The books are kept up to date, the stage that is busy named."""
    scene = Scene(sink=MemorySink(seconds=40 * UNIT))
    async with scene.stream() as stream:
        frames = aiter(stream)
        for _ in range(5):
            await anext(frames)
        assert stream.stats.chunks == 3
        assert stream.stats.stages[-1].busy >= 120 * UNIT
        assert "a sink is the limit" in stream.stats.bottleneck


@virtual
async def test_frames_on_the_device() -> None:
    """``output="device"`` downloads nothing and gives tensors."""
    scene = Scene(codec=TagCodec(2, held=1))
    chunks = [chunk async for chunk in scene.stream(output="device", sinks=()).chunks()]
    assert all(isinstance(chunk, DeviceFrames) for chunk in chunks)
    assert sum(len(chunk) for chunk in chunks) == len(scene.expected)
    assert scene.backend.host_chunks.total == 0
    pixels = torch.cat([chunk.data for chunk in chunks], 1)  # type: ignore[misc]
    values = ((pixels[0, :, 0, 0, 0] + 1) / 2 * 255).round().int().tolist()
    assert values == scene.expected
    del chunks, pixels
    await scene.nothing_left()


class Miscounting(TagCodec):
    """A codec that promises one frame more than it gives."""

    def frames(self, latents: int) -> int:
        return super().frames(latents) + 1


@virtual
async def test_another_number_of_frames() -> None:
    """A stream that gives another number of frames than its family must ends with an error."""
    scene, seen = Scene(codec=Miscounting()), list[int]()
    with pytest.raises(FrameCountError, match="expected 13 frames from 12 latents of TagCodec"):
        await take(scene.stream(), seen)
    assert seen == scene.expected
    assert scene.sink.calls == ["open", "abort"]


class Uncounted(TagCodec):
    """A codec that does not know how many frames it gives."""

    def frames(self, latents: int) -> None:  # type: ignore[override]
        return None


@virtual
async def test_an_unknown_number_of_frames() -> None:
    """Where the family does not allow to count, nothing is expected."""
    latents = tagged_latents(3)
    stream = stream_decode(latents, Uncounted(), backend=FakeBackend())
    assert (await stream.collect()).shape[1] == 3
    assert stream.info.frames is None


def test_bad_options_raise_at_once() -> None:
    """What cannot work raises when the stream is made, and starts nothing."""
    latents = tagged_latents(3)
    with pytest.raises(UsageError, match="expected queue_size"):
        stream_decode(latents, queue_size=0)
    with pytest.raises(UsageError, match="expected no sinks with output='device'"):
        stream_decode(latents, sinks="x.npy", output="device")
    with pytest.raises(LatentsError):
        stream_decode(object())  # type: ignore[arg-type]


def test_without_a_loop() -> None:
    """Outside asyncio a step says what is expected, and what there is for scripts."""
    stream = stream_decode(tagged_latents(3), TagCodec(), backend=FakeBackend())
    with pytest.raises(UsageError, match="expected a running asyncio loop"):
        anext(aiter(stream)).__await__().__next__()


@virtual
async def test_what_cannot_be_decoded_raises_when_entered() -> None:
    """Latents the codec refuses, and plans it refuses, raise before the block is entered."""
    scene = Scene()
    with pytest.raises(LatentsError, match="expected latents of shape"):
        async with scene.stream(torch.zeros(1, 3, 2, 1, 1)):
            raise AssertionError
    with pytest.raises(UsageError, match="latents_per_chunk"):
        async with scene.stream(latents_per_chunk=13):
            raise AssertionError
    with pytest.raises(LatentsError, match="at least one latent"):
        await take(scene.stream([]), [])
    await scene.nothing_left()


@virtual
async def test_progress() -> None:
    """A callable is told of every chunk; what it raises ends the stream."""
    scene, told = Scene(), list[tuple[int, int | None]]()
    await scene.stream(progress=lambda done, total: told.append((done, total))).finish()
    assert told[:2] == [(1, 23), (3, 23)]
    assert told[-1] == (23, 23)

    def annoyed(done: int, total: int | None) -> None:
        raise KeyError(done)

    with pytest.raises(KeyError) as caught:
        await scene.stream(progress=annoyed, sinks=()).finish()
    assert caught.value.__notes__ == ["While stage 'persist' worked on chunk 0."]


@virtual
async def test_latents_are_not_kept() -> None:
    """A stream lets go of latents as they are decoded, those in a list too."""
    scene = Scene()
    gone = list[weakref.ref[torch.Tensor]]()

    def latents() -> Iterator[torch.Tensor]:
        for step in range(12):
            latent = scene.latents[:, :, step : step + 1].clone()
            gone.append(weakref.ref(latent.untyped_storage()))
            yield latent

    alive = 0
    async for _ in scene.stream(latents()):
        alive = max(alive, sum(ref() is not None for ref in gone))
    assert alive <= 6  # two with the device, one to be launched, one read ahead, and slack for two


def test_a_stream_per_loop() -> None:
    """Streams of one codec on one loop after another are the same."""
    codec, results = TagCodec(3), list[list[int]]()

    async def main() -> None:
        scene, seen = Scene(codec=codec), list[int]()
        await take(scene.stream(), seen)
        results.append(seen)

    for _ in range(3):
        run_virtual(main())
    gc.collect()
    assert results[0] == results[1] == results[2]
