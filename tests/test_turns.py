"""Turns on a device: fair, limited, and never lost."""

import contextvars
import gc
import random
import threading

import pytest

from streamvae._turns import PATIENCE, Line, Ticket, Turnstile, current_line, in_line
from streamvae.testing import ManualEvent


def test_first_come_first_served() -> None:
    """Places are given in the order of asking, whoever looks first."""
    turnstile = Turnstile(1)
    tickets = [turnstile.take() for _ in range(5)]
    for served, ticket in enumerate(tickets):
        assert [later.query() for later in reversed(tickets[served:])][-1]
        assert not any(later.query() for later in tickets[served + 1 :])
        ticket.leave()


def test_no_more_than_the_limit() -> None:
    """So many are inside at a time, and no more."""
    turnstile = Turnstile(3)
    tickets = [turnstile.take() for _ in range(7)]
    assert [ticket.query() for ticket in tickets] == [True] * 3 + [False] * 4
    assert turnstile.inside == 3
    tickets[1].leave()
    assert [ticket.query() for ticket in tickets[3:]] == [True, False, False, False]


def test_a_turn_once_given_stays_given() -> None:
    """A ticket that is through stays through until it leaves."""
    turnstile = Turnstile(1)
    first, second = turnstile.take(), turnstile.take()
    assert first.query()
    assert not second.query()
    assert first.query()


def test_leaving_behind_an_event() -> None:
    """A place left behind an event is free when that has happened, without anybody's help."""
    turnstile = Turnstile(1)
    first, second = turnstile.take(), turnstile.take()
    assert first.query()
    event = ManualEvent()
    first.leave(after=event)
    assert not second.query()
    assert turnstile.inside == 1
    event.set()
    assert second.query()


def test_a_place_behind_an_event_that_fails_is_given_back() -> None:
    """A device that reports an error blocks nobody else's turn, nor raises it there."""
    turnstile = Turnstile(1)
    first, second = turnstile.take(), turnstile.take()
    assert first.query()
    event = ManualEvent()
    first.leave(after=event)
    event.fail(RuntimeError("device lost"))
    assert second.query()


def test_leaving_twice_counts_once() -> None:
    """Giving a place back is idempotent, whichever way."""
    turnstile = Turnstile(1)
    first, second, third = (turnstile.take() for _ in range(3))
    assert first.query()
    first.leave()
    first.leave(after=ManualEvent())
    assert second.query()
    first.leave()
    assert not third.query()


def test_a_dropped_ticket_blocks_nobody() -> None:
    """One that is thrown away, waiting or inside, gives its place up."""
    turnstile = Turnstile(1)
    inside, waiting, last = turnstile.take(), turnstile.take(), turnstile.take()
    assert inside.query()
    del waiting
    assert not last.query()
    del inside
    gc.collect()
    assert last.query()
    assert turnstile.inside == 1


def test_one_that_left_while_waiting_is_passed_over() -> None:
    """Whoever gives up before the turn came is not given it."""
    turnstile = Turnstile(1)
    inside, tired, last = turnstile.take(), turnstile.take(), turnstile.take()
    assert inside.query()
    tired.leave()
    inside.leave()
    assert last.query()
    assert not tired.query()


def test_a_first_turn_goes_before_later_ones() -> None:
    """Whoever comes last has its first turn first; after that it is one among the others."""
    turnstile = Turnstile(1)
    inside = turnstile.take()
    assert inside.query()
    old, new = Line(), Line()
    turnstile.take(old).leave()
    later, plain, first = turnstile.take(old), turnstile.take(), turnstile.take(new)
    second = turnstile.take(new)

    assert _served(inside, [later, plain, second, first]) == [first, later, plain, second]


def test_previews_go_behind_the_others() -> None:
    """A preview's turns go behind all others, also its first, in their own order."""
    turnstile = Turnstile(1)
    inside = turnstile.take()
    assert inside.query()
    looked_at = Line("preview")
    previews = [turnstile.take(looked_at) for _ in range(2)]
    finals = [turnstile.take() for _ in range(3)]

    assert _served(inside, previews + finals) == finals + previews


def test_nobody_is_overtaken_for_ever() -> None:
    """A ticket is overtaken so often, and then served in the order of asking."""
    for line, others in ((Line("preview"), None), (None, Line)):
        turnstile = Turnstile(1)
        inside = turnstile.take()
        assert inside.query()
        patient = turnstile.take(line)
        served = 0
        while not patient.query():
            following = turnstile.take(None if others is None else others())
            inside.leave()
            inside = following if following.query() else patient
            served += inside is following
        assert served == PATIENCE


