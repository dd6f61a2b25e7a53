"""The polling adapter: when it looks, what it says, and what it leaves."""

import asyncio
import gc
import threading
import weakref

import pytest

from streamvae import StageTimeout
from streamvae._events import INTERVAL, Event, Happened, poller_for, wait
from streamvae.testing import ManualEvent, VirtualLoop, run_virtual

from .flow import virtual


async def waited(event: Event, *, device: str = "device", timeout: float | None = None) -> None:
    """Wait as a stage would."""
    await wait(event, device, stage="download", chunk=7, timeout=timeout)


def loop() -> VirtualLoop:
    """The running loop."""
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


class Counted(ManualEvent):
    """An event that counts how often it was looked at."""

    looks = 0

    def query(self) -> bool:
        self.looks += 1
        return super().query()


@virtual
async def test_what_has_happened_is_not_waited_for() -> None:
    """An event that has happened costs one look and no turn of the loop."""
    event = Counted()
    event.set()
    waiting = waited(event)
    with pytest.raises(StopIteration):
        waiting.send(None)
    assert event.looks == 1
    await waited(Happened())
    assert loop().jumps == []


@virtual
async def test_one_look_each_interval() -> None:
    """A pending event is looked at once each millisecond, and its waiter wakes within one."""
    event = Counted()
    loop().call_later(3.5 * INTERVAL, event.set)
    began = loop().time()
    await waited(event)
    assert loop().time() - began == pytest.approx(4 * INTERVAL)
    assert event.looks == 5


@virtual
async def test_one_poller_for_all() -> None:
    """However many wait for a device, one timer serves them; another device has its own."""
    events = [ManualEvent() for _ in range(50)]
    waiting = [asyncio.ensure_future(waited(event)) for event in events]
    other = ManualEvent()
    waiting.append(asyncio.ensure_future(waited(other, device="another")))
    await asyncio.sleep(0)
    assert len(loop()._scheduled) == 2  # type: ignore[attr-defined]
    assert poller_for("device") is poller_for("device")
    assert poller_for("device") is not poller_for("another")
    for event in (*events, other):
        event.set()
    await asyncio.gather(*waiting)
    assert poller_for("device")._timer is None


@pytest.mark.parametrize("seconds", [0.0005, 2])
@virtual
async def test_timeout(seconds: float) -> None:
    """A timeout names stage, chunk and seconds, at most a look late, and leaves nothing."""
    began = loop().time()
    with pytest.raises(StageTimeout) as caught:
        await waited(ManualEvent(), timeout=seconds)
    assert (caught.value.stage, caught.value.chunk) == ("download", 7)
    assert caught.value.seconds == seconds
    assert seconds <= loop().time() - began <= seconds + 1.01 * INTERVAL
    assert poller_for("device")._waits == {}
    assert poller_for("device")._timer is None


@virtual
async def test_timeout_of_an_hour() -> None:
    """An hour passes in no time, where nothing else is due."""
    waiting = asyncio.ensure_future(waited(ManualEvent(), timeout=3600))
    await asyncio.sleep(1)
    loop().advance(3598)
    await asyncio.sleep(0.5)
    assert not waiting.done()
    with pytest.raises(StageTimeout, match="3600 s"):
        await waiting


@virtual
async def test_at_the_last_moment() -> None:
    """An event that happens as the time runs out has happened."""
    event = ManualEvent()
    loop().call_later(4.9 * INTERVAL, event.set)
    await waited(event, timeout=4.5 * INTERVAL)


@pytest.mark.parametrize("already", [True, False])
@virtual
async def test_what_the_device_reports(already: bool) -> None:
    """The device's error reaches the one who waits for that event, and nobody else."""
    event, other = ManualEvent(), ManualEvent()
    if already:
        event.fail(RuntimeError("device lost"))
    waiting = [asyncio.ensure_future(waited(one)) for one in (event, other)]
    await asyncio.sleep(2 * INTERVAL)
    event.fail(RuntimeError("device lost"))
    with pytest.raises(RuntimeError, match="device lost"):
        await waiting[0]
    assert not waiting[1].done()
    other.set()
    await waiting[1]


@virtual
async def test_cancelled() -> None:
    """A wait can be broken off at any moment, the others go on, and no timer is left."""
    event = Counted()
    waiting = [asyncio.ensure_future(waited(event)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(2.5 * INTERVAL)
    # In the turn in which the poller looks: its future is done, the poller has not forgotten it.
    loop().call_at(loop()._scheduled[0].when() - 1e-7, waiting[1].cancel)  # type: ignore[attr-defined]
    await asyncio.sleep(2 * INTERVAL)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    waiting[2].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert poller_for("device")._timer is None
    looks = event.looks
    await asyncio.sleep(10 * INTERVAL)
    assert event.looks == looks


@virtual
async def test_cancelled_in_the_turn_of_a_look() -> None:
    """A wait whose future was cancelled just before a look is passed over."""
    event, other = ManualEvent(), ManualEvent()
    waiting = [asyncio.ensure_future(waited(one)) for one in (event, other)]
    await asyncio.sleep(0)
    poller = poller_for("device")
    waiting[0].cancel()  # its future is done; the task has not run yet
    poller._look()
    assert len(poller._waits) == 1
    other.set()
    await waiting[1]


@virtual
async def test_a_wait_that_begins_during_another() -> None:
    """A poller at work takes newcomers, and rests when all are served."""
    first, second = ManualEvent(), ManualEvent()
    one = asyncio.ensure_future(waited(first))
    await asyncio.sleep(1.5 * INTERVAL)
    two = asyncio.ensure_future(waited(second))
    await asyncio.sleep(0)
    first.set()
    await one
    assert poller_for("device")._timer is not None
    second.set()
    await two
    assert poller_for("device")._timer is None


def test_a_loop_is_not_kept() -> None:
    """A loop that ended in the middle of a wait can be collected."""
    loops = list[weakref.ref[asyncio.AbstractEventLoop]]()

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        task = asyncio.create_task(waited(ManualEvent()))
        await asyncio.sleep(1.5 * INTERVAL)
        assert not task.done()

    run_virtual(main())
    gc.collect()
    assert loops[0]() is None


def test_loops_in_threads() -> None:
    """Loops in other threads have pollers of their own for the same device."""
    pollers = list[object]()

    async def main() -> None:
        event = ManualEvent()
        pollers.append(poller_for("device"))
        asyncio.get_running_loop().call_later(0.002, event.set)
        await waited(event)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(poller) for poller in pollers}) == 3
