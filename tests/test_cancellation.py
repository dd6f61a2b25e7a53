"""Every way a stream can end leaves nothing behind, and the next stream is right.

`Scene.check` holds each of them to: frames seen are a prefix of those the sink accepted, those of
those expected; the sink was aborted; no task, thread, turn, slot, chunk or decoder is left.
"""

import asyncio
import contextlib
import gc
import threading
import types
import weakref
from collections.abc import Awaitable, Iterator
from random import Random

import numpy as np
import pytest
import torch

from streamvae import ClosedError, FrameStream, SinkTimeout, StageTimeout, stream_decode
from streamvae._errors import NonFiniteError
from streamvae._threads import parked
from streamvae.testing import (
    FakeBackend,
    MemorySink,
    StuckSink,
    TagCodec,
    one_by_one,
    run_virtual,
)
from tests import tiny

from .flow import LATENTS, UNIT, Scene, no_thread_left, others, take, until, virtual

both_sizes = pytest.mark.parametrize("queue_size", [1, 2])


class Boom(Exception):
    """A consumer's own error."""


async def raised(ending: Awaitable[object]) -> BaseException:
    """The error of ``ending``, kept with its traceback: it must pin nothing of the pipeline."""
    try:
        await ending
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
        return error
    raise AssertionError("expected an error")


# The consumer leaves.


@both_sizes
@virtual
async def test_break_inside_async_with(queue_size: int) -> None:
    """A loop left by break inside ``async with`` is over when the block is."""
    scene, seen = Scene(queue_size), list[int]()
    async with scene.stream() as stream:
        await take(stream, seen, stop_after=4)
    assert not others()
    assert stream.stats.chunks >= 2
    await scene.check(seen)


@both_sizes
@virtual
async def test_break_without_async_with(queue_size: int) -> None:
    """A bare break stops the stream as soon as the iterator is dropped."""
    scene, seen = Scene(queue_size), list[int]()
    await take(scene.stream(), seen, stop_after=4)
    await scene.check(seen)


@both_sizes
@virtual
async def test_break_with_the_stream_kept(queue_size: int) -> None:
    """Dropping the iterator is enough, though the stream itself is still known."""
    scene, seen = Scene(queue_size), list[int]()
    stream = scene.stream()
    await take(stream, seen, stop_after=4)
    await scene.check(seen)
    assert stream.stats.frames >= 4


@both_sizes
@virtual
async def test_return_from_the_loop(queue_size: int) -> None:
    """A function that returns from inside its loop leaves nothing."""
    scene, seen = Scene(queue_size), list[int]()

    async def first() -> None:
        async for frame in scene.stream():
            seen.append(int(frame.data.flat[0]))
            return

    await first()
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("inside", [True, False], ids=["async with", "bare"])
@virtual
async def test_the_consumer_raises(queue_size: int, inside: bool) -> None:
    """The consumer's error is what comes out, whether or not there is ``async with``."""
    scene, seen = Scene(queue_size), list[int]()

    async def consume(stream: FrameStream) -> None:
        async for frame in stream:
            seen.append(int(frame.data.flat[0]))
            del frame
            if len(seen) == 3:
                raise Boom

    async def ending() -> None:
        if inside:
            async with scene.stream() as stream:
                await consume(stream)
        else:
            await consume(scene.stream())

    error = await raised(ending())
    assert type(error) is Boom
    del error  # bare: its traceback holds the iterator
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("inside", [True, False], ids=["async with", "bare"])
@virtual
async def test_timeout_in_the_middle_of_a_step(queue_size: int, inside: bool) -> None:
    """``asyncio.timeout`` breaks a step; the stream ends, also while the error is kept."""
    scene, seen = Scene(queue_size), list[int]()

    async def ending() -> None:
        async with asyncio.timeout(48 * UNIT):
            if inside:
                async with scene.stream() as stream:
                    await take(stream, seen)
            else:
                await take(scene.stream(), seen)

    error = await raised(ending())
    assert type(error) is TimeoutError
    assert len(seen) > 3
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("seconds", [0, 1, 25, 48, 77.5])
@virtual
async def test_native_cancel(queue_size: int, seconds: float) -> None:
    """``Task.cancel`` at whatever moment, the first step included."""
    scene, seen = Scene(queue_size), list[int]()
    task = asyncio.create_task(take(scene.stream(), seen))
    await asyncio.sleep(seconds * UNIT)
    task.cancel()
    error = await raised(task)
    assert isinstance(error, asyncio.CancelledError)
    await scene.check(seen, calls=("open", "abort") if seconds >= 1 else ())


