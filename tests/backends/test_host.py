"""The host's own processor as a backend."""

import threading
import time
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import pytest
import torch

from streamvae._events import Happened, Timed
from streamvae.abc import Copy, Downloaded, Rendered
from streamvae.backends._host import HostBackend
from streamvae.testing import ManualEvent

T = TypeVar("T")


@pytest.fixture
def backend() -> HostBackend:
    """A backend of its own for each test."""
    return HostBackend(torch.device("cpu"))


def done(future: Future[T]) -> T:
    """Wait for a call of the backend's threads."""
    return future.result(timeout=30)


def rendered(value: int = 7, *, finite: bool = True) -> Rendered:
    """A chunk of two pictures of one value."""
    pixels = torch.full((1, 2, 4, 6, 3), value, dtype=torch.uint8)
    return Rendered(pixels, torch.tensor([True, finite]))


def downloaded(backend: HostBackend, made: Rendered) -> Downloaded:
    """Take ``made`` the whole way."""
    handle, ready = done(backend.launch(lambda: made, backend.turn()))
    copy = done(backend.download(handle, ready, backend.slot()))
    assert copy is not None
    assert copy.done.query()
    return done(backend.collect(copy))


def test_pixels_and_flags_arrive(backend: HostBackend) -> None:
    """What a launch made reaches the host as it was made, with both flags."""
    result = downloaded(backend, rendered(finite=False))
    assert result.pixels.shape == (1, 2, 4, 6, 3)
    assert (result.pixels == 7).all()
    assert (result.latents_finite, result.pixels_finite) == (True, False)


class Accelerator(HostBackend):
    """One that launches ahead, and has to be waited for."""

    def _finish(self) -> bool:
        return True


def test_an_accelerator_s_work_is_timed_to_its_end() -> None:
    """Where the call returns before the work is done, the event knows how long that took."""
    began = time.monotonic()
    backend = Accelerator(torch.device("cpu"))
    _, ready = done(backend.launch(rendered, backend.turn()))
    assert isinstance(ready, Timed)
    span = ready.span()
    assert span is not None
    assert began <= span[0] <= span[1] <= time.monotonic()


def test_host_memory_is_not_copied(backend: HostBackend) -> None:
    """The tensor's memory becomes the chunk's own."""
    made = rendered()
    result = downloaded(backend, made)
    assert np.shares_memory(result.pixels, made.pixels.numpy())


def test_pixels_are_read_only_and_contiguous(backend: HostBackend) -> None:
    """Nobody downstream can change what others see."""
    result = downloaded(backend, rendered())
    assert result.pixels.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        result.pixels[0] = 0


def test_float32_pixels_arrive_as_they_are(backend: HostBackend) -> None:
    """Pixels before quantisation keep their dtype and values."""
    pixels = torch.linspace(-1, 1, 36).view(1, 1, 3, 4, 3)
    result = downloaded(backend, Rendered(pixels, torch.tensor([True, True])))
    assert result.pixels.dtype == np.float32
    assert np.array_equal(result.pixels, pixels.numpy())


def test_launches_run_in_order_on_one_thread(backend: HostBackend) -> None:
    """Launches and host code share one thread, in the order they were given."""
    order: list[tuple[object, int]] = []

    def work(name: object) -> None:
        order.append((name, threading.get_ident()))

    futures: list[Future[object]] = []
    for index in range(20):
        futures.append(backend.launch(lambda index=index: work(index), backend.turn()))  # type: ignore[misc,arg-type]
        futures.append(backend.run(lambda index=index: work(-index)))  # type: ignore[misc,arg-type]
    for future in futures:
        done(future)
    assert [name for name, _ in order] == [sign * i for i in range(20) for sign in (1, -1)]
    assert len({thread for _, thread in order}) == 1


