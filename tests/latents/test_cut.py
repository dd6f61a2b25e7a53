"""Cutting latents to a chunk plan, and refusing what a codec does not decode."""

import contextlib
import gc
import itertools
import traceback

import numpy as np
import pytest
import torch

from streamvae._chunks import LatentChunk
from streamvae._errors import LatentsError
from streamvae._events import Happened
from streamvae.abc import ChunkPlan
from streamvae.latents import LatentsLike, Piece, check_known, cut, open_latents
from tests.latents.codec import Rules
from tests.latents.given import STEADY, Marks, chunks_of, joined, latents, no_mark, sizes


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("plan", [ChunkPlan(1, 1), STEADY, ChunkPlan(4, 4), ChunkPlan(3, 1)])
async def test_all_latents_come_once_and_in_order(steps: int, plan: ChunkPlan) -> None:
    """Chunks are numbered from 0, sized by the plan (the last may be short), and lose nothing."""
    chunks = await chunks_of(latents(steps), plan)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert torch.equal(joined(chunks), latents(steps))
    for got, planned in zip(sizes(chunks)[:-1], plan.sizes(), strict=False):
        assert got == planned
    assert 0 < sizes(chunks)[-1] <= list(itertools.islice(plan.sizes(), len(chunks)))[-1]


@pytest.mark.parametrize("lengths", [[6], [1] * 6, [2, 4], [4, 2], [5, 1], [3, 3]])
async def test_pieces_need_not_fit_the_plan(lengths: list[int]) -> None:
    """However long the pieces are that come, the chunks are the plan's."""
    chunks = await chunks_of(list(latents().split(lengths, 2)))
    assert sizes(chunks) == [1, 2, 2, 1]
    assert torch.equal(joined(chunks), latents())


async def test_chunks_are_views() -> None:
    """Cutting copies nothing: a chunk's pieces share the memory that was given."""
    given = latents()
    places = {
        piece.untyped_storage().data_ptr()
        for chunk in await chunks_of(given)
        for piece in chunk.pieces
    }
    assert places == {given.untyped_storage().data_ptr()}


@pytest.mark.parametrize(("layout", "axis"), [("BCHW", 0), ("BCT", 2)])
async def test_the_codec_says_which_dimension_is_cut(layout: str, axis: int) -> None:
    """Images are cut along the batch, sound along time."""
    given = torch.arange(5 * 4 * 5 * (3 if layout == "BCHW" else 1)).float()
    given = given.reshape(5, 4, 5, 3) if layout == "BCHW" else given.reshape(5, 4, 5)
    chunks = await chunks_of(given, STEADY, Rules(layout, axis))
    assert sizes(chunks, axis) == [1, 2, 2]
    assert torch.equal(joined(chunks, axis), given)


async def test_a_chunk_carries_the_events_of_its_pieces() -> None:
    """Each chunk waits for just the pieces it is made of, and once for each."""
    marks = Marks()
    source = open_latents(list(latents(5).split([2, 2, 1], 2)), marks)
    arrived = [chunk.arrived async for chunk in cut(source, ChunkPlan(1, 3), Rules())]
    await source.aclose()
    first, second, third = marks.events
    assert arrived == [(first,), (first, second), (third,)]


async def test_an_event_shared_by_pieces_is_waited_for_once() -> None:
    """A giver may mark several pieces with one event."""
    event = Happened()
    source = open_latents(list(latents(3).split(1, 2)), lambda _: event)
    (chunk,) = [chunk async for chunk in cut(source, ChunkPlan(3, 3), Rules())]
    await source.aclose()
    assert chunk.arrived == (event,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
async def test_floating_point_is_taken_as_it_is(dtype: torch.dtype) -> None:
    """Latents keep their dtype on the way to the codec."""
    chunks = await chunks_of(latents(dtype=dtype))
    assert joined(chunks).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
async def test_other_numbers_are_refused(dtype: torch.dtype) -> None:
    """Integers, booleans and complex numbers raise before a chunk, naming what came."""
    for given in (latents().to(dtype), [latents().to(dtype)], latents().to(dtype).numpy()):
        with pytest.raises(LatentsError, match=rf"torch\.float16.* got {dtype}"):
            await chunks_of(given)


async def test_sparse_latents_are_refused() -> None:
    """A sparse tensor raises instead of failing on the device."""
    with pytest.raises(LatentsError, match="dense latents, got torch.sparse_coo"):
        await chunks_of(latents().to_sparse())


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (2, 3, 6, 3, 5), (6,), ()])
async def test_the_codec_checks_the_shape_before_the_first_chunk(shape: tuple[int, ...]) -> None:
    """The codec's own words reach the user, for a tensor, an array and the first item."""
    for given in (torch.zeros(shape), np.zeros(shape), [torch.zeros(shape)]):
        with pytest.raises(LatentsError, match="expected latents BCTHW of 4 channels"):
            await chunks_of(given)


