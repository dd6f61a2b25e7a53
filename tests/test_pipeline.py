"""Stages joined by bounded queues, without torch: order, bounds, closing, errors."""

import asyncio
import traceback
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from streamvae import ClosedError
from streamvae._pipeline import Pipeline

from .flow import no_task_left, others, virtual


async def numbers(count: int) -> AsyncGenerator[int, None]:
    """0, 1, 2 ..."""
    for number in range(count):
        yield number


async def doubled(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
    """A stage."""
    async for number in source:
        yield 2 * number


async def all_of(queue: MemoryObjectReceiveStream[int]) -> list[int]:
    """Everything that comes."""
    return [item async for item in queue]


@pytest.mark.parametrize("queue_size", [0, 1, 2, 5])
@virtual
async def test_everything_arrives_in_order(queue_size: int) -> None:
    """What goes in comes out, stage after stage, and every book is kept."""
    pipeline = Pipeline(queue_size)
    last = pipeline.connect("second", doubled, pipeline.connect("first", doubled, numbers(9)))
    result, _ = await asyncio.gather(all_of(last), pipeline.run())
    assert result == [4 * number for number in range(9)]
    assert [times.name for times in pipeline.times] == ["first", "second"]
    assert [times.chunks for times in pipeline.times] == [9, 9]
    pipeline.close()


@virtual
async def test_passed_is_told() -> None:
    """Whoever asks is told of everything that passes a stage, before it is passed on."""
    pipeline, told = Pipeline(), list[int]()
    last = pipeline.connect("only", doubled, numbers(3), told.append)
    await asyncio.gather(all_of(last), pipeline.run())
    assert told == [0, 2, 4]
    pipeline.close()


@pytest.mark.parametrize("queue_size", [1, 2, 5])
@virtual
async def test_queues_are_bounded(queue_size: int) -> None:
    """Without a consumer a stage makes what its queue holds, and one more."""
    made = 0

    async def counting(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        nonlocal made
        async for number in source:
            made += 1
            yield number

    pipeline = Pipeline(queue_size)
    last = pipeline.connect("counting", counting, numbers(50))
    running = asyncio.create_task(pipeline.run())
    await asyncio.sleep(1)
    assert made == queue_size + 1
    assert await last.receive() == 0
    await asyncio.sleep(1)
    assert made == queue_size + 2
    running.cancel()
    await asyncio.wait([running])
    pipeline.close()


@virtual
async def test_books() -> None:
    """Time is booked as busy, waiting for input and waiting for output, while it passes."""
    clock = asyncio.get_running_loop().time

    async def slow_source() -> AsyncGenerator[int, None]:
        for number in range(3):
            await asyncio.sleep(5)
            yield number

    async def slow_stage(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        async for number in source:
            await asyncio.sleep(2)
            yield number

    pipeline = Pipeline(0, clock)
    last = pipeline.connect("stage", slow_stage, slow_source())
    running = asyncio.create_task(pipeline.run())
    for _ in range(3):
        await asyncio.sleep(10)
        await last.receive()
    (times,) = pipeline.times
    assert times.busy == pytest.approx(4)  # the third is taken this moment
    await running
    assert times.waiting_input == pytest.approx(15)
    assert times.busy == pytest.approx(6)
    assert times.waiting_output == pytest.approx(30 - 15 - 6)
    pipeline.close()


@pytest.mark.parametrize("where", ["source", "first", "second"])
@virtual
async def test_frames_first_then_the_error(where: str) -> None:
    """What was made before an error is delivered; the error comes as it was raised, with a note."""
    error = ValueError("the third was to fail")

    async def failing(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        async for number in source:
            if number == 2:
                raise error
            yield number

    stages = {name: failing if name == where else doubled_not for name in ("first", "second")}
    pipeline = Pipeline(5)
    source = failing(numbers(9)) if where == "source" else numbers(9)
    first = pipeline.connect("first", stages["first"], source)
    last = pipeline.connect("second", stages["second"], first)
    with pytest.raises(ValueError, match="third") as caught:
        await pipeline.run()
    assert caught.value is error
    stage = "first" if where == "source" else where
    did = "waited for" if where == "source" else "worked on"
    assert error.__notes__ == [f"While stage {stage!r} {did} chunk 2."]
    assert await all_of(last) == [0, 1]
    pipeline.close()


async def doubled_not(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
    """A stage that passes on what comes."""
    async for number in source:
        yield number


@virtual
async def test_the_first_error_counts() -> None:
    """Of several errors the first is raised; a stage that fails as it is stopped hides nothing."""
    stopped = list[str]()

    async def sour(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        try:
            async for number in source:
                yield number
                await anyio.sleep_forever()
        except asyncio.CancelledError:
            stopped.append("sour")
            raise KeyError("while it was stopped") from None

    async def failing(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        async for _ in source:
            raise ValueError("first")
            yield 0  # an async generator

    pipeline = Pipeline()
    pipeline.connect("failing", failing, pipeline.connect("sour", sour, numbers(9)))
    with pytest.raises(ValueError, match="first"):
        await pipeline.run()
    assert stopped == ["sour"]
    pipeline.close()


@virtual
async def test_after_the_end_of_input() -> None:
    """A stage that fails with nothing left to come was at work on the last chunk."""

    async def draining(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        async for number in source:
            yield number
        raise ValueError("nothing to drain")

    pipeline = Pipeline(9)
    pipeline.connect("draining", draining, numbers(3))
    with pytest.raises(ValueError, match="drain") as caught:
        await pipeline.run()
    assert caught.value.__notes__ == ["While stage 'draining' worked on chunk 2."]
    pipeline.close()


@virtual
async def test_a_stage_that_has_enough() -> None:
    """A stage that ends early ends those before it, also one blocked on its queue."""
    ended = list[str]()

    async def endless() -> AsyncGenerator[int, None]:
        number = 0
        while True:
            yield number
            number += 1

    async def eager(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        try:
            async for number in source:
                yield number
        finally:
            ended.append("eager")

    async def two(source: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        yield await anext(source)
        await asyncio.sleep(1)  # the queue before it is full by now
        await anext(source)  # wakes the stage before it, and is the last

    pipeline = Pipeline(1)
    last = pipeline.connect("two", two, pipeline.connect("eager", eager, endless()))
    result, _ = await asyncio.gather(all_of(last), pipeline.run())
    assert result == [0]
    assert ended == ["eager"]
    assert pipeline.times[0].chunks == 2  # one taken, one in the queue; the third came too late
    pipeline.close()


@virtual
async def test_nobody_wants_more() -> None:
    """A closed last queue ends the stages before it, without an error."""
    pipeline = Pipeline(1)
    last = pipeline.connect("second", doubled, pipeline.connect("first", doubled, numbers(50)))
    running = asyncio.create_task(pipeline.run())
    assert await last.receive() == 0
    await last.aclose()
    await running
    pipeline.close()


@virtual
async def test_cancelled() -> None:
    """A cancelled run ends every stage, and closing drops what is queued."""
    pipeline = Pipeline(3)
    last = pipeline.connect("second", doubled, pipeline.connect("first", doubled, numbers(50)))
    running = asyncio.create_task(pipeline.run())
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert not others()
    pipeline.close()
    pipeline.close()
    with pytest.raises(anyio.ClosedResourceError):
        last.receive_nowait()


@virtual
async def test_cancelled_before_its_first_step() -> None:
    """Stages that never ran leave no queue open: a consumer is not left waiting."""
    pipeline = Pipeline()
    last = pipeline.connect("only", doubled, numbers(3))
    consuming = asyncio.create_task(all_of(last))
    running = asyncio.create_task(pipeline.run())
    await asyncio.sleep(0)  # run() has made its tasks, none of which has run
    running.cancel()
    await asyncio.wait([running])
    assert await consuming == []
    pipeline.close()


@virtual
async def test_a_stranger_cancels_a_stage() -> None:
    """A stage cancelled from outside is an error: the stream did not end there."""
    pipeline = Pipeline(1)
    last = pipeline.connect("only", doubled, numbers(50))
    running = asyncio.create_task(pipeline.run())
    await last.receive()
    next(task for task in others() if task.get_name() == "streamvae only").cancel()
    with pytest.raises(ClosedError, match="got one cancelled"):
        await running
    pipeline.close()


@virtual
async def test_an_error_pins_nothing() -> None:
    """The traceback of a kept error holds nothing in our frames; a user's have their locals."""

    def fail(item: int) -> None:
        mine = bytearray(item)
        raise ValueError(len(mine))

    pipeline = Pipeline()
    pipeline.connect("doubling", doubled, numbers(3), fail)
    with pytest.raises(ValueError, match="0") as caught:
        await pipeline.run()
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert frames[-1].f_locals == {"item": 0, "mine": bytearray()}
    ours = [one for one in frames if one.f_globals["__name__"] == "streamvae._pipeline"]
    assert len(ours) == 3
    assert not any("item" in frame.f_locals for frame in ours)
    pipeline.close()
    await no_task_left()