def test_no_gradients_are_kept(backend: HostBackend) -> None:
    """Everything runs without gradients; the caller's grad mode stays what it was."""
    assert not done(backend.run(torch.is_grad_enabled))
    seen: list[bool] = []
    done(backend.launch(lambda: seen.append(torch.is_grad_enabled()), backend.turn()))  # type: ignore[arg-type,func-returns-value]
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_nothing_made_is_nothing_copied(backend: HostBackend) -> None:
    """A launch with nothing to give downloads, and settles, as None, and its slot is free."""
    slot = backend.slot()
    assert slot.query()
    handle, ready = done(backend.launch(lambda: None, backend.turn()))
    assert done(backend.download(handle, ready, slot)) is None
    assert done(backend.settle(handle)) is None
    slots = [backend.slot(), backend.slot()]
    assert all(ticket.query() for ticket in slots)


def test_errors_belong_to_who_waits(backend: HostBackend) -> None:
    """A launch that raises gives its turn back, raises in its future, and the next one works."""

    def broken() -> None:
        raise ValueError("broken")

    for _ in range(3):
        turn = backend.turn()
        assert turn.query()
        with pytest.raises(ValueError, match="broken"):
            done(backend.launch(broken, turn))
    assert (downloaded(backend, rendered(3)).pixels == 3).all()


def test_a_queued_call_can_be_withdrawn(backend: HostBackend) -> None:
    """A launch cancelled before it began never runs, and its turn is free."""
    gate = threading.Event()
    ran: list[int] = []
    first = backend.run(gate.wait)
    turn = backend.turn()
    assert turn.query()
    queued = backend.launch(lambda: ran.append(1), turn)  # type: ignore[arg-type,func-returns-value]
    assert queued.cancel()
    del turn
    gate.set()
    done(first)
    done(backend.run(lambda: None))
    assert ran == []
    turns = [backend.turn(), backend.turn()]
    assert all(ticket.query() for ticket in turns)


def test_a_copy_that_nobody_collects_gives_its_slot_back(backend: HostBackend) -> None:
    """Dropping a copy is enough."""
    for _ in range(5):
        slot = backend.slot()
        assert slot.query()
        copy: Copy | None = done(backend.download(rendered(), Happened(), slot))
        assert copy is not None
        del copy, slot
    assert backend.slot().query()


def test_latents_of_another_device_are_waited_for(backend: HostBackend) -> None:
    """A launch reads its latents only after their event."""
    event = ManualEvent()
    read: list[bool] = []
    future = backend.launch(lambda: read.append(event.query()), backend.turn(), after=(event,))  # type: ignore[arg-type,func-returns-value]
    assert read == []
    event.set()
    done(future)
    assert read == [True]


def test_host_latents_need_no_event(backend: HostBackend) -> None:
    """A host tensor is there as soon as it is given."""
    assert backend.mark(torch.zeros(1)) is None


def test_at_most_two_at_a_time(backend: HostBackend) -> None:
    """Two launches and two copies get their turn; the third gets it when one leaves."""
    for take in (backend.turn, backend.slot):
        tickets = [take() for _ in range(3)]
        assert [ticket.query() for ticket in tickets] == [True, True, False]
        tickets[0].leave()
        assert tickets[2].query()


def test_settled_chunks_stay_where_they_are(backend: HostBackend) -> None:
    """What is left on the device is what was rendered, its flags on the host."""
    made = rendered()
    handle, _ = done(backend.launch(lambda: made, backend.turn()))
    settled = done(backend.settle(handle))
    assert settled is not None
    assert settled.pixels is made.pixels
    assert settled.finite.tolist() == [True, True]


def test_threads_stay_two(backend: HostBackend) -> None:
    """However much is decoded, a device has one thread to launch and one to copy."""
    downloaded(backend, rendered())
    before = threading.active_count()
    for _ in range(50):
        downloaded(backend, rendered())
    assert threading.active_count() == before


def test_only_its_own_copies_are_collected(backend: HostBackend) -> None:
    """A copy of somebody else's is refused by name."""
    with pytest.raises(TypeError, match="expected a copy of this backend, got object"):
        backend.collect(object())  # type: ignore[arg-type]
