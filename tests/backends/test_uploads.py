"""Latents from host memory to the device: slots, events, and callers that vanish."""

import gc
import logging
import weakref
from concurrent.futures import Future
from typing import TypeVar

import pytest
import torch

from streamvae.abc import Rendered, Uploaded
from streamvae.testing import FakeBackend

T = TypeVar("T")


def done(future: Future[T]) -> T:
    """Wait for a call of the backend's threads."""
    return future.result(timeout=30)


def latents(value: float, steps: int = 2) -> torch.Tensor:
    """Latents of one value, a part of longer ones as chunks are: not dense."""
    return torch.full((1, 2, 5, 3, 4), float(value))[:, :, :steps]


def upload(backend: FakeBackend, *tensors: torch.Tensor) -> Uploaded:
    """Start an upload, a free slot granted."""
    slot = backend.uploads.slot()
    assert slot.query()
    return done(backend.uploads.start(tensors, slot))


def launch(backend: FakeBackend, uploaded: Uploaded) -> tuple[object, Rendered]:
    """Launch a copy of what was uploaded; give what the launch made, and where it made it."""
    turn = backend.turn()
    assert turn.query()
    made: list[Rendered] = []

    def work() -> Rendered:
        made.append(Rendered(uploaded.tensors[0].clone(), torch.tensor([True, True])))
        return made[0]

    handle, ready = done(backend.launch(work, turn, after=uploaded.arrived, hold=uploaded.tensors))
    del handle
    return ready, made[0]


def let_all_happen(backend: FakeBackend) -> None:
    """Let the device do all that it was given."""
    for event in (*backend.arrivals, *backend.launches, *backend.copies):
        event.set()


def test_a_launch_waits_for_its_latents_on_the_device() -> None:
    """A launch may be asked for at once; it reads what has come by then, and not before."""
    backend = FakeBackend(upload=0.0, manual=True)
    uploaded = upload(backend, latents(3))
    ready, made = launch(backend, uploaded)
    backend.launches[0].set()
    assert not ready.query()  # type: ignore[attr-defined]
    let_all_happen(backend)
    assert ready.query()  # type: ignore[attr-defined]
    assert (made.pixels == 3).all()


def test_reading_early_shows() -> None:
    """A launch that does not wait for the event reads poison: the test above would notice."""
    backend = FakeBackend(upload=0.0, manual=True)
    uploaded = upload(backend, latents(3))
    ready, made = launch(backend, Uploaded(uploaded.tensors))
    let_all_happen(backend)
    assert ready.query()  # type: ignore[attr-defined]
    assert not (made.pixels == 3).any()


def test_a_slot_that_is_written_early_shows() -> None:
    """A slot that changes before its copy's event makes the latents poison: tests would notice."""
    backend = FakeBackend(upload=0.0, manual=True)
    uploaded = upload(backend, latents(3))
    buffer = backend.uploads._flights[0].buffer
    assert buffer is not None
    buffer.fill_(0)
    let_all_happen(backend)
    assert uploaded.arrived[0].query()
    assert not (uploaded.tensors[0] == 3).any()


def test_slots_are_reused_after_their_event() -> None:
    """Two at a time; the third waits for an event, and then takes the first one's memory."""
    backend = FakeBackend(upload=0.0, manual=True)
    kept = [upload(backend, latents(value)) for value in (1, 2)]
    waiting = backend.uploads.slot()
    assert not waiting.query()
    backend.arrivals[0].set()
    assert waiting.query()
    kept.append(done(backend.uploads.start((latents(3),), waiting)))
    assert len({flight.buffer.data_ptr() for flight in backend.uploads._flights}) == 2  # type: ignore[union-attr]
    let_all_happen(backend)
    for value, uploaded in zip((1, 2, 3), kept, strict=True):
        assert uploaded.arrived[0].query()
        assert (uploaded.tensors[0] == value).all()


def test_a_wait_that_vanishes() -> None:
    """Nobody takes what came: its slot comes back after its event, and other latents are right."""
    backend = FakeBackend(upload=0.0, manual=True)
    slot = backend.uploads.slot()
    assert slot.query()
    future = backend.uploads.start((latents(1),), slot)
    future.cancel()
    del future, slot
    kept = upload(backend, latents(2))
    gc.collect()
    let_all_happen(backend)
    assert backend.arriving == 0
    assert kept.arrived[0].query()
    assert (kept.tensors[0] == 2).all()


def test_what_was_uploaded_lives_until_its_launch_is_done() -> None:
    """Latents on the device are the launch's to hold, as given ones are."""
    backend = FakeBackend(upload=0.0, manual=True)
    uploaded = upload(backend, latents(4))
    gone = weakref.ref(uploaded.tensors[0])
    ready, made = launch(backend, uploaded)
    del uploaded
    gc.collect()
    assert gone() is not None
    let_all_happen(backend)
    assert ready.query()  # type: ignore[attr-defined]
    assert (made.pixels == 4).all()
    done(backend.run(lambda: None))
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pieces_keep_shape_strides_and_dtype(dtype: torch.dtype) -> None:
    """What arrives is what ``tensor.to(device)`` would have made, in however many pieces."""
    backend = FakeBackend(upload=0.0)
    base = torch.randn(2, 3, 5, 4, 6).to(dtype)
    given = (
        base,
        base[:, :, 1:3],
        base.to(memory_format=torch.channels_last_3d),
        base.transpose(3, 4)[..., ::2],
        base[:1, :, :, :1].expand(2, -1, -1, 4, -1),
    )
    uploaded = upload(backend, *given)
    for came, gave in zip(uploaded.tensors, given, strict=True):
        alone = gave.to("meta")
        assert (came.dtype, came.shape, came.stride()) == (dtype, gave.shape, alone.stride())
        assert torch.equal(came, gave)
        assert came.data_ptr() != gave.data_ptr()


def test_latents_that_are_there_pass_as_they_are() -> None:
    """What is on the device is not copied, nor asked about by anybody who has no uploads."""
    backend = FakeBackend(upload=0.0)
    there, host = latents(1), latents(2)
    backend.give(there).set()
    assert not backend.uploads.wanted((there,))
    assert backend.uploads.wanted((there, host))
    uploaded = upload(backend, there, host)
    assert uploaded.tensors[0] is there
    assert (uploaded.tensors[1] == 2).all()
    assert not FakeBackend().uploads.wanted((host,))


def test_page_locked_memory_is_a_preference(caplog: pytest.LogCaptureFixture) -> None:
    """Refused or capped, the same latents arrive; with the downloads', it is said once."""
    for backend in (
        FakeBackend(upload=0.0, pinned=False),
        FakeBackend(upload=0.0, max_pinned_bytes=0),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "streamvae"):
            for value in range(4):
                uploaded = upload(backend, latents(value))
                assert (uploaded.tensors[0] == value).all()
        assert len(caplog.records) == 1
        assert backend.pinned_bytes == 0


def test_both_kinds_of_slots_share_a_cap() -> None:
    """Page-locked memory of uploads counts with that of downloads."""
    backend = FakeBackend(upload=0.0)
    upload(backend, latents(1))
    assert backend.pinned_bytes == 256


def test_an_upload_that_cannot_start_gives_its_place_back() -> None:
    """An error is that of its stream, not of the next one."""
    backend = FakeBackend(upload=0.0)
    for _ in range(3):
        slot = backend.uploads.slot()
        assert slot.query()
        with pytest.raises(AttributeError):
            done(backend.uploads.start((latents(1), None), slot))  # type: ignore[arg-type]
    assert backend.arriving == 0
    assert (upload(backend, latents(2)).tensors[0] == 2).all()
