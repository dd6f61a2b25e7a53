"""Policies and the queues they bound: what is dropped, what is counted, who waits."""

import asyncio
import traceback
from collections.abc import Callable

import pytest

from streamvae import ClosedError, UsageError
from streamvae.live import Block, DropOldest, Latest, Policy, Subscription
from streamvae.live._subscription import Ending, Outlet

from ..flow import until, virtual

#: Numbers below 100 are keys here, the others build on the one before.
KEY = 100


def keyed(item: int) -> bool:
    """Whether one can begin with it."""
    return item < KEY


def offered(policy: Policy, *items: int) -> Outlet[int]:
    """A viewer's queue after all of ``items``, of which none was taken."""
    outlet = Outlet[int](policy)
    for item in items:
        outlet.make_room(keyed)
        outlet.offer(item, key=keyed(item))
    return outlet


async def waiting(outlet: Outlet[int]) -> list[int]:
    """What is in the queue."""
    outlet.end(Ending())
    items: list[int] = []
    while not outlet.dry:
        items.append(await outlet.take())
    return items


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize("policy", [Block, DropOldest])
def test_room_is_a_whole_number_above_nothing(
    policy: Callable[[object], Policy], n: object
) -> None:
    """Anything else is refused by a message that names it."""
    with pytest.raises(UsageError, match=f"expected room for one frame or more, got {n!r}"):
        policy(n)


def test_policies_are_values() -> None:
    """They compare by what they say, can be keys, and say it when printed."""
    assert DropOldest(3) == DropOldest(3) != DropOldest(4)
    assert {Block(), Block(2), Latest(), Latest()} == {Block(2), Latest()}
    assert repr(DropOldest(3)) == "DropOldest(n=3)"
    assert [policy.room for policy in (Block(4), DropOldest(3), Latest())] == [4, 3, 1]


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [(Latest(), [9], 9), (DropOldest(3), [7, 8, 9], 7), (DropOldest(20), list(range(10)), 0)],
)
async def test_the_newest_are_kept(policy: Policy, kept: list[int], dropped: int) -> None:
    """A viewer who takes nothing costs its policy's room, and every other item is counted."""
    outlet = offered(policy, *range(10))
    assert outlet.dropped == dropped
    assert await waiting(outlet) == kept


async def test_one_begins_with_a_key() -> None:
    """What comes before the first key is of no use, and nobody misses it."""
    outlet = offered(DropOldest(9), 100, 101, 2, 102)
    assert outlet.dropped == 0
    assert await waiting(outlet) == [2, 102]


@pytest.mark.parametrize(
    ("items", "kept", "dropped"),
    [
        # Room for three; the oldest key goes, and what builds on it with it.
        ((1, 101, 102, 103), [], 4),
        ((1, 101, 102, 103, 104, 2, 105), [2, 105], 5),
        ((1, 101, 2, 102), [2, 102], 2),
        ((1, 2, 3, 4), [2, 3, 4], 1),
    ],
)
async def test_after_a_gap_comes_a_key(
    items: tuple[int, ...], kept: list[int], dropped: int
) -> None:
    """A viewer never gets what builds on something it did not get."""
    outlet = offered(DropOldest(3), *items)
    assert outlet.dropped == dropped
    assert await waiting(outlet) == kept


async def test_only_who_has_seen_nothing_asks_for_a_key() -> None:
    """A viewer who waits for its first key is thirsty; one who fell behind waits like others."""
    outlet = Outlet[int](DropOldest(1))
    assert not outlet.thirsty
    taking = asyncio.ensure_future(outlet.take())
    await asyncio.sleep(0)
    assert outlet.thirsty
    outlet.offer(1, key=True)
    assert await taking == 1
    outlet.offer(101, key=False)
    outlet.make_room(keyed)
    outlet.offer(102, key=False)  # torn now
    taking = asyncio.ensure_future(outlet.take())
    await asyncio.sleep(0)
    assert not outlet.thirsty
    outlet.offer(2, key=True)
    assert await taking == 2


@virtual
async def test_whoever_offers_waits_for_a_viewer_who_blocks() -> None:
    """A full queue of `Block` is waited for until the viewer takes one, or has left."""
    outlet = offered(Block(2), 1, 2)
    assert outlet.lossless
    assert outlet.full
    freeing = asyncio.ensure_future(outlet.free())
    await asyncio.sleep(1)
    assert not freeing.done()
    assert await outlet.take() == 1
    await freeing
    outlet.offer(3, key=True)
    freeing = asyncio.ensure_future(outlet.free())
    await asyncio.sleep(1)
    assert not freeing.done()
    outlet.end(Ending(), discard=True)
    await freeing


@virtual
async def test_what_waits_is_taken_before_the_error() -> None:
    """Items first, then the error, each time it is asked again; nothing comes after the end."""
    outlet = offered(DropOldest(5), 1, 2)
    outlet.end(Ending(ValueError("the end")))
    outlet.offer(3, key=True)
    outlet.end(Ending(KeyError("another end")))
    assert [await outlet.take(), await outlet.take()] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="the end"):
            await outlet.take()


@virtual
async def test_many_viewers_do_not_lengthen_an_error() -> None:
    """One error is raised to all viewers; its traceback holds the frames of one of them."""
    ending = Ending(ValueError("for all"))
    lengths = []
    for _ in range(5):
        outlet = Outlet[int](Latest())
        outlet.end(ending)
        with pytest.raises(ValueError, match="for all") as caught:
            await outlet.take()
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(lengths)) == 1


@virtual
async def test_a_wait_that_is_broken_off_loses_nothing() -> None:
    """A viewer may wait with a timeout: what comes later is there for the next wait."""
    outlet = Outlet[int](Latest())
    viewer = Subscription[int](Latest(), lambda _: None, lambda _: None)
    viewer._outlet = outlet
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(viewer)
    outlet.offer(7, key=True)
    assert await anext(viewer) == 7


@virtual
async def test_two_readers_at_once_are_refused() -> None:
    """The second gets a clear error, and the first is served."""
    outlet = Outlet[int](Latest())
    viewer = Subscription[int](Latest(), lambda _: None, lambda _: None)
    viewer._outlet = outlet
    first = asyncio.ensure_future(anext(viewer))
    await until(lambda: outlet.thirsty, "the first reader waits")
    with pytest.raises(ClosedError, match="expected one reader"):
        await anext(viewer)
    outlet.offer(1, key=True)
    assert await first == 1


@virtual
async def test_closing_wakes_the_reader() -> None:
    """A reader who waits when its subscription is closed gets ClosedError, and so does a later."""
    viewer = Subscription[int](Latest(), lambda _: None, lambda _: None)
    reading = asyncio.ensure_future(anext(viewer))
    await until(lambda: viewer._outlet.thirsty, "it waits")
    await viewer.aclose()
    with pytest.raises(ClosedError, match="closed"):
        await reading
    with pytest.raises(ClosedError, match="closed"):
        await anext(viewer)
    fresh = Subscription[int](Latest(), lambda _: None, lambda _: None)
    await fresh.aclose()
    with pytest.raises(ClosedError, match="closed"):
        await anext(fresh)
