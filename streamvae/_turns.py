"""Turnstiles: at most so many at a time, first come first served, whoever asks and from wherever.

Streams on several loops and threads share one device. Both of its scarce things, unfinished
launches and pinned slots, are handed out here. A ticket is an ``Event``: flow code waits for its
turn with the same polling adapter that waits for the device, so nobody blocks a thread.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

from ._events import Event


class Turnstile:
    """Lets at most ``limit`` tickets through at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # re-entered when a collection frees a ticket inside it
        # Waiting tickets are held weakly: one whose loop died must not block the others for ever.
        self._waiting: deque[weakref.ref[Ticket]] = deque()
        self._inside = 0
        self._leaving: list[Event] = []

    def take(self) -> Ticket:
        """Queue up; the ticket's ``query()`` is true once it is its turn."""
        ticket = Ticket(self)
        with self._lock:
            self._waiting.append(weakref.ref(ticket))
        return ticket

    @property
    def inside(self) -> int:
        """How many are through and have not left."""
        with self._lock:
            self._reap()
            return self._inside

    def _reap(self) -> None:
        still = [event for event in self._leaving if not _over(event)]
        self._inside -= len(self._leaving) - len(still)
        self._leaving = still

    def _admit(self) -> None:
        with self._lock:
            self._reap()
            while self._waiting and self._inside < self._limit:
                ticket = self._waiting.popleft()()
                if ticket is not None and not ticket._left:
                    ticket._through = True
                    self._inside += 1


class Ticket:
    """A place in the queue of a turnstile, and later a place inside. An ``Event``."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._through = False
        self._left = False

    def query(self) -> bool:
        """Whether it is this ticket's turn."""
        if not self._through:
            self._turnstile._admit()
        return self._through

    def leave(self, after: Event | None = None) -> None:
        """Give the place back, at once or as soon as ``after`` has happened. Idempotent."""
        turnstile = self._turnstile
        with turnstile._lock:
            if self._left:
                return
            self._left = True
            if not self._through:
                return
            if after is None:
                turnstile._inside -= 1
            else:
                turnstile._leaving.append(after)

    def __del__(self) -> None:
        self.leave()


def _over(event: Event) -> bool:
    """Whether it has happened or never will; its error is for the one who waits for it."""
    try:
        return event.query()
    except Exception:  # noqa: BLE001
        return True
