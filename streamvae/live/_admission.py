"""Who may decode now, who waits and in what place, and when somebody refused should come again.

A stream takes memory of two kinds. What it keeps between chunks and the chunks that are on their
way are its own for as long as it runs. What a launch computes with is needed by one launch at a
time, since launches follow each other in one queue of the device: of that only the largest counts.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

from .._errors import StreamVAEError
from .._plan import Plan
from .._turns import PATIENCE, Priority

T = TypeVar("T")

#: Streams whose time is remembered.
_REMEMBERED = 32

#: Seconds that somebody refused is asked to wait at least.
SOONEST = 1.0


class Busy(StreamVAEError, RuntimeError):
    """Raised when a service takes no more streams now: HTTP's 503, with ``Retry-After``.

    Attributes:
        retry_after: Seconds after which it is worth another try, by what streams have taken so far.
        reason: ``"full"``: as many wait as may. ``"draining"``: it is about to end.
    """

    def __init__(self, retry_after: float, reason: Literal["full", "draining"] = "full") -> None:
        super().__init__(retry_after, reason)
        self.retry_after = retry_after
        self.reason = reason

    def __str__(self) -> str:
        why = "is full" if self.reason == "full" else "is draining and takes no more streams"
        return f"the service {why}; try again in {self.retry_after:.0f} s"


@dataclass(frozen=True, slots=True)
class Need:
    """What one stream takes of the device's memory, in bytes, the weights not counted.

    Attributes:
        kept: For as long as it runs: the decoder's state, and pixels on their way.
        working: Besides, while it launches; streams launch one at a time.
    """

    kept: int = 0
    working: int = 0

    @classmethod
    def of(cls, plan: Plan) -> Need | None:
        """By a stream's plan; None where that cannot tell."""
        device, launch, state = plan.device_bytes, plan.launch_bytes, plan.state_bytes
        if device is None or launch is None or state is None:
            return None
        working = max(0, launch - state)
        return cls(device - working, working)


class Admission:
    """Places for streams, a queue before them, and the memory that they share. One loop's.

    First come first served, but previews after the others, and nobody is overtaken more than
    ``PATIENCE`` times. Who does not fit in memory waits at the head of the queue, and all others
    behind it: else small ones would keep a large one out for ever.

    Args:
        places: Streams at once.
        most_waiting: Streams that may wait.
        memory: Bytes that all may take together; None for any.
    """

    def __init__(self, places: int, most_waiting: int, memory: int | None = None) -> None:
        self.places = places
        self.most_waiting = most_waiting
        self.memory = memory
        self._queue: list[Place] = []
        self._inside: list[Place] = []

    @property
    def active(self) -> int:
        """Streams that have a place."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """Streams that wait for one."""
        return len(self._queue)

    @property
    def reserved(self) -> int:
        """Bytes set aside for those that have a place."""
        return _together(place.need for place in self._inside)

    def enter(self, need: Need | None, priority: Priority = "final") -> Place | None:
        """Queue up; None if as many wait as may.

        Args:
            need: What it takes, nothing where memory does not matter; None: `Place.needs` tells
                later.
            priority: Previews wait behind the others.
        """
        place = Place(self, need, priority)
        self._queue.append(place)
        self.admit()
        # Of one that is not known it cannot be said whether it will have to wait.
        most = self.most_waiting + (self.places if need is None else 0)
        if self.waiting > most or self._one_too_many(place):
            place.leave()
            return None
        return place

    def fits(self, need: Need) -> bool:
        """Whether it would fit if nobody else were there."""
        return self.memory is None or _together((need,)) <= self.memory

    def admit(self) -> None:
        """Give places to those whose turn it is."""
        while self.active < self.places:
            following = self._following()
            if following is None or not self._has_room(following.need):
                return
            for earlier in self._queue[: self._queue.index(following)]:
                earlier.overtaken += 1
            self._queue.remove(following)
            self._inside.append(following)
            following.give()

    def everybody(self) -> tuple[Place, ...]:
        """All who have a place or wait for one."""
        return (*self._inside, *self._queue)

    def order(self) -> list[Place]:
        """Those who wait, the next one first."""
        return sorted(self._queue, key=Place.precedence)  # stable: in the order of coming

    def _following(self) -> Place | None:
        """Who is next. Passes over those of whom it is not known yet what they take."""
        return next((place for place in self.order() if place.need is not None), None)

    def _one_too_many(self, place: Place) -> bool:
        """Whether it has to wait, and as many do as may."""
        if place.inside or place.need is None:
            return False
        return sum(one.need is not None for one in self._queue) > self.most_waiting

    def _has_room(self, need: Need | None) -> bool:
        if self.memory is None or not self._inside:
            return True
        return _together((need, *(place.need for place in self._inside))) <= self.memory

    def _leave(self, place: Place) -> None:
        for places in (self._queue, self._inside):
            if place in places:
                places.remove(place)
        self.admit()


class Place:
    """A stream's place in the queue, and later inside."""

    def __init__(self, admission: Admission, need: Need | None, priority: Priority) -> None:
        self._admission = admission
        self._priority = priority
        self._given = asyncio.Event()
        self._refusal: Exception | None = None
        self.need = need
        self.overtaken = 0

    @property
    def inside(self) -> bool:
        """Whether it has been given."""
        return self._given.is_set() and self._refusal is None

    @property
    def position(self) -> int:
        """1: the next one; 0: not in the queue."""
        order = self._admission.order()
        return order.index(self) + 1 if self in order else 0

    def precedence(self) -> int:
        """The lowest goes first."""
        return 1 if self._priority == "preview" and self.overtaken < PATIENCE else 0

    def needs(self, need: Need) -> bool:
        """Say what it takes. False: it would have to wait and as many do as may, so it has left."""
        self.need = need
        self._admission.admit()
        if self._admission._one_too_many(self):
            self.leave()
            return False
        return True

    def give(self) -> None:
        """Let it in."""
        self._given.set()

    def refuse(self, error: Exception) -> None:
        """Send it away."""
        self._refusal = error
        self.leave()
        self._given.set()

    async def given(self) -> None:
        """Wait for it.

        Raises:
            Exception: What it was sent away with.
        """
        await self._given.wait()
        if self._refusal is not None:
            raise self._refusal

    def leave(self) -> None:
        """Give it back, or give up waiting. Idempotent."""
        self._admission._leave(self)


class Durations:
    """How long streams took, from their place to their end."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, seconds: float) -> None:
        """One has ended."""
        self._seconds.append(seconds)

    def typical(self, running: Sequence[float] = ()) -> float:
        """Seconds that a stream takes; before any has ended, what those ``running`` have taken."""
        return median(self._seconds) if self._seconds else max((*running, SOONEST))


def until_served(remaining: Iterable[float], waiting: int, places: int, typical: float) -> float:
    """Seconds until one who comes behind ``waiting`` others has a place, all going as usual.

    Args:
        remaining: Seconds that each stream inside will still take.
        waiting: Streams in the queue.
        places: Streams at once.
        typical: Seconds that a stream takes.
    """
    ends = sorted(remaining)[:places]
    ends = [0.0] * (places - len(ends)) + ends
    for _ in range(waiting):
        heapq.heapreplace(ends, ends[0] + typical)
    return max(SOONEST, ends[0])


def _together(needs: Iterable[Need | None]) -> int:
    known = [need for need in needs if need is not None]
    return sum(need.kept for need in known) + max((need.working for need in known), default=0)
