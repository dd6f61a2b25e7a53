"""The fakes themselves: hazards show, and virtual time is honest."""

import asyncio
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from streamvae import HostChunk, stream_decode
from streamvae._pixels import Kind
from streamvae._threads import Worker, calls_running, outcome, parked
from streamvae.abc import Rendered
from streamvae.testing import (
    POISON,
    Census,
    FakeBackend,
    FakeDevice,
    ManualEvent,
    MemorySink,
    StuckSink,
    TagCodec,
    VirtualLoop,
    one_by_one,
    poison,
    run_virtual,
    stuck_after,
    tagged_latents,
)

from .flow import no_thread_left, until, virtual


def device(*, manual: bool = True, **options: float) -> FakeDevice:
    """A device that ends nothing by itself, or one with a clock of its own."""
    return FakeDevice(
        compute=options.get("compute", 0.0),
        copy=options.get("copy", 0.0),
        manual=manual,
        clock=time.monotonic,
        pinned=True,
    )


def made_on(fake: FakeDevice, value: int) -> torch.Tensor:
    """Something the compute stream makes."""
    with fake.on("compute"):
        tensor = torch.full((4,), value, dtype=torch.uint8)
    fake.record("compute", made=(tensor,))
    return tensor


# The device.


def test_reading_early_shows() -> None:
    """What a stream makes is poison until its event, and itself then."""
    fake = device()
    tensor = made_on(fake, 5)
    assert tensor.tolist() == [POISON] * 4
    fake.launches[0].set()
    assert fake.record("compute").query() is False
    assert tensor.tolist() == [5] * 4


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_wait(waits: bool) -> None:
    """A copy of pixels that are not made yet is a copy of poison, unless its stream waits."""
    fake = device()
    tensor, into = torch.full((4,), 5, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    ready = fake.record("compute", made=(tensor,))
    with fake.on("copy"):
        if waits:
            fake.wait("copy", ready)
        fake.copy(tensor, into)
        done = fake.record("copy", made=(into,), read=(tensor,))
    assert tensor.tolist() == [POISON] * 4, "seen inside the stream only"
    for event in (*fake.launches, *fake.copies):
        event.set()
    assert done.query()
    assert into.tolist() == [5 if waits else POISON] * 4


def test_a_source_that_is_freed() -> None:
    """A copy whose source is let go of before its event has copied poison, and so have others."""
    fake = device()
    source, into = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    with fake.on("copy"):
        fake.copy(source, into)
        done = fake.record("copy", made=(into,), read=(source,))
    del source
    with fake.on("compute"):
        fake.wait("compute", done)
        after = into + 1
        fake.record("compute", made=(after,))
    for event in (*fake.copies, *fake.launches):
        event.set()
    assert done.query()
    assert into.tolist() == [POISON] * 4
    assert fake.record("compute").query() is False
    assert after.tolist() == [POISON] * 4


def test_memory_that_is_reused_early() -> None:
    """What another copy goes to is undefined as soon as that copy may begin."""
    fake = device()
    into = torch.zeros(4, dtype=torch.uint8)
    for value in (1, 2):
        with fake.on("copy"):
            fake.copy(torch.full((4,), value, dtype=torch.uint8), into)
            first = fake.record("copy", made=(into,))
        if value == 1:
            before = first
    fake.copies[0].set()
    assert before.query()
    assert into.tolist() == [POISON] * 4
    fake.copies[1].set()
    assert first.query()
    assert into.tolist() == [2] * 4


def test_streams_are_in_order() -> None:
    """Work ends in the order it was given, however early its own event is set."""
    fake = device()
    first, second = fake.record("compute"), fake.record("compute")
    fake.launches[1].set()
    assert not second.query()
    fake.launches[0].set()
    assert second.query()
    assert first.query()


@virtual
async def test_a_device_takes_its_time() -> None:
    """Each piece of work takes as long as it was told, one after another, in the loop's clock."""
    clock = asyncio.get_running_loop().time
    fake = FakeDevice(compute=10, copy=3, manual=False, clock=clock, pinned=True)
    events = [fake.record("compute") for _ in range(3)]
    with fake.on("copy"):
        fake.wait("copy", events[1])
        copied = fake.record("copy")
    ends = dict.fromkeys([*events, copied], 0.0)
    for _ in range(40):
        await asyncio.sleep(1)
        for event, end in ends.items():
            if not end and event.query():
                ends[event] = clock()
    assert list(ends.values()) == [10, 20, 30, 23]


def test_what_the_device_reports() -> None:
    """An event can be made to fail; what comes after it on the stream fails as well."""
    fake = device()
    first, second = fake.record("compute"), fake.record("compute")
    fake.launches[0].fail(RuntimeError("device lost"))
    for event in (first, second):
        with pytest.raises(RuntimeError, match="device lost"):
            event.query()


def test_latents_that_are_given() -> None:
    """Latents given to the device are poison until their event is set; others have no event."""
    fake = device()
    latents = torch.arange(4.0)
    event = fake.give(latents)
    assert fake.mark(latents) is event
    assert fake.mark(torch.zeros(3)) is None
    assert latents.tolist() != [0, 1, 2, 3]
    assert not event.query()
    with fake.on("compute"):
        fake.wait("compute", event)
        assert latents.tolist() == [0, 1, 2, 3]
    assert latents.tolist() != [0, 1, 2, 3]
    event.set()
    assert event.query()
    assert latents.tolist() == [0, 1, 2, 3]
    fake.wait("compute", event)
    del latents
    assert fake.mark(torch.zeros(3)) is None


def test_poison() -> None:
    """Every byte of a tensor, and false for bools."""
    floats = torch.zeros(2)
    poison(floats)
    assert floats.view(torch.uint8).tolist() == [POISON] * 8
    flags = torch.tensor([True, True])
    poison(flags)
    assert flags.tolist() == [False, False]


def test_the_device_keeps_nothing_alive() -> None:
    """A fake device holds memory, never a tensor of somebody's."""
    fake = device()
    tensor = made_on(fake, 1)
    gone = weakref.ref(tensor)
    del tensor
    assert gone() is None


def test_census() -> None:
    """Counts what is alive and the most there ever were."""
    census = Census()
    things = [ManualEvent() for _ in range(3)]
    for thing in things:
        census.add(thing)
    del things[1:], thing
    census.add(ManualEvent())
    assert (census.alive, census.peak, census.total) == (1, 3, 4)


def test_a_backend_gives_its_threads_back() -> None:
    """A fake backend's two threads end with it."""
    backend = FakeBackend()
    thread = backend.run(threading.current_thread).result(10)
    assert thread.is_alive()
    with pytest.raises(TypeError, match="expected a tensor, got int"):
        backend.give(3)
    del backend
    thread.join(10)
    assert not thread.is_alive()


def test_released_slots_are_poison() -> None:
    """A slot that was given back holds poison: a view of it is noticed."""
    backend = FakeBackend()
    turn, slot = backend.turn(), backend.slot()
    assert turn.query()
    assert slot.query()
    rendered = Rendered(torch.ones(4, dtype=torch.uint8), torch.tensor([True, True]))
    handle, ready = backend.launch(lambda: rendered, turn).result(10)
    copy = backend.download(handle, ready, slot).result(10)
    assert copy is not None
    buffer = copy.flight.buffer  # type: ignore[attr-defined]
    assert backend.collect(copy).result(10).pixels.tolist() == [1] * 4
    assert set(buffer.tolist()) == {POISON}


# Virtual time.


def test_an_hour_in_no_time() -> None:
    """Sleeping takes no time, and each sleep that took none is listed."""

    async def main() -> tuple[float, list[float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await asyncio.sleep(0)
        await asyncio.sleep(3600)
        await asyncio.sleep(0.25)
        return loop.time(), loop.jumps

    began = time.monotonic()
    now, jumps = run_virtual(main())
    assert now == 3600.25
    assert jumps == [3600, 0.25]
    assert time.monotonic() - began < 60


def test_an_executor_is_shut_down_in_no_time() -> None:
    """Its threads end in real time: the clock does not run on to the limit that a runner sets."""

    async def main() -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await asyncio.to_thread(time.monotonic)
        return loop

    assert run_virtual(main()).jumps == []


@virtual
async def test_timers_run_in_order() -> None:
    """Timers fire in the order and at the moment they are due."""
    loop = asyncio.get_running_loop()
    fired = list[tuple[str, float]]()
    for name, when in (("b", 2.0), ("a", 1.0), ("c", 2.5)):
        loop.call_later(when, lambda name=name: fired.append((name, loop.time())))  # type: ignore[misc]
    await asyncio.sleep(3)
    assert fired == [("a", 1.0), ("b", 2.0), ("c", 2.5)]


@pytest.mark.parametrize("where", ["worker", "executor"])
@virtual
async def test_the_clock_stands_while_a_thread_works(where: str) -> None:
    """However long a thread computes, it takes no virtual time, and no timer fires meanwhile."""
    loop = asyncio.get_running_loop()
    gate, fired = threading.Event(), list[str]()
    loop.call_later(0.001, fired.append, "timer")

    def compute() -> list[str]:
        gate.wait()
        return list(fired)

    # Set by a thread that nobody counts, in real time.
    threading.Timer(0.05, gate.set).start()
    if where == "worker":
        worker = Worker("streamvae tester")
        seen = await outcome(worker.submit(compute))
        worker.close()
    else:
        seen = await loop.run_in_executor(None, compute)
    assert seen == []
    assert loop.time() == 0
    await asyncio.sleep(0.002)
    assert fired == ["timer"]


@virtual
async def test_what_an_executor_raises() -> None:
    """An executor's call raises where it is awaited, and can be withdrawn before it has begun."""
    loop = asyncio.get_running_loop()
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, divmod, 1, 0)
    gate, ran = threading.Event(), list[int]()
    with ThreadPoolExecutor(1) as pool:
        first = loop.run_in_executor(pool, gate.wait)
        second = loop.run_in_executor(pool, ran.append, 1)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        await first
    assert ran == []


@virtual
async def test_the_clock_goes_on_while_a_thread_waits() -> None:
    """A thread that says it waits for the outside world does not hold the clock, nor its queue."""
    worker, gate = Worker("streamvae tester"), threading.Event()

    def wait() -> None:
        with parked():
            gate.wait()

    waiting, behind = worker.submit(wait), worker.submit(int)
    await asyncio.sleep(10)
    assert not waiting.done()
    gate.set()
    assert await outcome(behind) == 0
    worker.close()
    await until(lambda: calls_running() == 0, "nothing is running")


@virtual
async def test_advance() -> None:
    """The clock can be moved on; what was due fires once, late."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    fired = list[float]()
    loop.call_later(1, lambda: fired.append(loop.time()))
    loop.advance(5)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert fired == [5]


@virtual
async def test_other_threads_wake_the_loop() -> None:
    """A loop with nothing to do waits for the outside world in real time."""
    future = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    threading.Timer(0.01, loop.call_soon_threadsafe, (future.set_result, 3)).start()
    assert await future == 3


# The codec, sources and sinks.


@virtual
async def test_tags_tell_streams_apart() -> None:
    """Every frame of a `TagCodec` says which latent of which stream it came from."""
    codec = TagCodec(2, held=1)
    latents = tagged_latents(4, start=30)
    stream = stream_decode(latents, codec, backend=FakeBackend())
    whole = await stream.collect()
    assert codec.expected(latents) == [30, 32, 32, 34, 34, 36, 36]
    assert whole[0, :, 0, 0, 0].tolist() == codec.expected(latents)


def test_a_tag_decoder_is_closed_once() -> None:
    """A closed decoder is of no use, and is counted once."""
    codec = TagCodec()
    decoder = codec.decoder()
    decoder.close()
    decoder.close()
    assert codec.open_decoders == 0
    with pytest.raises(RuntimeError, match="expected an open decoder"):
        decoder.decode(tagged_latents(1))


@virtual
async def test_sources() -> None:
    """Latents one by one, slowly, failing, or with no end."""
    clock = asyncio.get_running_loop().time
    latents = tagged_latents(3)
    assert [float(z) async for z in one_by_one(latents, seconds=2)] == [0, 1, 2]
    assert clock() == 6
    with pytest.raises(RuntimeError, match="latent 1"):
        _ = [z async for z in one_by_one(latents, fail_at=1)]
    endless = stuck_after(latents)
    assert [float(await anext(endless)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(endless), 3600)
    await endless.aclose()


@virtual
async def test_a_source_with_no_end() -> None:
    """Frames of what came are delivered though the source never ends."""
    stream = stream_decode(stuck_after(tagged_latents(2)), TagCodec(), backend=FakeBackend())
    async with stream:
        frames = aiter(stream)
        for _ in range(2):
            await anext(frames)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(frames), 10)


@virtual
async def test_a_stuck_sink_that_is_not_stuck() -> None:
    """A `StuckSink` that does not come to its chunk is like any other."""
    sink = StuckSink(stuck_at=9)
    await stream_decode(tagged_latents(3), TagCodec(), sinks=sink, backend=FakeBackend()).finish()
    assert sink.calls == ["open", "close"]
    assert sink.tags == [0, 2, 4]
    no_thread_left()


@virtual
async def test_a_released_sink() -> None:
    """Released before it is given up, a stuck sink goes on."""
    sink = StuckSink(stuck_at=1)
    stream = stream_decode(tagged_latents(3), TagCodec(), sinks=sink, backend=FakeBackend())
    finishing = asyncio.create_task(stream.finish())
    await until(sink.stuck.is_set, "it hangs")
    assert sink.indices == [0]
    sink.release()
    await finishing
    assert sink.calls == ["open", "close"]


@virtual
async def test_memory_sink() -> None:
    """It remembers what it was told."""
    sink = MemorySink(name="remembers")
    stream = stream_decode(tagged_latents(3), TagCodec(2), sinks=sink, backend=FakeBackend())
    await stream.finish()
    assert (sink.indices, sink.tags, sink.committed) == ([0, 1, 2], [0, 2, 2, 4, 4], 5)
    assert sink.info == stream.info


@pytest.mark.parametrize(
    ("kind", "shape", "tags"),
    [
        ("sound", (2, 3, 2), [0, 2, 4, 6, 8, 10]),
        ("image", (2, 1, 1, 1, 3), [0, 3]),
        ("video", (1, 2, 2, 1, 3), [0, 6]),
    ],
)
async def test_memory_sink_of_every_kind(
    kind: Kind, shape: tuple[int, ...], tags: list[int]
) -> None:
    """It takes sound, pictures and video, as any sink may be given."""
    sink = MemorySink()
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    await sink.write(HostChunk(0, 0, kind, data))
    assert sink.tags == tags
    assert sink.committed == (shape[0] if kind == "image" else shape[1])
