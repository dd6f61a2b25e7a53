"""Memory in flight: the code that CUDA runs, over the fake device, with callers that vanish."""

import gc
import logging
import threading
import weakref
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from streamvae._events import Event
from streamvae.abc import Copy, Downloaded, Rendered
from streamvae.testing import POISON, FakeBackend, ManualEvent
from streamvae.testing._device import DriverCall

T = TypeVar("T")


def done(future: Future[T]) -> T:
    """Wait for a call of the backend's threads."""
    return future.result(timeout=30)


def rendered(value: int) -> Rendered:
    """A chunk of one picture of one value."""
    pixels = torch.full((1, 1, 4, 6, 3), value, dtype=torch.uint8)
    return Rendered(pixels, torch.tensor([True, True]))


def launch(backend: FakeBackend, value: int) -> tuple[object, Event]:
    """Launch a chunk of ``value``."""
    turn = backend.turn()
    assert turn.query()
    return done(backend.launch(lambda: rendered(value), turn))


def copy_of(backend: FakeBackend, handle: object, ready: Event) -> Copy:
    """Start a copy, a free slot granted."""
    slot = backend.slot()
    assert slot.query()
    copy = done(backend.download(handle, ready, slot))
    assert copy is not None
    return copy


def finish(backend: FakeBackend, copy: Copy, value: int) -> None:
    """Let the device do everything, and find ``value`` on the host."""
    for event in (*backend.launches, *backend.copies):
        event.set()
    assert copy.done.query()
    assert (done(backend.collect(copy)).pixels == value).all()


def test_a_copy_waits_for_its_launch_on_the_device() -> None:
    """A copy may be asked for at once; its bytes are those the launch makes later."""
    backend = FakeBackend(manual=True)
    copy = copy_of(backend, *launch(backend, 5))
    backend.copies[0].set()
    assert not copy.done.query()
    finish(backend, copy, 5)


def test_reading_early_shows() -> None:
    """Whoever collects before the event reads poison: the tests above would notice."""
    backend = FakeBackend(manual=True)
    copy = copy_of(backend, *launch(backend, 5))
    assert (done(backend.collect(copy)).pixels == POISON).all()


def test_an_abandoned_copy_keeps_its_slot_until_its_event() -> None:
    """A dropped copy's place and memory are free only once the device has let go of both."""
    backend = FakeBackend(manual=True)
    for value in (1, 2):
        handle, ready = launch(backend, value)
        copy = copy_of(backend, handle, ready)
        del handle, ready, copy
    gc.collect()
    waiting = backend.slot()
    assert not waiting.query()
    backend.launches[0].set()
    backend.copies[0].set()
    assert waiting.query()
    handle, ready = launch(backend, 3)
    third = done(backend.download(handle, ready, waiting))
    assert third is not None
    finish(backend, third, 3)


def test_a_wait_that_vanishes_after_the_copy_began() -> None:
    """Nobody takes the future's result: its slot comes back by itself, after the event."""
    backend = FakeBackend(manual=True)
    slot = backend.slot()
    assert slot.query()
    future = backend.download(*launch(backend, 1), slot)
    future.cancel()
    del future, slot
    done(backend.settle(launch(backend, 2)[0]))  # the copy thread has been through it
    gc.collect()
    assert backend.copying <= 1
    for event in (*backend.launches, *backend.copies):
        event.set()
    assert backend.copying == 0


def test_a_source_lives_until_it_was_copied() -> None:
    """Pixels on the device are held by the copy, not by who asked for it."""
    backend = FakeBackend(manual=True)
    handle, ready = launch(backend, 9)
    copy = copy_of(backend, handle, ready)
    del handle
    gc.collect()
    finish(backend, copy, 9)


def test_latents_live_until_the_launch_is_done() -> None:
    """What a launch reads is held until its event, and let go by the next call after it."""
    backend = FakeBackend(manual=True)
    latents = torch.zeros(3)
    gone = weakref.ref(latents)
    turn = backend.turn()
    done(backend.launch(lambda: rendered(1), turn, hold=(latents,)))
    del latents
    done(backend.run(gc.collect))
    assert gone() is not None
    backend.launches[0].set()
    done(backend.run(gc.collect))
    assert gone() is None


def test_a_launch_that_raises_is_fenced_too() -> None:
    """What it launched before it failed may still read: latents and turn wait for the event."""
    backend = FakeBackend(manual=True)
    latents = torch.zeros(3)
    gone = weakref.ref(latents)

    def broken() -> Rendered:
        raise ValueError("broken")

    turn = backend.turn()
    assert turn.query()
    with pytest.raises(ValueError, match="broken"):
        done(backend.launch(broken, turn, hold=(latents,)))
    del latents, turn
    gc.collect()
    assert backend.unfinished == 1
    assert gone() is not None
    backend.launches[0].set()
    assert backend.unfinished == 0
    done(backend.run(lambda: None))
    gc.collect()
    assert gone() is None


