"""Latents that come one by one from a sync iterable."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from streamvae._errors import LatentsError
from streamvae._threads import parked
from streamvae.abc import ChunkPlan
from streamvae.latents import cut, open_latents
from streamvae.latents._iterate import CLEANUP, IterableSource
from streamvae.testing import run_virtual
from tests.latents.codec import Rules
from tests.latents.given import STEADY, Marks, chunks_of, joined, latents, no_mark, reader_threads


class Gate:
    """An iterator whose every item must be let through, and that knows what was done to it."""

    def __init__(self, *, opened: bool = False) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(1000 if opened else 0)
        self.asked = 0
        self.closed_on: threading.Thread | None = None
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        self.asked += 1
        self.entered.release()
        with parked():
            self.open.acquire()
        return latents(1)

    def close(self) -> None:
        self.closed_on = threading.current_thread()
        self.closed.set()


async def elsewhere(wait: Callable[[], object]) -> None:
    """Wait for another thread without holding up the loop."""
    await asyncio.get_running_loop().run_in_executor(None, wait)


async def idle(source: IterableSource) -> None:
    """Wait until the reader thread has read ahead and rests."""
    assert source._reading is not None
    await elsewhere(source._reading.exception)


async def test_an_iterable_is_read_on_a_daemon_thread_of_its_own() -> None:
    """Every item comes from one daemon thread, which marks it there and ends with the source."""
    seen = []

    def generated():
        for piece in latents().split(1, 2):
            seen.append(threading.current_thread())
            yield piece

    marks = Marks()
    source = open_latents(generated(), marks)
    assert not reader_threads()
    chunks = [chunk async for chunk in cut(source, STEADY, Rules())]
    await source.aclose()
    (thread,) = set(seen)
    assert thread.daemon
    assert thread is not threading.current_thread()
    assert set(marks.threads) == {thread}
    assert tuple(event for chunk in chunks for event in chunk.arrived) == tuple(marks.events)
    assert torch.equal(joined(chunks), latents())
    thread.join(5)
    assert not thread.is_alive()


async def test_one_item_is_read_ahead_at_most() -> None:
    """While a piece is used the next is made, and no more."""
    gate = Gate(opened=True)
    source = open_latents(gate, no_mark)
    for taken in range(1, 4):
        await source.piece(2, 1)
        await idle(source)
        assert gate.asked == taken + 1
    await source.aclose()


def watched(step: int, gone: list[int]) -> torch.Tensor:
    """One latent whose memory, once freed, is noted in ``gone``."""
    array = latents(1, seed=step).numpy().copy()
    weakref.finalize(array, gone.append, step)  # the tensor's memory is the array's
    return torch.from_numpy(array)


@pytest.mark.parametrize("kind", [iter, list, tuple])
async def test_pieces_that_were_used_are_let_go(kind) -> None:
    """Memory does not grow with length: when a piece comes, those before it are gone."""
    gone: list[int] = []
    source = open_latents(kind(watched(step, gone) for step in range(6)), no_mark)
    chunks = cut(source, ChunkPlan(1, 1), Rules())
    gc.disable()  # nothing may hang on a collection
    try:
        async for chunk in chunks:
            index = chunk.index
            del chunk
            assert gone[:index] == list(range(index))
            assert len(gone) <= index + 1
    finally:
        gc.enable()
    assert index == 5
    await source.aclose()


async def test_a_generator_is_closed_on_its_thread_before_aclose_returns() -> None:
    """Clean-up of a generator that is not exhausted runs where the generator ran."""
    done = []

    def generated():
        try:
            yield latents(1)
            yield latents(1)
            yield latents(1)
        finally:
            done.append(threading.current_thread())

    source = open_latents(generated(), no_mark)
    await source.piece(2, 1)
    await idle(source)
    (thread,) = reader_threads()
    await source.aclose()
    await source.aclose()
    assert done == [thread]
    assert await source.piece(2, 1) is None


async def test_a_wait_for_a_slow_iterable_can_be_cancelled() -> None:
    """Cancelling does not wait for the reader; what it is in is closed when it comes back."""
    gate = Gate()
    source = open_latents(gate, no_mark)
    waiting = asyncio.create_task(source.piece(2, 1))
    await elsewhere(gate.entered.acquire)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (thread,) = reader_threads()
    await source.aclose()
    assert not gate.closed.is_set()
    assert await source.piece(2, 1) is None
    gate.open.release()
    await elsewhere(gate.closed.wait)
    assert gate.closed_on is thread
    thread.join(5)
    assert not thread.is_alive()


def test_closing_does_not_wait_for_the_read_ahead() -> None:
    """A reader that is blocked in the user's code does not hold up aclose, not even a moment."""
    gate = Gate()
    gate.open.release()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        source = open_latents(gate, no_mark)
        await source.piece(2, 1)
        await elsewhere(gate.entered.acquire)
        await elsewhere(gate.entered.acquire)
        begun = loop.time()
        await source.aclose()
        return loop.time() - begun

    assert run_virtual(main()) == 0
    assert not gate.closed.is_set()
    gate.open.release()
    gate.closed.wait()


