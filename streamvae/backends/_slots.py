"""Host memory that a device copies into: a few page-locked buffers, reused by every stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

from streamvae._errors import UsageError

logger = logging.getLogger("streamvae")

#: Page-locked bytes of a device at most, unless the environment says otherwise. The two slots for
#: chunks of 720x1280 take 32 MiB as uint8 and 128 MiB as float32.
MAX_PINNED_BYTES = 256 * 2**20
VARIABLE = "STREAMVAE_PINNED_BYTES"


def max_pinned_bytes() -> int:
    """Page-locked bytes a device may have: from the environment, else `MAX_PINNED_BYTES`.

    Raises:
        UsageError: The environment holds no number.
    """
    said = os.environ.get(VARIABLE, str(MAX_PINNED_BYTES))
    if not said.isdecimal():
        raise UsageError(f"expected a number of bytes in {VARIABLE}, got {said!r}")
    return int(said)


class Slots:
    """Buffers, each taken for one copy and given back. Used on the copy thread only.

    Page-locked memory is a preference. Where it is refused or capped, slots are ordinary memory:
    that is said once, and the same bytes arrive, more slowly.

    Args:
        pinned: Makes page-locked memory of so many bytes; RuntimeError when it is refused.
        max_pinned: Page-locked bytes of all slots together, at most.
        owner: Whose slots they are, for the warning.
    """

    def __init__(
        self, pinned: Callable[[int], torch.Tensor], max_pinned: int, owner: object
    ) -> None:
        self._make_pinned = pinned
        self._max_pinned = max_pinned
        self._owner = owner
        self._free: list[torch.Tensor] = []
        self._pinned: dict[int, int] = {}  # address: bytes, of every slot not dropped
        self._warned: list[int] = []

    def beside(self) -> Slots:
        """Make slots of another size, which count and warn together with these."""
        other = Slots(self._make_pinned, self._max_pinned, self._owner)
        other._pinned, other._warned = self._pinned, self._warned
        return other

    @property
    def pinned_bytes(self) -> int:
        """Page-locked bytes in all slots, those in use and those in quarantine included."""
        return sum(self._pinned.values())

    def take(self, nbytes: int) -> torch.Tensor:
        """Give a flat uint8 buffer of at least ``nbytes`` bytes that nothing else uses."""
        while self._free:
            buffer = self._free.pop()
            if buffer.nbytes >= nbytes:
                return buffer
            self._pinned.pop(buffer.data_ptr(), None)
            del buffer  # before a larger one is made
        # The host allocator rounds page-locked memory up to a power of two anyway: use it all.
        size = 1 << (nbytes - 1).bit_length()
        try:
            return self._new_pinned(size)
        except RuntimeError as error:
            self._warn(size, error)
            return torch.empty(size, dtype=torch.uint8)

    def give_back(self, buffer: torch.Tensor) -> None:
        """Take a buffer back; the caller vouches that nothing writes to it any more."""
        self._free.append(buffer)

    def _new_pinned(self, size: int) -> torch.Tensor:
        if self.pinned_bytes + size > self._max_pinned:
            raise RuntimeError(f"it may have {self._max_pinned}, see {VARIABLE}")
        buffer = self._make_pinned(size)
        self._pinned[buffer.data_ptr()] = size
        return buffer

    def _warn(self, size: int, reason: object) -> None:
        if not self._warned:
            self._warned.append(size)
            logger.warning(
                "No %d bytes of page-locked memory for %s (%s): copies take ordinary memory, "
                "slower, with the same frames.",
                size,
                self._owner,
                reason,
            )