def test_a_copy_that_fails_is_quarantined() -> None:
    """Memory behind a failed event is never used again; its place is, with fresh memory."""
    backend = FakeBackend(manual=True)
    copy = copy_of(backend, *launch(backend, 1))
    backend.launches[0].set()
    backend.copies[0].fail(RuntimeError("device error"))
    with pytest.raises(RuntimeError, match="device error"):
        copy.done.query()
    before = backend.pinned_bytes
    del copy
    gc.collect()
    assert backend.copying == 0
    # The fake device's streams are broken for good, as CUDA's are: a second copy only starts.
    slot = backend.slot()
    assert slot.query()
    handle, ready = launch(backend, 2)
    second = done(backend.download(handle, ready, slot))
    assert second is not None
    assert backend.pinned_bytes == 2 * before


def test_a_copy_that_cannot_start_gives_its_place_back() -> None:
    """An event that no stream can wait for fails the copy, not the next one."""
    backend = FakeBackend(manual=True)
    handle, ready = launch(backend, 4)

    class Broken:
        def query(self) -> bool:
            raise RuntimeError("not an event")

    for _ in range(3):
        slot = backend.slot()
        assert slot.query()
        with pytest.raises(RuntimeError, match="not an event"):
            done(backend.download(handle, Broken(), slot))
    assert backend.copying == 0
    assert ready is not None


def test_withdrawn_before_it_began() -> None:
    """A cancelled call leaves nothing behind: neither a place nor memory."""
    backend = FakeBackend()
    handle, ready = launch(backend, 4)
    gate = threading.Event()
    turn, slot = backend.turn(), backend.slot()
    assert turn.query()
    assert slot.query()
    busy = backend.run(gate.wait)
    queued = backend.launch(lambda: rendered(1), turn)
    assert queued.cancel()
    del turn, queued
    gate.set()
    done(busy)
    done(backend.run(lambda: None))
    gc.collect()
    assert backend.unfinished == 0
    slot.leave()
    assert backend.copying == 0
    assert (done(backend.collect(copy_of(backend, handle, ready))).pixels == 4).all()


def test_slots_are_reused_and_chunks_are_not() -> None:
    """Every chunk's memory is its own, though all of them went through two slots."""
    backend = FakeBackend()
    kept = [
        done(backend.collect(copy_of(backend, *launch(backend, value)))).pixels
        for value in range(20)
    ]
    assert [int(pixels[0, 0, 0, 0, 0]) for pixels in kept] == list(range(20))
    assert all((pixels == value).all() for value, pixels in enumerate(kept))
    assert not any(pixels.flags.writeable for pixels in kept)
    assert not any(np.shares_memory(kept[0], other) for other in kept[1:])
    assert backend.pinned_bytes <= 2 * 128


def test_a_chunk_begins_on_a_page() -> None:
    """Its memory can be written past the system's cache as it is."""
    backend = FakeBackend()
    for value in range(5):
        pixels = done(backend.collect(copy_of(backend, *launch(backend, value)))).pixels
        assert pixels.ctypes.data % 4096 == 0


