"""The chunk behind the running one is launched just before that ends."""

from __future__ import annotations

import pytest

from streamvae._pace import EARLY, MEMORY, Pace
from streamvae._turns import Turnstile
from streamvae.testing import ManualEvent


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chunk(turns: Turnstile, clock: Clock, *, launch: float, run: float) -> None:
    """A chunk alone on the device, to its end."""
    ticket, over = turns.take(), ManualEvent()
    assert ticket.query()
    clock.now += launch
    ticket.leave(after=over)
    clock.now += run - launch
    over.set()
    assert turns.inside == 0


def test_just_before_the_end() -> None:
    """With a chunk running, the next comes in once that is about to end, and not before."""
    clock = Clock()
    turns = Turnstile(2, Pace(clock))
    chunk(turns, clock, launch=0.001, run=0.2)
    running, over, behind = turns.take(), ManualEvent(), turns.take()
    began = clock.now
    assert running.query()
    clock.now += 0.001
    running.leave(after=over)
    due = began + 0.2 - 0.001 - EARLY
    clock.now = due - 1e-6
    assert not behind.query()
    clock.now = due + 1e-6
    assert behind.query()
    assert turns.inside == 2
    third = turns.take()
    clock.now = began + 1.0  # however late it is, two are the limit
    assert not third.query()
    over.set()
    assert turns.inside == 1


def test_it_counts_from_when_the_one_before_ended() -> None:
    """A chunk that waited behind another has run since that one ended."""
    clock = Clock()
    turns = Turnstile(2, Pace(clock))
    chunk(turns, clock, launch=0.0, run=0.1)
    tickets, overs = [turns.take() for _ in range(3)], [ManualEvent() for _ in range(3)]
    assert tickets[0].query()
    tickets[0].leave(after=overs[0])
    clock.now += 0.1 - EARLY / 2
    assert tickets[1].query()
    tickets[1].leave(after=overs[1])
    clock.now += EARLY / 2
    overs[0].set()
    assert turns.inside == 1
    ended = clock.now
    clock.now = ended + 0.1 - 1.1 * EARLY
    assert not tickets[2].query()
    clock.now = ended + 0.1 - 0.9 * EARLY
    assert tickets[2].query()


@pytest.mark.parametrize("launch", [0.05, 0.2])
def test_launches_as_long_as_chunks(launch: float) -> None:
    """Where launching is what takes long, nobody is kept waiting."""
    clock = Clock()
    turns = Turnstile(2, Pace(clock))
    chunk(turns, clock, launch=launch, run=launch + 0.001)
    first, behind = turns.take(), turns.take()
    assert first.query()
    first.leave(after=ManualEvent())
    assert behind.query()


def test_at_once_while_nothing_is_known() -> None:
    """The first two chunks are launched as they come, and so are all without a pace."""
    for turns in (Turnstile(2, Pace(Clock())), Turnstile(2)):
        first, second, third = (turns.take() for _ in range(3))
        assert first.query()
        first.leave(after=ManualEvent())
        assert second.query()
        assert not third.query()


def test_a_stall_is_forgotten() -> None:
    """One chunk that seemed long (nobody looked) changes nothing; short ones do at once."""
    clock = Clock()
    pace = Pace(clock)
    turns = Turnstile(2, pace)
    for run in (0.1, 5.0, 0.1):
        chunk(turns, clock, launch=0.0, run=run)
    running, behind = turns.take(), turns.take()
    assert running.query()
    running.leave(after=ManualEvent())
    assert not behind.query()
    clock.now += 0.1
    assert behind.query()


def test_larger_chunks_are_learned() -> None:
    """After a few longer chunks the lead is theirs."""
    clock = Clock()
    turns = Turnstile(2, Pace(clock))
    for run in (0.1, *[0.3] * MEMORY):
        chunk(turns, clock, launch=0.0, run=run)
    running, behind = turns.take(), turns.take()
    assert running.query()
    running.leave(after=ManualEvent())
    clock.now += 0.2
    assert not behind.query()
    clock.now += 0.1
    assert behind.query()