async def test_closing_before_the_first_piece_starts_nothing() -> None:
    """A source that was never read costs no thread."""
    gate = Gate()
    source = open_latents(gate, no_mark)
    await source.open()
    await source.aclose()
    assert gate.asked == 0
    assert not reader_threads()


async def test_an_error_of_the_iterable_passes_as_itself() -> None:
    """The user's error comes in its place, after the pieces before it; then the source is over."""

    def failing():
        yield latents(1)
        raise OSError("the link is down")

    source = open_latents(failing(), no_mark)
    chunks = []
    with pytest.raises(OSError, match="the link is down"):
        async for chunk in cut(source, STEADY, Rules()):
            chunks.append(chunk)
    assert len(chunks) == 1
    assert await source.piece(2, 1) is None
    await source.aclose()


async def test_an_error_of_the_clean_up_passes_as_itself() -> None:
    """What a generator raises while it is closed is not swallowed."""

    def generated():
        try:
            while True:
                yield latents(1)
        finally:
            raise OSError("the link is down")

    source = open_latents(generated(), no_mark)
    await source.piece(2, 1)
    await idle(source)
    with pytest.raises(OSError, match="the link is down"):
        await source.aclose()
    await source.aclose()


def test_a_stuck_clean_up_is_not_waited_for_long() -> None:
    """When a generator's clean-up hangs, aclose returns; the thread ends when it does."""
    release = threading.Event()

    def generated():
        try:
            yield latents(1)
            yield latents(1)
        finally:
            with parked():
                release.wait()

    async def main() -> tuple[float, set[threading.Thread]]:
        loop = asyncio.get_running_loop()
        source = open_latents(generated(), no_mark)
        await source.piece(2, 1)
        await idle(source)
        begun = loop.time()
        await source.aclose()
        return loop.time() - begun, reader_threads()

    took, threads = run_virtual(main())
    assert took == CLEANUP
    (thread,) = threads
    release.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_virtual_clock_stands_while_an_item_is_made() -> None:
    """Making an item counts as work, so virtual times do not depend on the machine."""

    def generated():
        for step in range(3):
            yield latents(200, seed=step)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        source = open_latents(generated(), no_mark)
        timer = loop.call_later(10, lambda: None)
        while await source.piece(2, 1) is not None:
            pass
        timer.cancel()
        await source.aclose()
        return loop.time()

    assert run_virtual(main()) == 0


class _Oddly:
    def __iter__(self):
        raise StopIteration


@pytest.mark.parametrize("given", [_Oddly(), iter(())])
async def test_stop_iteration_only_ever_means_the_end(given) -> None:
    """Wherever StopIteration comes from, nobody waits for ever."""
    with pytest.raises(LatentsError, match="none came"):
        await chunks_of(given)


async def test_an_error_inside_a_generator_that_looks_like_the_end_is_one() -> None:
    """StopIteration raised inside a generator is Python's RuntimeError, not a short stream."""

    def generated():
        yield latents(1)
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await chunks_of(generated())


async def test_arrays_may_come_too() -> None:
    """Items may be numpy arrays, also those that torch cannot view."""
    array = latents().numpy()
    array.flags.writeable = False
    assert torch.equal(joined(await chunks_of(np.split(array, 3, axis=2))), latents())


@pytest.mark.parametrize("item", [3, None, [latents(1)], "latents"])
async def test_an_item_that_is_no_latents_is_named(item: object) -> None:
    """An item of another type raises in its place, with its number."""
    with pytest.raises(LatentsError, match=rf"as piece 1 .* got {type(item).__name__}$"):
        await chunks_of(iter([latents(1), item]))


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_giver_s_grad_mode_goes_along(enabled: bool) -> None:
    """An iterable made under ``torch.no_grad`` builds no graph on the reader thread either."""
    modes = []

    def generated():
        try:
            while True:
                modes.append(torch.is_grad_enabled())
                yield latents(1)
        finally:
            modes.append(torch.is_grad_enabled())

    with torch.set_grad_enabled(enabled):
        source = open_latents(generated(), no_mark)
    await source.piece(2, 1)
    await idle(source)
    await source.aclose()
    assert modes == [enabled] * 3


async def test_an_abandoned_source_leaves_no_thread() -> None:
    """A source that nobody closed ends its thread when it is collected."""
    source = open_latents(iter([latents(1), latents(1)]), no_mark)
    await source.piece(2, 1)
    (thread,) = reader_threads()
    del source
    gc.collect()
    await elsewhere(lambda: thread.join(5))
    assert not thread.is_alive()
