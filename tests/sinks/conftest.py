"""Pictures to keep, and whether a sink's thread has gone."""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest


@pytest.fixture
def frames() -> npt.NDArray[np.uint8]:
    """Thirteen small pictures (13, 24, 32, 3), every byte seeded."""
    return np.random.default_rng(7).integers(0, 256, (13, 24, 32, 3), dtype=np.uint8)


@pytest.fixture
def thread_ended() -> Callable[[str], bool]:
    """Wait until no thread works for the sink of this name; false if one stays."""

    def ended(name: str) -> bool:
        for thread in threading.enumerate():
            if thread.name == f"streamvae sink {name}":
                thread.join(5)
        return not any(thread.name.endswith(name) for thread in threading.enumerate())

    return ended
