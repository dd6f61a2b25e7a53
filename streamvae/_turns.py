"""Turnstiles: at most so many at a time, first come first served, whoever asks and from wherever.

Streams on several loops and threads share one device. Both of its scarce things, unfinished
launches and pinned slots, are handed out here. A ticket is an ``Event``: flow code waits for its
turn with the same polling adapter that waits for the device, so nobody blocks a thread.

Note [Fair turns]
-----------------
A stream asks for its next turn when it has had the last one, so it has one ticket in the queue at
most, and first come first served is taking turns. A `Line` says more of a stream: its first turn
goes before the later ones of others, so that whoever comes last sees a picture first, and a
preview's turns go behind all others. Nobody is overtaken more than `PATIENCE` times: after that a
ticket is served in the order of asking, whatever it is.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from ._events import Event
from ._locks import fork_safe_lock
from ._pace import Pace

#: ``"final"``: frames that are kept. ``"preview"``: frames that somebody may look at meanwhile.
Priority = Literal["final", "preview"]

#: How often a ticket is overtaken at most.
PATIENCE = 8


class Line:
    """One stream in the eyes of a turnstile. See Note [Fair turns]."""

    def __init__(self, priority: Priority = "final") -> None:
        self.priority = priority
        self._begun = False

    def rank(self) -> int:
        """Of its next ticket, which it takes with this: the lowest goes first."""
        begun, self._begun = self._begun, True
        if self.priority == "preview":
            return 2
        return 1 if begun else 0


#: The line of the stream whose task one is in. A task has it from where it was made.
_current: ContextVar[Line | None] = ContextVar("streamvae line", default=None)


def current_line() -> Line | None:
    """The line of the stream whose task one is in; None for one that nobody has put in a line."""
    return _current.get()


@contextlib.contextmanager
def in_line(line: Line) -> Iterator[None]:
    """Put every stream that is started inside in ``line``. Await nothing inside."""
    token = _current.set(line)
    try:
        yield
    finally:
        _current.reset(token)


class Turnstile:
    """Lets at most ``limit`` tickets through at a time.

    Args:
        limit: Places inside.
        pace: Says when one may come in while another is inside; None: at once.
    """

    def __init__(self, limit: int, pace: Pace | None = None) -> None:
        self._limit = limit
        self._pace = pace
        self._lock = fork_safe_lock()
        # Waiting tickets are held weakly: one whose loop died must not block the others for ever.
        self._waiting: list[weakref.ref[Ticket]] = []
        self._inside = 0
        #: Those that gave their place back, what it is kept until, and when they did. Collections
        #: free tickets too, so it is done without the lock: see Note [Locks and finalizers].
        self._given_back: deque[tuple[Ticket, Event | None, float]] = deque()
        #: Places kept until an event.
        self._leaving: list[_Leaving] = []

    def take(self, line: Line | None = None) -> Ticket:
        """Queue up; the ticket's ``query()`` is true once it is its turn.

        Without a ``line`` it is a later turn of a stream whose frames are kept.
        """
        ticket = Ticket(self)
        with self._lock:
            if line is not None:
                ticket._rank = line.rank()
            self._waiting.append(weakref.ref(ticket))
        return ticket

    @property
    def inside(self) -> int:
        """How many are through and have not left."""
        self._reap()
        with self._lock:
            return self._inside

    def leave(self, ticket: Ticket, after: Event | None) -> None:
        """Take note that ``ticket`` gives its place back, from wherever a collection runs."""
        self._given_back.append((ticket, after, 0.0 if self._pace is None else self._pace.now()))

    def _reap(self) -> None:
        """Free the places that were given back and whose events have happened."""
        with self._lock:
            self._sort_out()
            leaving = tuple(self._leaving)
        # Not under the lock: it is the device's code. See Note [Locks and finalizers].
        over = [one for one in leaving if _over(one.event)]
        with self._lock:
            # Others may have looked meanwhile: each place is freed once.
            still = [one for one in self._leaving if one not in over]
            freed = len(self._leaving) - len(still)
            self._inside -= freed
            self._leaving = still
            if freed and self._pace is not None:
                self._pace.ended()
                self._pace.began()  # the next one, if there is one

    def _sort_out(self) -> None:
        """Act on what `leave` has noted; the first time counts."""
        while self._given_back:
            ticket, after, moment = self._given_back.popleft()
            if ticket._left:
                continue
            ticket._left = True
            if not ticket._through:
                continue
            if after is None:
                self._inside -= 1
                continue
            self._leaving.append(_Leaving(after))
            if self._pace is not None:
                self._pace.launched(moment - ticket._since)

    def _admit(self) -> None:
        self._reap()
        with self._lock:
            while self._inside < self._limit and self._due():
                ticket = self._next()
                if ticket is None:
                    return
                ticket._through = True
                if self._pace is not None:
                    ticket._since = self._pace.now()
                    if not self._inside:
                        self._pace.began()
                self._inside += 1

    def _due(self) -> bool:
        return not self._inside or self._pace is None or self._pace.due()

    def _next(self) -> Ticket | None:
        """Take the ticket whose turn it is out of the queue."""
        held = (one() for one in self._waiting)
        waiting = [ticket for ticket in held if ticket is not None and not ticket._left]
        following = min(waiting, key=Ticket._precedence, default=None)
        for ticket in waiting:
            if ticket is following:
                break
            ticket._overtaken += 1
        self._waiting = [weakref.ref(ticket) for ticket in waiting if ticket is not following]
        return following


class Ticket:
    """A place in the queue of a turnstile, and later a place inside. An ``Event``."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._through = False
        self._left = False
        self._rank = 1
        self._overtaken = 0
        self._since = 0.0

    def query(self) -> bool:
        """Whether it is this ticket's turn."""
        if not self._through:
            self._turnstile._admit()
        return self._through

    def leave(self, after: Event | None = None) -> None:
        """Give the place back, at once or as soon as ``after`` has happened. Idempotent."""
        self._turnstile.leave(self, after)

    def _precedence(self) -> int:
        """The lowest goes first, among equals the one that came first."""
        return self._rank if self._overtaken < PATIENCE else -1

    def __del__(self) -> None:
        if self._through and not self._left:
            self.leave()


@dataclass(frozen=True, slots=True, eq=False)
class _Leaving:
    """A place that was given back behind an event."""

    event: Event


def _over(event: Event) -> bool:
    """Whether it has happened or never will; its error is for the one who waits for it."""
    try:
        return event.query()
    except Exception:  # noqa: BLE001
        return True
