"""What a viewer gets who is slower than the decode: a policy for each."""

from __future__ import annotations

from dataclasses import dataclass

from streamvae._errors import UsageError


@dataclass(frozen=True, slots=True)
class Block:
    """Every frame, at the price of everybody else's speed: a full queue holds the decode.

    The sinks are held with it: a chunk is accepted by all of them before viewers see it, but the
    next one is not decoded before this viewer has room. For consumers that belong to the job.

    Args:
        n: How many frames (packets) wait for the viewer at most.

    Raises:
        UsageError: ``n`` is not a whole number above 0.
    """

    n: int = 2

    def __post_init__(self) -> None:
        _expect_room(self.n)

    @property
    def room(self) -> int:
        """How many frames (packets) wait for the viewer at most."""
        return self.n


@dataclass(frozen=True, slots=True)
class DropOldest:
    """The newest ``n`` frames wait for the viewer; what is older is dropped. Holds nobody up.

    Args:
        n: How many frames (packets) wait for the viewer at most.

    Raises:
        UsageError: ``n`` is not a whole number above 0.
    """

    n: int

    def __post_init__(self) -> None:
        _expect_room(self.n)

    @property
    def room(self) -> int:
        """How many frames (packets) wait for the viewer at most."""
        return self.n


@dataclass(frozen=True, slots=True)
class Latest:
    """Only the newest frame waits for the viewer: what it sees is never old. Holds nobody up."""

    @property
    def room(self) -> int:
        """One."""
        return 1


#: How a viewer is treated.
Policy = Block | DropOldest | Latest


def _expect_room(n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"expected room for one frame or more, got {n!r}")
