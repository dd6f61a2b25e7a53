"""When to launch the chunk behind the running one: just before that ends.

A device that is given its next chunk only when it has finished one idles while the host launches.
Given it at once, it has a whole chunk before it that no cancel can take back. So the second place
of a turnstile opens when the running chunk is about to end, by how long such chunks took.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

#: Seconds that the second launch comes early, besides what launching took: waiting is done by
#: polling about once a millisecond, on a loop that does other things too.
EARLY = 0.0025
#: Chunks that are looked back on. Their shortest counts: stalls make chunks look longer.
MEMORY = 5


class Pace:
    """Watches chunks come and go; used under its turnstile's lock.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._running: deque[float] = deque(maxlen=MEMORY)
        self._launching: deque[float] = deque(maxlen=MEMORY)
        self._since = 0.0

    def now(self) -> float:
        """Seconds."""
        return self._clock()

    def began(self) -> None:
        """A chunk is running from now on, alone or as the next one."""
        self._since = self._clock()

    def launched(self, seconds: float) -> None:
        """Note that a chunk was launched so long after it was let in."""
        self._launching.append(seconds)

    def ended(self) -> None:
        """Note that the running chunk is over."""
        self._running.append(self._clock() - self._since)

    def due(self) -> bool:
        """Whether the one behind it should be launched; at once while nothing is known."""
        if not (self._running and self._launching):
            return True
        lead = EARLY + max(self._launching)
        return self._clock() >= self._since + min(self._running) - lead