def test_pinned_memory_is_a_preference(caplog: pytest.LogCaptureFixture) -> None:
    """Refused or capped, the same bytes arrive, with one warning."""
    for backend in (FakeBackend(pinned=False), FakeBackend(max_pinned_bytes=0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "streamvae"):
            for value in range(4):
                copy = copy_of(backend, *launch(backend, value))
                assert (done(backend.collect(copy)).pixels == value).all()
        assert len(caplog.records) == 1


def test_settled_flags_are_on_the_host() -> None:
    """What stays on the device is given out with its flags where reading them waits for nobody."""
    backend = FakeBackend()
    handle, ready = launch(backend, 6)
    assert ready.query()
    settled = done(backend.settle(handle))
    assert settled is not None
    assert (settled.pixels == 6).all()
    assert settled.finite.device.type == "cpu"


def test_handles_of_others_are_refused() -> None:
    """What did not come from this backend is refused by name."""
    backend = FakeBackend()
    with pytest.raises(TypeError, match="expected what launch"):
        done(backend.settle(object()))
    with pytest.raises(TypeError, match="expected what download"):
        done(backend.collect(object()))  # type: ignore[arg-type]


def test_a_copy_is_collected_once() -> None:
    """A second collect of a copy is refused: its slot may be another's by then."""
    backend = FakeBackend()
    copy = copy_of(backend, *launch(backend, 6))
    assert (done(backend.collect(copy)).pixels == 6).all()
    with pytest.raises(ValueError, match="not collected yet"):
        done(backend.collect(copy))


@pytest.mark.parametrize("broken", [False, True])
def test_a_turn_is_not_kept_by_an_error(broken: bool) -> None:
    """Where no event can be recorded the turn comes back, whoever keeps the error; memory stays."""
    backend = FakeBackend(manual=True)
    errors: list[BaseException] = []
    gone: list[weakref.ref[torch.Tensor]] = []

    def work() -> Rendered:
        if broken:
            raise ValueError("broken")
        return rendered(1)

    for _ in range(3):
        latents, turn = torch.zeros(3), backend.turn()
        gone.append(weakref.ref(latents))
        assert turn.query()
        backend.fail_next("record", RuntimeError("no event"), stream="compute")
        with pytest.raises(RuntimeError, match="no event") as caught:
            done(backend.launch(work, turn, hold=(latents,)))
        errors.append(caught.value)
        del latents, turn, caught
    assert backend.unfinished == 0
    copy = copy_of(backend, *launch(backend, 5))
    finish(backend, copy, 5)
    errors.clear()
    done(backend.run(gc.collect))
    assert all(latents() is not None for latents in gone), "nothing says that they were read"


@pytest.mark.parametrize("call", ["wait", "begin"])
def test_a_launch_that_cannot_begin(call: DriverCall) -> None:
    """A launch whose driver fails before its work gives its turn back behind what came before."""
    backend = FakeBackend(manual=True)
    errors: list[BaseException] = []
    given = ManualEvent()
    given.set()
    for _ in range(3):
        turn = backend.turn()
        assert turn.query()
        backend.fail_next(call, RuntimeError("cannot"), stream="compute")
        with pytest.raises(RuntimeError, match="cannot") as caught:
            done(backend.launch(lambda: rendered(1), turn, after=(given,)))
        errors.append(caught.value)
        del turn
        assert backend.unfinished == 1
        backend.launches[-1].set()
        assert backend.unfinished == 0
    finish(backend, copy_of(backend, *launch(backend, 5)), 5)


@pytest.mark.parametrize("call", ["wait", "begin", "copy", "record"])
def test_a_slot_is_not_kept_by_an_error(call: DriverCall) -> None:
    """A copy that fails gives its place back, whoever keeps the error; its memory stays."""
    backend = FakeBackend(manual=True)
    handle, ready = launch(backend, 5)
    errors: list[BaseException] = []
    for number in range(1, 4):
        slot = backend.slot()
        assert slot.query()
        backend.fail_next(call, RuntimeError("cannot"), stream="copy")
        with pytest.raises(RuntimeError, match="cannot") as caught:
            done(backend.download(handle, ready, slot))
        errors.append(caught.value)
        del slot
        assert backend.copying == 0
        assert backend.pinned_bytes == number * 128, "a copy may have begun: not used again"
    finish(backend, copy_of(backend, handle, ready), 5)


def test_a_copy_out_that_fails_gives_its_place_back() -> None:
    """Where a copy cannot be collected its place comes back, whoever keeps error and copy."""

    class Full(FakeBackend):
        full = False

        def _copy_out(self, *flight: Any) -> Downloaded:
            if self.full:
                raise MemoryError("no memory for the chunk")
            return super()._copy_out(*flight)

    backend = Full()
    kept: list[object] = []
    backend.full = True
    for value in range(3):
        copy = copy_of(backend, *launch(backend, value))
        with pytest.raises(MemoryError, match="no memory") as caught:
            done(backend.collect(copy))
        kept += [copy, caught.value]
        assert backend.copying == 0
    backend.full = False
    finish(backend, copy_of(backend, *launch(backend, 5)), 5)
    assert backend.pinned_bytes <= 2 * 128, "their slots are used again"


def test_a_copy_may_be_dropped_in_a_call_of_the_device() -> None:
    """Whoever holds the device's lock may free copies, while another asks for their events."""
    backend = FakeBackend(manual=True)
    kept: list[object] = [copy_of(backend, *launch(backend, 1))]
    abandoned = copy_of(backend, *launch(backend, 2))
    asked, go_on = threading.Event(), threading.Event()

    class Asked(ManualEvent):
        def query(self) -> bool:
            asked.set()
            with backend.fake.lock:
                return True

    abandoned.flight.ticket.leave(after=Asked())  # type: ignore[attr-defined]
    asking = threading.Thread(target=lambda: backend.copying, daemon=True)

    def collect() -> None:
        with backend.fake.lock:
            asking.start()
            asked.wait(30)
            kept.clear()
        go_on.set()

    threading.Thread(target=collect, daemon=True).start()
    assert go_on.wait(30), "they wait for each other"
    asking.join(30)
    assert not asking.is_alive()
