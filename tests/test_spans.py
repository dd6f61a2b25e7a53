"""What each chunk went through: spans of known length give known shares."""

import asyncio
import dataclasses
import json
import time

import pytest
import torch

from streamvae import ChunkSpan, FrameStream, Percentiles, StreamStats
from streamvae._events import INTERVAL, Happened
from streamvae._log import Call, Log, clock_of
from streamvae.testing import (
    FakeBackend,
    ManualEvent,
    MemorySink,
    TagCodec,
    VirtualLoop,
    one_by_one,
    tagged_latents,
)

from .flow import Scene, take, virtual

#: Seconds of a unit of time: twenty polls.
UNIT = 20 * INTERVAL
CHUNKS = 6


def scene(*, codec: TagCodec | None = None, **seconds: float) -> Scene:
    """Six chunks over a device of known speed, in units of time."""
    return Scene(
        backend=FakeBackend(
            decode=seconds.get("decode", 10) * UNIT, download=seconds.get("download", 3) * UNIT
        ),
        codec=codec or TagCodec(),
        sink=MemorySink(seconds=seconds.get("persist", 2) * UNIT),
        latents=tagged_latents(CHUNKS),
    )


async def stats_of(stream: FrameStream) -> StreamStats:
    """Of a stream that has ended."""
    await take(stream, [])
    return stream.stats


@virtual
async def test_a_device_that_never_waits_is_busy_all_the_time() -> None:
    """Six launches of ten units, back to back: a share of 1, and every span where it belongs."""
    stats = await stats_of(scene().stream())
    assert stats.device_busy == pytest.approx(1.0)
    launches, copies = stats.of("decode"), stats.of("download")
    assert [span.device for span in launches] == pytest.approx([10 * UNIT] * CHUNKS)
    assert [span.device for span in copies] == pytest.approx([3 * UNIT] * CHUNKS)
    for launch, copy in zip(launches, copies, strict=True):
        assert copy.device_begin == pytest.approx(launch.device_end)
        assert copy.end >= (copy.device_end or 0)
    assert stats.stages[0].device == pytest.approx(60 * UNIT)
    assert stats.stages[1].device == pytest.approx(18 * UNIT)
    assert stats.stages[2].device == 0


@virtual
async def test_idle_time_is_seen_in_the_share() -> None:
    """Latents that come every twenty units keep a device of ten units busy half of the time."""
    stage = scene()
    source = one_by_one(stage.latents, seconds=20 * UNIT)
    stats = await stats_of(stage.stream(source))
    assert stats.device_busy == pytest.approx(0.5, abs=0.005)
    assert stats.between_frames is not None
    assert stats.between_frames.p50 == pytest.approx(20 * UNIT, rel=0.02)
    later = stats.of("decode")[1:]
    assert all(span.begin - span.asked > 5 * UNIT for span in later)


@virtual
async def test_a_slow_sink_fills_the_queues_before_it() -> None:
    """The queue before the stage that is the limit is full, and the device idles for it."""
    stats = await stats_of(scene(persist=40).stream(tagged_latents(20)))
    persist = stats.stages[2]
    assert max(span.queued for span in stats.of("persist")) == 2
    assert persist.queued_mean > 0.5
    assert stats.stages[0].queued_mean == 0
    assert stats.device_busy is not None
    assert stats.device_busy < 0.5


@virtual
async def test_the_timeline_is_made_of_plain_numbers() -> None:
    """Every stage of every chunk is in it, as JSON, with the bytes and frames of each."""
    stats = await stats_of(scene().stream())
    told = json.loads(json.dumps([dataclasses.asdict(span) for span in stats.timeline]))
    stages = [one["stage"] for one in told]
    assert stages == ["decode"] * CHUNKS + ["download"] * CHUNKS + ["persist"] * CHUNKS
    assert [one["chunk"] for one in told] == [*range(CHUNKS)] * 3
    assert sum(one["frames"] for one in told if one["stage"] == "persist") == stats.frames
    assert all(one["nbytes"] > 0 for one in told if one["stage"] != "decode")
    for span in stats.timeline:
        assert 0 <= span.asked <= span.begin <= span.end <= stats.total


@virtual
async def test_frames_on_the_device_have_a_timeline_too() -> None:
    """Where nothing is copied, launches and their settling are told."""
    stage = scene()
    stream = stage.stream(sinks=(), output="device")
    async for chunk in stream.chunks():
        del chunk
    assert stream.stats.device_busy == pytest.approx(1.0)
    assert {span.stage for span in stream.stats.timeline} == {"decode", "settle"}


@virtual
async def test_chunks_that_give_nothing_are_told_with_the_next() -> None:
    """Launches whose pixels come later, and those of the drain, are all in the timeline."""
    stats = await stats_of(scene(codec=TagCodec(held=2)).stream())
    assert [span.chunk for span in stats.of("decode")] == [*range(CHUNKS + 2)]
    assert all(span.device_end is not None for span in stats.of("decode"))
    assert [span.chunk for span in stats.of("download")] == [*range(2, CHUNKS + 2)]


