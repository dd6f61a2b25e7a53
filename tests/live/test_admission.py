"""Places, the queue before them, memory that is shared, and when to come again."""

import asyncio

import pytest

from streamvae._turns import PATIENCE, Priority
from streamvae.codecs import codec_for
from streamvae.live._admission import SOONEST, Admission, Durations, Need, Place, until_served
from tests import tiny


def entered(admission: Admission, need: Need | None = None, priority: Priority = "final") -> Place:
    """A place that there is."""
    place = admission.enter(Need() if need is None else need, priority)
    assert place is not None
    return place


async def test_places_and_positions() -> None:
    """So many are inside; the others know their place in the queue, and move up."""
    admission = Admission(2, 10)
    places = [entered(admission) for _ in range(5)]

    assert [place.inside for place in places] == [True, True, False, False, False]
    assert [place.position for place in places] == [0, 0, 1, 2, 3]
    assert (admission.active, admission.waiting) == (2, 3)
    places[3].leave()
    places[0].leave()
    places[0].leave()
    assert [place.position for place in places] == [0, 0, 0, 0, 1]
    assert places[2].inside
    await places[2].given()


async def test_a_full_queue_takes_nobody() -> None:
    """As many wait as may; the next one is not taken, and leaves no trace."""
    admission = Admission(1, 2)
    inside, *_ = [entered(admission) for _ in range(3)]

    assert admission.enter(Need()) is None
    assert (admission.active, admission.waiting) == (1, 2)
    inside.leave()
    assert entered(admission).position == 2
    assert entered(Admission(1, 0)).inside


async def test_previews_wait_behind_the_others() -> None:
    """Previews are let in after the others, and are not kept out for ever."""
    admission = Admission(1, 100)
    inside = entered(admission)
    preview = entered(admission, priority="preview")
    finals = [entered(admission) for _ in range(2 * PATIENCE)]

    assert preview.position == len(finals) + 1
    for served in range(PATIENCE):
        inside.leave()
        inside = finals[served]
        assert inside.inside
    assert preview.position == 1
    inside.leave()
    assert preview.inside


async def test_memory_is_shared() -> None:
    """What streams keep adds up; what launches work with is there once, the largest."""
    admission = Admission(10, 10, memory=100)
    first, second = entered(admission, Need(30, 30)), entered(admission, Need(30, 10))

    assert (first.inside, second.inside, admission.reserved) == (True, True, 90)
    large, small = entered(admission, Need(20, 0)), entered(admission, Need(1, 0))
    assert not large.inside
    assert not small.inside, "a small one overtook a large one, which might wait for ever"
    first.leave()
    assert (large.inside, small.inside, admission.reserved) == (True, True, 61)


async def test_one_that_is_alone_fits_or_never_does() -> None:
    """Whether latents fit at all is told before they wait."""
    admission = Admission(1, 1, memory=100)

    assert admission.fits(Need(60, 40))
    assert not admission.fits(Need(60, 41))
    assert Admission(1, 1).fits(Need(10**15, 0))


async def test_unknown_needs_hold_nobody_up() -> None:
    """Who does not know yet what it takes keeps its place in the queue and lets others pass."""
    admission = Admission(1, 10, memory=100)
    unknown = admission.enter(None)
    assert unknown is not None
    assert unknown.position == 1

    passing = entered(admission, Need(50))
    assert passing.inside
    behind = entered(admission, Need(50))
    unknown.needs(Need(10))
    assert [unknown.position, behind.position] == [1, 2]
    passing.leave()
    assert unknown.inside


async def test_unknown_needs_in_a_full_queue() -> None:
    """Who does not know what it takes is sent away as soon as it is known that it has to wait."""
    admission = Admission(1, 0, memory=100)
    unknown, other = admission.enter(None), None
    assert unknown is not None
    assert admission.enter(None) is None, "as many as might be let in are looked at"
    assert unknown.needs(Need(10))
    assert unknown.inside
    other = admission.enter(None)
    assert other is not None
    assert not other.needs(Need(10))
    assert (admission.active, admission.waiting) == (1, 0)


async def test_being_sent_away() -> None:
    """One that waits, or was let in just now, is told why it has to go."""
    admission = Admission(1, 10)
    inside, waiting = entered(admission), entered(admission)

    for place in (waiting, inside):
        hearing = asyncio.ensure_future(place.given())
        place.refuse(RuntimeError("over"))
        with pytest.raises(RuntimeError, match="over"):
            await hearing
        assert not place.inside
    assert (admission.active, admission.waiting) == (0, 0)


def test_a_plan_says_what_is_kept() -> None:
    """State and pixels on their way are kept; the rest of a launch is worked with."""
    plan = codec_for(tiny.wan21()).plan((1, 4, 5, 3, 2))
    need = Need.of(plan)

    assert need is not None
    assert plan.state_bytes is not None
    assert plan.chunk_bytes is not None
    assert need.kept == plan.state_bytes + 3 * plan.chunk_bytes
    assert need.kept + need.working == plan.device_bytes
    assert need.working > 0


def test_when_to_come_again() -> None:
    """The time until one's turn follows from who is inside, who waits, and what streams take."""
    assert until_served([5.0, 2.0], 0, 2, typical=10.0) == 2.0
    assert until_served([5.0, 2.0], 1, 2, typical=10.0) == 5.0
    assert until_served([5.0, 2.0], 2, 2, typical=10.0) == 12.0
    assert until_served([5.0, 2.0], 5, 2, typical=10.0) == 25.0
    assert until_served([5.0], 0, 2, typical=10.0) == SOONEST
    assert until_served([], 0, 1, typical=10.0) == SOONEST


def test_typical_durations() -> None:
    """Half of the last streams took longer; before there is one, those that run are looked at."""
    durations = Durations()

    assert durations.typical() == SOONEST
    assert durations.typical([3.0, 7.0]) == 7.0
    for seconds in (1.0, 100.0, 2.0):
        durations.add(seconds)
    assert durations.typical([50.0]) == 2.0
