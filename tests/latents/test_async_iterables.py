"""Latents that come one by one from an async iterable: a model that is still generating."""

import asyncio
import contextlib
import threading

import anyio
import pytest
import torch

from streamvae._errors import LatentsError
from streamvae.latents import cut, open_latents
from tests.latents.codec import Rules
from tests.latents.given import STEADY, Marks, chunks_of, joined, latents, no_mark, reader_threads


class Generated:
    """An async generator's steps, and whether it was closed."""

    def __init__(self) -> None:
        self.steps = 0
        self.closed = False

    async def pieces(self):
        try:
            for piece in latents().split(1, 2):
                self.steps += 1
                yield piece
                await asyncio.sleep(0)
        finally:
            self.closed = True


async def test_all_its_latents_come() -> None:
    """An async generator is read to its end on the loop, without a thread."""
    generated = Generated()
    marks = Marks()
    source = open_latents(generated.pieces(), marks)
    assert (source.shape, source.dtype) == (None, None)
    await source.open()
    chunks = [chunk async for chunk in cut(source, STEADY, Rules())]
    assert torch.equal(joined(chunks), latents())
    assert set(marks.threads) == {threading.current_thread()}
    assert not reader_threads()
    await source.aclose()
    assert generated.closed


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_it_is_closed_however_far_it_was_read(taken: int) -> None:
    """Closing a source closes its generator, also one that was not exhausted; twice is fine."""
    generated = Generated()
    pieces = generated.pieces()
    source = open_latents(pieces, no_mark)
    for _ in range(taken):
        assert await source.piece(2, 1) is not None
    await source.aclose()
    await source.aclose()
    assert generated.closed is bool(taken)
    assert generated.steps == taken
    assert await source.piece(2, 1) is None
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_a_break_does_not_close_before_the_source_is_closed() -> None:
    """`cut` leaves closing to who opened the source."""
    generated = Generated()
    source = open_latents(generated.pieces(), no_mark)
    async with contextlib.aclosing(cut(source, STEADY, Rules())) as chunks:
        await anext(chunks)
    assert not generated.closed
    await source.aclose()
    assert generated.closed


async def test_a_wait_for_it_can_be_cancelled() -> None:
    """Cancelling a wait cancels what the generator waits for."""
    cancelled = []

    async def generated():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        yield latents(1)

    source = open_latents(generated(), no_mark)
    waiting = asyncio.create_task(source.piece(2, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled == [True]
    await source.aclose()


async def test_its_error_passes_as_itself() -> None:
    """The user's error comes in its place, after the chunks before it."""

    async def failing():
        yield latents(1)
        raise OSError("the link is down")

    source = open_latents(failing(), no_mark)
    chunks = []
    with pytest.raises(OSError, match="the link is down"):
        async for chunk in cut(source, STEADY, Rules()):
            chunks.append(chunk)
    await source.aclose()
    assert len(chunks) == 1


async def test_any_async_iterable_will_do() -> None:
    """A queue's receiving end is read and closed like a generator."""
    send, receive = anyio.create_memory_object_stream[torch.Tensor](6)
    for piece in latents().split(1, 2):
        send.send_nowait(piece)
    send.close()
    assert torch.equal(joined(await chunks_of(receive)), latents())
    with pytest.raises(anyio.ClosedResourceError):
        await receive.receive()


async def test_an_iterator_need_not_be_closable() -> None:
    """An async iterator without ``aclose`` is fine."""

    class Counting:
        left = 3

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return latents(1)

    assert len(await chunks_of(Counting())) == 2


async def test_read_only_arrays_are_copied_off_the_loop() -> None:
    """An array that torch cannot view is copied on a thread, which ends with the source."""
    readers = set()

    async def generated():
        for piece in latents().split(2, 2):
            array = piece.numpy()
            array.flags.writeable = False
            yield array
            readers.update(reader_threads())

    chunks = await chunks_of(generated())
    assert torch.equal(joined(chunks), latents())
    (reader,) = readers
    reader.join(5)
    assert not reader.is_alive()


async def test_writable_arrays_are_not_copied() -> None:
    """A plain array is looked at where it is."""
    array = latents().numpy()

    async def generated():
        yield array

    (first, *_) = await chunks_of(generated())
    assert first.pieces[0].data_ptr() == array.ctypes.data


async def test_an_item_that_is_no_latents_is_named() -> None:
    """An item of another type raises in its place, with its number."""

    async def generated():
        yield latents(1)
        yield [latents(1)]

    with pytest.raises(LatentsError, match="as piece 1 .* got list$"):
        await chunks_of(generated())