def test_a_line_is_had_by_what_is_started_in_it() -> None:
    """Tasks have the line that they were made in; others have none."""
    line = Line()
    assert current_line() is None
    with in_line(line):
        inside = contextvars.copy_context()
    assert current_line() is None
    assert inside.run(current_line) is line


def _served(inside: Ticket, waiting: list[Ticket]) -> list[Ticket]:
    """The order in which those who wait get their turns."""
    served = []
    while waiting:
        inside.leave()
        (inside,) = [ticket for ticket in waiting if ticket.query()]
        waiting = [ticket for ticket in waiting if ticket is not inside]
        served.append(inside)
    return served


def test_thousands_of_tickets_from_several_threads() -> None:
    """However threads ask, leave late or forget, the limit holds and nobody starves."""
    limit, per_thread = 2, 3000
    turnstile = Turnstile(limit)
    together = threading.Barrier(4)
    lock = threading.Lock()
    inside: set[Ticket] = set()
    most: list[int] = []
    served: list[int] = []

    def enter(ticket: Ticket) -> None:
        while not ticket.query():
            pass
        with lock:
            inside.add(ticket)
            most.append(len(inside))

    def leave(ticket: Ticket, event: ManualEvent | None) -> None:
        with lock:
            inside.discard(ticket)
        ticket.leave(after=event)
        if event is not None:
            event.set()

    def many(seed: int) -> None:
        dice = random.Random(seed)
        together.wait(60)
        for _ in range(per_thread):
            ticket = turnstile.take()
            if dice.random() < 0.2:
                continue  # dropped, maybe in the middle of the queue
            enter(ticket)
            leave(ticket, ManualEvent() if dice.random() < 0.5 else None)
        served.append(seed)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(served) == [0, 1, 2, 3]
    assert max(most) <= limit
    assert turnstile.inside == 0


class _Device:
    """A device whose calls hold a lock, as the fake one's do: its events are queried under it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = threading.Event()
        self.over = False

    def query(self) -> bool:
        """Whether it is over; waits for whoever holds the device."""
        self.asked.set()
        with self.lock:
            return self.over


@pytest.mark.parametrize("freed", ["reference", "cycle"])
@pytest.mark.parametrize("same", [True, False])
def test_a_finalizer_waits_for_nobody(freed: str, same: bool) -> None:
    """A ticket may be collected by who holds a device's lock, while another queries its event."""
    device, turnstile = _Device(), Turnstile(2)
    running, dropped = turnstile.take(), (turnstile if same else Turnstile(2)).take()
    assert running.query()
    assert dropped.query()
    running.leave(after=device)
    kept: list[object] = [dropped]
    if freed == "cycle":
        kept.append(kept)
    del dropped
    asking = threading.Thread(target=lambda: turnstile.take().query(), daemon=True)

    def collect() -> None:
        nonlocal kept
        with device.lock:
            asking.start()
            device.asked.wait(30)
            del kept
            gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    for thread in (collecting, asking):
        thread.join(30)
        assert not thread.is_alive(), "they wait for each other"
    device.over = True
    assert turnstile.inside == 0


def test_a_device_that_is_slow_to_answer_holds_nobody() -> None:
    """While an event is queried others queue up, leave and look, also in the same turnstile."""
    device, turnstile = _Device(), Turnstile(2)
    running, other = turnstile.take(), turnstile.take()
    assert running.query()
    assert other.query()
    running.leave(after=device)
    asking = threading.Thread(target=lambda: turnstile.inside, daemon=True)
    done = threading.Event()

    def use() -> None:
        turnstile.take().leave()
        other.leave()
        done.set()

    with device.lock:
        asking.start()
        assert device.asked.wait(30)
        using = threading.Thread(target=use, daemon=True)
        using.start()
        assert done.wait(30)
    asking.join(30)
    device.over = True
    assert turnstile.inside == 0


def test_a_place_is_freed_once_however_many_look() -> None:
    """Two threads that see the same event happen free one place."""
    together = threading.Barrier(2)

    class Both:
        def query(self) -> bool:
            together.wait(30)  # both have asked before either of them acts on it
            return True

    turnstile = Turnstile(3)
    tickets = [turnstile.take() for _ in range(3)]
    assert all(ticket.query() for ticket in tickets)
    tickets[0].leave(after=Both())
    threads = [threading.Thread(target=lambda: turnstile.inside) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert turnstile.inside == 2