async def test_the_codec_sees_all_that_is_known() -> None:
    """A tensor's whole shape is checked once; of an iterable, the first item's."""
    whole, first = Rules(), Rules()
    await chunks_of(latents(), STEADY, whole)
    await chunks_of(list(latents().split(2, 2)), STEADY, first)
    assert whole.checked == [(2, 4, 6, 3, 5)]
    assert first.checked == [(2, 4, 2, 3, 5)]


@pytest.mark.parametrize("given", [latents(0), latents(0).numpy(), [], [latents(0)], iter(())])
async def test_nothing_is_an_error(given: LatentsLike) -> None:
    """Empty latents raise, whatever they are empty as."""
    with pytest.raises(LatentsError, match="expected at least one latent"):
        await chunks_of(given)


@pytest.mark.parametrize(
    ("odd", "got"),
    [
        (torch.zeros(1, 4, 1, 3, 5), r"shape \(1, 4, any, 3, 5\)"),
        (torch.zeros(2, 4, 1, 3, 6), r"shape \(2, 4, any, 3, 6\)"),
        (torch.zeros(2, 4), r"shape \(2, 4\)"),
        (torch.zeros(2, 4, 1, 3, 5).half(), "torch.float16"),
        (torch.zeros(2, 4, 1, 3, 5, device="meta"), "on meta"),
        (torch.zeros(2, 4, 0, 3, 5), r"shape \(2, 4, 0, 3, 5\)"),
    ],
)
async def test_a_piece_that_does_not_go_on_is_named(odd: torch.Tensor, got: str) -> None:
    """A later piece of another shape, dtype or device raises after the chunks before it."""
    source = open_latents([*latents(3).split(1, 2), odd], no_mark)
    chunks = []
    with pytest.raises(LatentsError, match=rf"piece 3.*got .*{got}"):
        async for chunk in cut(source, STEADY, Rules()):
            chunks.append(chunk)
    await source.aclose()
    assert sizes(chunks) == [1, 2]


async def test_a_chunk_does_not_wait_for_latents_it_does_not_need() -> None:
    """A chunk comes as soon as its own latents are there."""
    asked = []

    async def one_by_one():
        for step, piece in enumerate(latents().split(1, 2)):
            asked.append(step)
            yield piece

    source = open_latents(one_by_one(), no_mark)
    async with contextlib.aclosing(cut(source, STEADY, Rules())) as chunks:
        await anext(chunks)
        assert asked == [0]
        await anext(chunks)
        assert asked == [0, 1, 2]
    await source.aclose()


async def test_what_is_known_can_be_checked_early() -> None:
    """Before anything is read, `check_known` refuses a bad tensor and passes an iterable."""
    with pytest.raises(LatentsError, match="4 channels"):
        check_known(open_latents(torch.zeros(2, 3), no_mark), Rules())
    check_known(open_latents(iter([torch.zeros(2, 3)]), no_mark), Rules())


async def test_a_kept_error_keeps_no_latents() -> None:
    """The traceback of an error holds none of the latents that came before it."""

    async def failing():
        yield latents(2)[:, :, :1]
        yield latents(2)[:, :, 1:]
        raise OSError("the link is down")

    source = open_latents(failing(), no_mark)
    with pytest.raises(OSError, match="the link is down") as caught:
        async for _ in cut(source, ChunkPlan(1, 3), Rules()):
            pass
    await source.aclose()
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    ours = [frame for frame in frames if "latents/_cut" in frame.f_code.co_filename]
    assert ours
    for frame in ours:
        held = [value for local in frame.f_locals.values() for value in _inside(local)]
        assert not any(isinstance(value, (torch.Tensor, Piece, LatentChunk)) for value in held)


def _inside(local: object) -> list[object]:
    """A local variable, what it refers to, and what that refers to."""
    near = gc.get_referents(local)
    return [local, *near, *gc.get_referents(*near)]
