"""What a report says of where the time went, and what would help."""

import asyncio

import pytest

from streamvae import StageTimes, StreamStats
from streamvae.report import advice, helps
from streamvae.testing import FakeBackend, MemorySink, one_by_one, tagged_latents

from ..flow import Scene, take, virtual
from .test_timeline import launch, stats

UNIT = 0.02


async def ran(rest: float = 0.0, **seconds: float) -> StreamStats:
    """Of twenty chunks over a device, a sink and a source of given speeds, in units of time."""
    stage = Scene(
        backend=FakeBackend(
            decode=seconds.get("decode", 10) * UNIT, download=seconds.get("download", 2) * UNIT
        ),
        sink=MemorySink(seconds=seconds.get("persist", 2) * UNIT),
        latents=tagged_latents(20),
    )
    slow = seconds.get("source")
    stream = stage.stream(slow and one_by_one(stage.latents, seconds=slow * UNIT))
    if not rest:
        await take(stream, [])
        return stream.stats
    async for chunk in stream.chunks():
        del chunk
        await asyncio.sleep(rest * UNIT)
    return stream.stats


@virtual
async def test_the_device_is_the_limit() -> None:
    """Nothing on the way out would help a stream that the device limits."""
    case = await ran()
    assert len(helps(case)) == 1
    assert "nothing on the way out: the device is the limit" in advice(case)
    assert "device busy 100.00%" in advice(case)


@virtual
async def test_a_slow_sink() -> None:
    """A faster sink or parallel writers."""
    case = await ran(persist=40)
    assert helps(case)[0].startswith("a faster sink")
    assert "parallel writers" in helps(case)[0]
    assert "held up by what comes after it" in advice(case)


@virtual
async def test_a_slow_copy() -> None:
    """Fewer bytes."""
    assert helps(await ran(download=40))[0].startswith("fewer bytes")


@virtual
async def test_a_slow_source() -> None:
    """Latents that come sooner."""
    case = await ran(source=40)
    assert helps(case) == ("latents that come sooner: the device waits for them",)
    assert "waiting for latents" in advice(case)


@virtual
async def test_a_slow_consumer() -> None:
    """A consumer that takes frames faster."""
    assert helps(await ran(rest=60))[0].startswith("a consumer that takes frames faster")


def test_bursts() -> None:
    """A sink that keeps up on the whole, and holds the device up now and then: a longer queue."""
    case = stats(
        launch(0, (0.0, 4.0)),
        launch(1, (5.0, 9.0), asked=4.9, begin=4.9, admitted=4.9, called=4.9),
        busy=0.8,
    )
    assert any("a longer queue" in line for line in helps(case))


def test_launches_that_take_long() -> None:
    """A device that waits for launches, or is done with them at once: graphs or larger chunks."""
    late = stats(
        launch(0, (0.0, 4.0)), launch(1, (5.0, 9.0), asked=1, begin=1, admitted=1, called=1)
    )
    assert helps(late)[0].startswith("chunks that are launched as a graph")
    assert "waiting for the launch" in advice(
        StreamStats(late.stages, 9, 3, 1.0, 9.0, timeline=late.timeline, device_busy=0.8)
    )


def test_a_shared_device() -> None:
    """A stream that waits for its turn is told that it is not alone."""
    shared = stats(
        launch(0, (0.0, 4.0)), launch(1, (5.0, 9.0), asked=1, begin=1, admitted=5, called=5)
    )
    assert helps(shared) == ("nothing in this stream: it shares the device with others",)


def test_opening_and_closing() -> None:
    """What takes long before the first chunk and after the last is told, and helped."""
    stages = (StageTimes("decode", 3, 1.0), StageTimes("persist", 3, 0.1, 0.9))
    slow = StreamStats(stages, 9, 3, 5.0, 6.0, opening=5.0)
    assert "warmup" in helps(slow)[0]
    closing = StreamStats(stages, 9, 3, 0.5, 2.0, closing=1.0)
    assert "a sink that keeps less for its end" in helps(closing)[0]
    assert "1.00 s after (sinks)" in advice(closing)


def test_before_anything_has_passed() -> None:
    """There is nothing to say yet."""
    assert helps(StreamStats()) == ("nothing to say yet",)
    assert advice(StreamStats()) == "limit: Nothing has passed yet.\nhelp: nothing to say yet"


@pytest.mark.parametrize(
    ("seconds", "said"), [(2.5, "2.50 s"), (0.0125, "12.5 ms"), (0.00004, "40 us"), (0, "0.0 ms")]
)
def test_times_are_said_in_their_units(seconds: float, said: str) -> None:
    """Seconds, milliseconds, microseconds."""
    stages = (StageTimes("decode", 3, seconds),)
    assert said in advice(StreamStats(stages, 9, 3, None, 10.0))