@virtual
async def test_what_a_stream_that_is_left_has_launched_is_told_without_the_device() -> None:
    """Nobody waits for the device on the way out: its times are missing, and nothing else."""
    stage = scene()
    async with stage.stream() as stream:
        async for _ in stream:
            break
    launches = stream.stats.of("decode")
    assert len(launches) > 1
    assert launches[-1].device_end is None
    assert launches[-1].device == 0
    assert launches[-1].call_end is not None


@virtual
async def test_a_profiler_is_told_chunk_and_stage() -> None:
    """Launches, copies and what is copied out of slots are named on the device's threads."""
    stage = scene()
    await take(stage.stream(), [])
    labels = stage.backend.fake.labels
    for kind in ("decode chunk 3", "copy of decode chunk 3", "copy-out of decode chunk 3"):
        assert kind in labels


async def test_on_a_cpu_the_launch_is_the_work() -> None:
    """Without a device of its own, launches are what the device did; their processor time too."""
    from streamvae import stream_decode

    stream = stream_decode(tagged_latents(4), TagCodec())
    await stream.finish()
    for span in stream.stats.of("decode"):
        assert (span.device_begin, span.device_end) == (span.call_begin, span.call_end)
    assert stream.stats.launch_cpu is not None
    assert stream.stats.device_busy is not None
    assert not stream.stats.launch_bound
    assert all(span.device_end is None for span in stream.stats.of("download"))


def test_the_log_is_bounded() -> None:
    """Only the newest spans of a stage are kept; the sums go on."""
    log = Log(lambda: 1.0, kept=3)
    for chunk in range(10):
        call = Call(lambda: None, "decode", lambda: 0.0)
        call()
        call.begin, call.end = float(chunk), chunk + 0.5
        log.launched(chunk, call, Happened())
    assert [span.chunk for span in log.timeline()] == [7, 8, 9]
    assert log.device_seconds("decode") == pytest.approx(5.0)
    assert log.device_share() == pytest.approx(0.5)
    assert log.device_seconds("persist") == 0


def test_one_chunk_has_no_share() -> None:
    """A share needs two chunks; without any there is nothing to tell."""
    log = Log()
    assert log.device_share() is None
    call = Call(lambda: 7, "decode", time.monotonic)
    assert call() == 7
    log.launched(0, call, Happened())
    assert log.device_share() is None


def test_overlapping_spans_count_once() -> None:
    """Two copies at once are no more than one that takes as long as both."""
    log, event = Log(lambda: 0.0), Spanned(0.0, 4.0)
    log.passed("download", 0, event=event)
    log.passed("download", 1, event=Spanned(2.0, 6.0))
    log.passed("download", 2, event=Spanned(3.0, 5.0))
    assert log.device_seconds("download") == pytest.approx(6.0)


def test_an_event_without_times_costs_no_more_than_a_time() -> None:
    """A device that cannot tell leaves its times out."""
    log, ready = Log(lambda: 0.0), ManualEvent()
    log.passed("download", 0, event=ready)
    assert log.timeline()[0].device_begin is None
    assert log.device_seconds("download") == 0


def test_work_is_done_once_and_let_go_of() -> None:
    """A call runs its work once; a second time is a mistake of the caller's."""
    call = Call(lambda: torch.ones(2), "decode chunk 0", time.monotonic)
    assert call().shape == (2,)
    with pytest.raises(ValueError, match="not done yet"):
        call()


def test_a_call_that_raises_is_timed() -> None:
    """Whatever work raises, how long it took is known."""

    def fail() -> None:
        raise RuntimeError("no")

    call = Call(fail, "decode", time.monotonic)
    with pytest.raises(RuntimeError, match="no"):
        call()
    assert call.begin is not None
    assert call.end is not None
    assert call.end >= call.begin


def test_clocks() -> None:
    """A loop of the system's time is read off the system's clock, a virtual one off its own."""
    with asyncio.Runner() as runner:
        assert clock_of(runner.get_loop()) is time.monotonic
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert clock_of(loop)() == loop.time()


class Spanned(Happened):
    """An event with times."""

    def __init__(self, begin: float, end: float) -> None:
        self.when = (begin, end)

    def span(self) -> tuple[float, float]:
        return self.when


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(1.0, 1)], (1.0, 1.0, 1.0)),
        ([(float(n), 1) for n in range(1, 101)], (50.0, 99.0, 100.0)),
        ([(5.0, 1), (1.0, 99)], (1.0, 1.0, 5.0)),
        ([(2.0, 0), (1.0, 3)], (1.0, 1.0, 1.0)),
    ],
)
def test_percentiles(values: list[tuple[float, int]], expected: tuple[float, ...]) -> None:
    """Values count by their weights; those of none do not."""
    assert Percentiles.of(values) == Percentiles(*expected)


def test_no_percentiles_of_nothing() -> None:
    """Nothing has no median."""
    assert Percentiles.of([]) is None
    assert Percentiles.of([(1.0, 0)]) is None
    assert ChunkSpan("decode", 0, 0.0, 0.0, 0.0).device == 0