@both_sizes
@virtual
async def test_cancelled_twice(queue_size: int) -> None:
    """A second cancel while the first is cleaned up changes nothing."""
    scene, seen = Scene(queue_size), list[int]()

    async def ending() -> None:
        async with scene.stream() as stream:
            await take(stream, seen)

    task = asyncio.create_task(ending())
    await asyncio.sleep(48 * UNIT)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await raised(task), asyncio.CancelledError)
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("turns", range(6))
@virtual
async def test_cancelled_during_aclose(queue_size: int, turns: int) -> None:
    """A cancel that breaks ``aclose`` itself does not keep the stream from ending."""
    scene, seen = Scene(queue_size), list[int]()
    stream = scene.stream()
    await take(stream, seen, stop_after=2)
    task = asyncio.create_task(stream.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await scene.check(seen)
    await stream.aclose()


@both_sizes
@virtual
async def test_every_task_cancelled(queue_size: int) -> None:
    """Somebody who cancels every task of the loop gets them all ended, again and again."""
    scene, seen = Scene(queue_size), list[int]()
    consuming = asyncio.create_task(take(scene.stream(), seen))
    await asyncio.sleep(48 * UNIT)
    for _ in range(3):
        for task in others():
            task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([consuming])
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("stage", ["decode", "download", "persist"])
@virtual
async def test_one_stage_cancelled(queue_size: int, stage: str) -> None:
    """A stage's task cancelled by a stranger ends the stream with an error, not as complete."""
    scene, seen = Scene(queue_size), list[int]()
    # Their number unknown beforehand, so that counting could not notice.
    consuming = asyncio.create_task(take(scene.stream(one_by_one(scene.latents)), seen))
    await asyncio.sleep(48 * UNIT)
    for task in others():
        if task.get_name() == f"streamvae {stage}":
            task.cancel()
    error = await raised(consuming)
    assert isinstance(error, ClosedError)
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("seconds", [0, 0.001, 0.1])
def test_the_loop_ends_with_a_stream_in_flight(queue_size: int, seconds: float) -> None:
    """When ``asyncio.run`` returns, what is in flight was cancelled and the sink aborted."""
    scenes, seen = list[Scene](), list[int]()

    async def main() -> None:
        scenes.append(Scene(queue_size))
        task = asyncio.create_task(take(scenes[0].stream(), seen))
        await asyncio.sleep(seconds)
        assert not task.done()

    run_virtual(main())
    scene = scenes[0]
    assert scene.sink.calls in ([], ["open", "abort"])
    assert seen == scene.sink.tags[: len(seen)]

    async def after() -> None:
        fresh = Scene(queue_size, codec=scene.codec)
        await fresh.next_is_right()
        await fresh.nothing_left()

    run_virtual(after())


# The stream is closed.


@both_sizes
@virtual
async def test_aclose_twice(queue_size: int) -> None:
    """Closing is idempotent, also at the same time."""
    scene, seen = Scene(queue_size), list[int]()
    stream = scene.stream()
    await take(stream, seen, stop_after=2)
    await asyncio.gather(stream.aclose(), stream.aclose())
    assert not others()
    await stream.aclose()
    await scene.check(seen)


@both_sizes
@virtual
async def test_aclose_under_a_waiting_consumer(queue_size: int) -> None:
    """A consumer in another task is told that the stream was closed."""
    scene, seen = Scene(queue_size), list[int]()
    stream = scene.stream()
    consuming = asyncio.create_task(take(stream, seen))
    await asyncio.sleep(30 * UNIT)
    await stream.aclose()
    assert isinstance(await raised(consuming), ClosedError)
    await scene.check(seen)


@virtual
async def test_aclose_before_anything() -> None:
    """A stream closed before it began starts nothing, and cannot be begun."""
    scene = Scene()
    stream = scene.stream()
    await stream.aclose()
    assert isinstance(await raised(take(stream, [])), ClosedError)
    assert isinstance(await raised(stream.__aenter__()), ClosedError)
    await scene.check([], calls=())


@virtual
async def test_entered_and_left() -> None:
    """Entering opens sinks and starts the stages; leaving without a step aborts them."""
    scene = Scene()
    async with scene.stream() as stream:
        assert stream.info.frames == len(scene.expected)
    await scene.check([])


@both_sizes
@virtual
async def test_step_after_close(queue_size: int) -> None:
    """After ``aclose`` a step raises, also with frames of its chunk left; so does another pass."""
    scene, seen = Scene(queue_size), list[int]()
    stream = scene.stream()
    frames = aiter(stream)
    for _ in range(2):  # the second chunk has two frames
        seen.append(int((await anext(frames)).data.flat[0]))
    await stream.aclose()
    assert isinstance(await raised(anext(frames)), ClosedError)
    with pytest.raises(ClosedError):
        aiter(stream)
    with pytest.raises(ClosedError):
        stream.chunks()
    del frames
    await scene.check(seen)


@virtual
async def test_second_iteration() -> None:
    """A stream is iterated once; the second time raises and the first goes on."""
    scene, seen = Scene(), list[int]()
    async with scene.stream() as stream:
        frames = aiter(stream)
        seen.append(int((await anext(frames)).data.flat[0]))
        for again in (stream.chunks, lambda: aiter(stream)):
            with pytest.raises(ClosedError, match="expected a fresh stream"):
                again()
        seen.extend([int(frame.data.flat[0]) async for frame in frames])
        assert [frame async for frame in frames] == []
    assert seen == scene.expected
    await scene.check(seen, calls=("open", "close"))


# Nobody closes it.


@both_sizes
@pytest.mark.parametrize("held", ["frames", "chunks", "entered"])
@virtual
async def test_dropped(queue_size: int, held: str) -> None:
    """A stream and its iterator that are collected as garbage stop the stream."""
    scene, seen = Scene(queue_size), list[int]()
    stream = scene.stream()
    if held == "entered":
        await stream.__aenter__()
    else:
        iterator = aiter(stream) if held == "frames" else stream.chunks()
        seen.append(int((await anext(iterator)).data.flat[0]))
        cycle: list[object] = [iterator]
        cycle.append(cycle)
        del iterator, cycle
    del stream
    gc.collect()
    await scene.check(seen)


@virtual
async def test_dropped_unstarted() -> None:
    """A stream, or an iterator, that was never stepped has started nothing."""
    scene = Scene()
    stream = scene.stream()
    frames = aiter(stream)
    del stream, frames
    gc.collect()
    assert not others()
    await scene.check([], calls=())


def test_dropped_after_its_loop() -> None:
    """A stream that outlives its loop is dropped in silence."""
    kept_streams: list[object] = []

    async def main() -> None:
        stream = Scene().stream()
        frames = aiter(stream)
        await anext(frames)
        kept_streams.extend((stream, frames))

    run_virtual(main())
    gone = weakref.ref(kept_streams[0])
    kept_streams.clear()
    gc.collect()
    assert gone() is None


@virtual
async def test_cancelled_before_the_first_step() -> None:
    """The task behind a stream may be cancelled before it ever ran."""
    scene = Scene()
    consuming = asyncio.create_task(take(scene.stream(), []))
    await asyncio.sleep(0)
    for task in others():
        if task.get_name() == "streamvae":
            task.cancel()
    assert isinstance(await raised(consuming), ClosedError)
    await scene.check([], calls=())


# Something raises.


def broken_iterable(latents: torch.Tensor, fail_at: int) -> Iterator[torch.Tensor]:
    """Latents one by one from a sync generator that raises."""
    for step in range(latents.shape[2]):
        if step == fail_at:
            raise RuntimeError(f"the source was to fail at latent {step}")
        yield latents[:, :, step : step + 1]


@both_sizes
@pytest.mark.parametrize("latent", [0, 5])
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
@virtual
async def test_the_source_raises(queue_size: int, latent: int, asynchronous: bool) -> None:
    """Every latent that came is delivered as frames; then the source's own error comes."""
    scene, seen = Scene(queue_size), list[int]()
    source = (
        one_by_one(scene.latents, fail_at=latent)
        if asynchronous
        else broken_iterable(scene.latents, latent)
    )
    frames = aiter(scene.stream(source))
    error = await raised(take(frames, seen))
    assert type(error) is RuntimeError
    assert f"latent {latent}" in str(error)
    assert seen == scene.before_latent(latent)
    assert isinstance(await raised(anext(frames)), ClosedError)
    await scene.check(seen, calls=("open", "abort") if latent else ())


@both_sizes
@pytest.mark.parametrize("latent", [0, 5])
@virtual
async def test_the_decoder_raises(queue_size: int, latent: int) -> None:
    """Frames before it are delivered and accepted; then the error, with stage and chunk."""
    scene, seen = Scene(queue_size, codec=TagCodec(2, fail_at=latent)), list[int]()
    frames = aiter(scene.stream())
    error = await raised(take(frames, seen))
    assert type(error) is ValueError
    assert error.__notes__[0] == f"While stage 'decode' worked on chunk {latent}."
    assert seen == scene.before_latent(latent)
    assert isinstance(await raised(anext(frames)), ClosedError)
    await scene.check(seen)


class FailingDrain(TagCodec):
    """A codec that holds three latents back and raises when it should give the second of them."""

    def decoder(self):  # type: ignore[no-untyped-def]
        decoder = super().decoder()
        drained = 0
        drain = decoder.drain

        def failing() -> torch.Tensor | None:
            nonlocal drained
            drained += 1
            if drained == 2 and self.fail_at is not None:
                raise ValueError("the drain was to fail")
            return drain()

        decoder.drain = failing  # type: ignore[method-assign]
        return decoder


@both_sizes
@virtual
async def test_the_decoder_raises_while_drained(queue_size: int) -> None:
    """What it gave before is delivered, and the error says that the decoder was at work."""
    scene, seen = Scene(queue_size, codec=FailingDrain(2, held=3, fail_at=99)), list[int]()
    error = await raised(take(scene.stream(), seen))
    assert str(error) == "the drain was to fail"
    assert error.__notes__[0] == f"While stage 'decode' worked on chunk {LATENTS - 1}."
    assert seen == scene.before_latent(LATENTS - 2)
    await scene.check(seen)


@both_sizes
@pytest.mark.parametrize("chunk", [0, 5])
@virtual
async def test_a_sink_raises(queue_size: int, chunk: int) -> None:
    """What the sink accepted is delivered; then its own error, naming it, and abort for both."""
    scene = Scene(queue_size, sink=MemorySink(fail_at=chunk, name="fragile"))
    other, seen = MemorySink(seconds=UNIT, name="other"), list[int]()
    error = await raised(take(scene.stream(sinks=(scene.sink, other)), seen))
    assert type(error) is OSError
    assert error.__notes__[:2] == [
        f"While sink fragile took chunk {chunk}.",
        f"While stage 'persist' worked on chunk {chunk}.",
    ]
    assert seen == scene.before_latent(chunk) == scene.sink.tags
    assert other.calls == ["open", "abort"]
    assert other.tags == scene.before_latent(chunk + 1), "the other sink still gets the chunk"
    await scene.check(seen)


@virtual
async def test_a_sink_raises_when_opened() -> None:
    """Nothing is decoded; sinks opened before it, and it too, are aborted; entering raises."""
    scene = Scene(sink=MemorySink(fail_open=True, name="closed door"))
    first, last = MemorySink(name="first"), MemorySink(name="last")
    error = await raised(scene.stream(sinks=(first, scene.sink, last)).__aenter__())
    assert type(error) is OSError
    assert error.__notes__ == ["While sink closed door was opened; nothing was decoded."]
    assert (first.calls, last.calls) == (["open", "abort"], [])
    assert scene.backend.device_chunks.total == 0
    await scene.check([])


@both_sizes
@virtual
async def test_a_sink_raises_when_closed(queue_size: int) -> None:
    """All frames come, and then the error instead of the end: truncation is no success."""
    scene, seen = Scene(queue_size, sink=MemorySink(fail_close=True, name="full")), list[int]()
    error = await raised(take(scene.stream(), seen))
    assert type(error) is OSError
    assert error.__notes__[0] == "While sink full was closed; it has every frame."
    assert seen == scene.expected
    await scene.check(seen, calls=("open", "close", "abort"))


@both_sizes
@pytest.mark.parametrize("latent", [0, 5])
@virtual
async def test_nan(queue_size: int, latent: int) -> None:
    """NaN in chunk k raises at chunk k, with the frames before it delivered and accepted."""
    scene, seen = Scene(queue_size), list[int]()
    latents = scene.latents.clone()
    latents[:, :, latent] = torch.nan
    error = await raised(take(scene.stream(latents), seen))
    assert isinstance(error, NonFiniteError)
    assert (error.where, error.chunk) == ("latents", latent)
    assert seen == scene.before_latent(latent)
    await scene.check(seen)


@both_sizes
@virtual
async def test_nan_with_a_warning(queue_size: int, caplog: pytest.LogCaptureFixture) -> None:
    """``nonfinite="warn"`` says so once for each such chunk and goes on to the end."""
    scene = Scene(queue_size, codec=TagCodec())
    latents = scene.latents.clone()
    latents[:, :, 5] = torch.inf
    seen: list[int] = []
    await take(scene.stream(latents, nonfinite="warn"), seen)
    assert len(seen) == LATENTS
    assert [seen[k] for k in range(LATENTS) if k != 5] == [
        tag for k, tag in enumerate(scene.expected) if k != 5
    ]
    assert len(caplog.records) == 1
    assert "chunk 5" in caplog.text
    assert scene.sink.calls == ["open", "close"]
    await scene.nothing_left()


@virtual
async def test_an_error_nobody_waits_for() -> None:
    """A stream that fails while its consumer is elsewhere keeps no chunk for its traceback."""
    scene, seen = Scene(codec=TagCodec(2, fail_at=2)), list[int]()
    stream = scene.stream()
    await take(stream, seen, stop_after=1)
    await scene.check(seen)
    assert stream.stats.chunks >= 1


# Something hangs.


@both_sizes
@virtual
async def test_a_stuck_sink(queue_size: int) -> None:
    """``aclose`` returns within ``sink_timeout`` and names the sink; its thread ends by itself."""
    sink = StuckSink(stuck_at=1, name="dead share")
    scene, seen = Scene(queue_size, sink=sink), list[int]()
    stream = scene.stream(sink_timeout=5)
    frames = aiter(stream)
    seen.append(int((await anext(frames)).data.flat[0]))
    await until(sink.stuck.is_set, "it hangs")
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(SinkTimeout, match="dead share") as caught:
        await stream.aclose()
    assert loop.time() - began == pytest.approx(5)
    assert (caught.value.sink, caught.value.seconds) == ("dead share", 5)
    await stream.aclose()
    del frames  # has a frame's chunk in hand
    await scene.nothing_left(but=("streamvae sink dead share",))
    await scene.next_is_right()
    sink.release()
    await scene.check(seen)


@virtual
async def test_a_stuck_sink_and_no_error() -> None:
    """A block left in peace raises for the sink that did not end."""
    sink = StuckSink()
    scene = Scene(sink=sink)
    with pytest.raises(SinkTimeout, match="sink stuck did not end within 5 s"):
        async with scene.stream(sink_timeout=5):
            await until(sink.stuck.is_set, "it hangs")
    sink.release()
    await scene.check([])


class Clinging(MemorySink):
    """A sink that fails even when it is aborted."""

    async def abort(self) -> None:
        await super().abort()
        raise OSError("no space to say goodbye")


@virtual
async def test_a_sink_raises_when_aborted(caplog: pytest.LogCaptureFixture) -> None:
    """The other sinks are aborted, the error is logged, and the stream's own error comes."""
    scene, seen = Scene(codec=TagCodec(2, fail_at=3)), list[int]()
    clinging = Clinging(name="clinging")
    error = await raised(take(scene.stream(sinks=(clinging, scene.sink)), seen))
    assert type(error) is ValueError
    assert "sink clinging failed while it was aborted" in caplog.text
    assert clinging.calls == ["open", "abort"]
    await scene.check(seen)


@virtual
async def test_two_stuck_sinks() -> None:
    """Both are waited for side by side, and both are named."""
    sinks = StuckSink(name="one"), StuckSink(name="two")
    scene = Scene()
    stream = scene.stream(sinks=sinks, sink_timeout=5)
    await stream.__aenter__()
    await until(lambda: all(sink.stuck.is_set() for sink in sinks), "both hang")
    began = asyncio.get_running_loop().time()
    with pytest.raises(SinkTimeout) as caught:
        await stream.aclose()
    assert asyncio.get_running_loop().time() - began == pytest.approx(5)
    said = [str(caught.value), *caught.value.__notes__]
    assert sorted(said) == [f"sink {name} did not end within 5 s" for name in ("one", "two")]
    for sink in sinks:
        sink.release()
    await scene.nothing_left()


@pytest.mark.parametrize("how", ["consumer", "timeout"])
@virtual
async def test_a_stuck_sink_does_not_hide_the_error(how: str) -> None:
    """An error, or a cancellation, that ends the block goes on; the sink is named in a note."""
    sink = StuckSink(stuck_at=3)
    scene, seen = Scene(sink=sink), list[int]()

    async def ending() -> None:
        async with asyncio.timeout(100 * UNIT), scene.stream(sink_timeout=0.02) as stream:
            async for frame in stream:
                seen.append(int(frame.data.flat[0]))
                del frame
                if how == "consumer" and len(seen) == 3:
                    await until(sink.stuck.is_set, "it hangs", seconds=50 * UNIT)
                    raise Boom

    error = await raised(ending())
    if how == "consumer":
        assert type(error) is Boom
    else:
        assert type(error) is TimeoutError
        assert error.__cause__ is not None
        error = error.__cause__
    assert error.__notes__ == ["sink stuck did not end within 0.02 s"]
    sink.release()
    await scene.nothing_left()
    assert sink.calls == ["open", "abort"]


@virtual
async def test_a_stuck_sink_beside_an_error() -> None:
    """A stream's own error comes with a note about the sink that did not end."""
    sink, failing = StuckSink(stuck_at=1), MemorySink(fail_at=2)
    scene = Scene()

    async def ending() -> None:
        async with scene.stream(sinks=(sink, failing), sink_timeout=0.02) as stream:
            await until(sink.stuck.is_set, "it hangs")
            next(task for task in others() if task.get_name() == "streamvae download").cancel()
            await take(stream, [])

    error = await raised(ending())
    sink.release()
    assert "sink stuck did not end within 0.02 s" in error.__notes__
    await scene.nothing_left()


@both_sizes
@pytest.mark.parametrize("stage", ["download", "settle"])
@virtual
async def test_a_device_that_never_answers(queue_size: int, stage: str) -> None:
    """A timeout names stage and chunk; frames before it came; what was the device's comes back."""
    scene = Scene(queue_size, backend=FakeBackend(manual=True), sink=MemorySink())
    backend, seen = scene.backend, list[int]()
    scene.latents = scene.latents[:, :, :2]
    device = {"sinks": (), "output": "device"} if stage == "settle" else {}
    consuming = asyncio.create_task(take(scene.stream(timeout=3, **device), seen))
    await until(lambda: len(backend.launches) == 2, "both launches")
    backend.launches[0].set()
    if stage == "download":
        await until(lambda: bool(backend.copies), "the first copy")
        backend.copies[0].set()
    error = await raised(consuming)
    assert isinstance(error, StageTimeout)
    assert (error.stage, error.chunk, error.seconds) == (stage, 1, 3)
    assert str(error) == f"stage {stage!r} waited 3 s for chunk 1 on the device"
    assert len(seen) == 1
    assert backend.unfinished == 1
    for event in (*backend.launches, *backend.copies):
        event.set()
    await scene.nothing_left()


@virtual
async def test_no_turn_to_launch() -> None:
    """A launch that gets no turn in time gives its place in the queue up."""
    scene = Scene()
    turns = [scene.backend.turn() for _ in range(2)]
    assert all(turn.query() for turn in turns)
    error = await raised(take(scene.stream(timeout=3), []))
    assert isinstance(error, StageTimeout)
    assert (error.stage, error.chunk) == ("decode", 0)
    for turn in turns:
        turn.leave()
    await scene.check([])


@virtual
async def test_no_slot_to_copy_into() -> None:
    """A copy that gets no slot in time gives its place in the queue up."""
    scene = Scene()
    slots = [scene.backend.slot() for _ in range(2)]
    assert all(slot.query() for slot in slots)
    error = await raised(take(scene.stream(timeout=3), []))
    assert isinstance(error, StageTimeout)
    assert (error.stage, error.chunk) == ("download", 0)
    for slot in slots:
        slot.leave()
    await scene.check([])


@virtual
async def test_a_launch_thread_that_hangs() -> None:
    """A launch that could not begin in time is withdrawn, its turn given back."""
    scene, gate = Scene(), threading.Event()

    def hang() -> None:
        with parked():
            gate.wait()

    hanging = scene.backend.run(hang)
    error = await raised(take(scene.stream(timeout=3), []))
    assert isinstance(error, StageTimeout)
    assert (error.stage, error.chunk) == ("decode", 0)
    assert scene.backend.unfinished == 0
    gate.set()
    await asyncio.wrap_future(hanging)
    await scene.check([])


# All of it, again and again.


def objects() -> int:
    """Objects of the package and of asyncio that are alive."""
    return sum(
        str(type(thing).__module__).startswith(("streamvae", "asyncio", "_asyncio", "anyio"))
        or issubclass(type(thing), (BaseException, types.CoroutineType, types.AsyncGeneratorType))
        for thing in gc.get_objects()
    )


def test_500_random_cancels() -> None:
    """Whenever and however 500 streams are cut off, memory and threads stay flat."""
    random = Random(2)

    async def cut_off(scene: Scene) -> None:
        seen: list[int] = []
        stream = scene.stream(sinks=MemorySink(seconds=0.001))
        how = random.choice(["cancel", "close", "break", "drop", "timeout"])
        task = asyncio.create_task(
            take(stream, seen, stop_after=random.randrange(1, 9) if how == "break" else None)
        )
        await asyncio.sleep(random.uniform(0, 0.03))
        if how == "timeout":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(task, 0.002)
        elif how == "close":
            await stream.aclose()
        elif how != "break":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert seen == scene.expected[: len(seen)]

    async def main() -> None:
        scene = Scene(random.choice([1, 2]), backend=FakeBackend(decode=0.003, download=0.001))
        sizes = []
        for count in range(500):
            await cut_off(scene)
            if count in (249, 499):
                await scene.nothing_left()
                gc.collect()
                sizes.append((objects(), threading.active_count(), scene.backend.pinned_bytes))
        (alive, threads, pinned), after = sizes
        assert after[0] <= alive + 5
        assert after[1] <= threads
        assert after[2] == pinned
        await scene.next_is_right()

    run_virtual(main())


async def test_random_cancels_of_a_real_decoder() -> None:
    """The real backend and a real, tiny Wan: the stream after 20 cut off ones is the same."""
    vae, random = tiny.wan21(), Random(3)
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    before = await stream_decode(latents, vae).collect()

    async def consume(frames: int) -> None:
        async with stream_decode(latents, vae, queue_size=1) as stream:
            async for _ in stream:
                frames -= 1
                if not frames:
                    break

    threads = threading.active_count()
    for _ in range(20):
        task = asyncio.create_task(consume(random.randrange(1, 12)))
        for _ in range(random.randrange(200)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    after = await stream_decode(latents, vae).collect()
    assert np.array_equal(before, after)
    no_thread_left()
    assert threading.active_count() <= threads


@pytest.mark.parametrize("turns", range(5))
async def test_cancel_as_a_chunk_is_handed_over(turns: int) -> None:
    """A cancel in the very turn that hands a chunk over pins it to nobody's traceback."""
    scene = Scene()
    loop = asyncio.get_running_loop()
    seen = list[int]()

    def cancel_soon(done: int, total: int | None) -> None:
        if done == 5:
            after(turns)

    def after(left: int) -> None:
        """Cancel a few turns of the loop later; in one of them the chunk is between two tasks."""
        if left:
            loop.call_soon(after, left - 1)
        else:
            task.cancel()

    task = asyncio.create_task(take(scene.stream(progress=cancel_soon), seen))
    error = None
    try:
        await task
    except asyncio.CancelledError as cancelled:
        error = cancelled
    assert error is not None
    await scene.check(seen)
    assert task.cancelled()


@pytest.mark.parametrize("how", ["whole", "break", "cancel", "ends"])
def test_uvloop(how: str) -> None:
    """On uvloop streams end in the same ways."""
    uvloop = pytest.importorskip("uvloop")
    scenes = list[Scene]()

    async def main() -> None:
        scene = Scene(backend=FakeBackend(decode=0.002), sink=MemorySink())
        scenes.append(scene)
        seen = list[int]()
        task = asyncio.create_task(
            take(scene.stream(), seen, stop_after=3 if how == "break" else None)
        )
        if how in ("cancel", "ends"):
            await until(lambda: len(seen) > 2, "some frames")
            if how == "ends":
                return
            task.cancel()
        await asyncio.wait([task])
        await scene.check(seen, calls=("open", "close" if how == "whole" else "abort"))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert scenes[0].sink.calls[0] == "open"
    assert scenes[0].sink.calls[1] == ("close" if how == "whole" else "abort")
