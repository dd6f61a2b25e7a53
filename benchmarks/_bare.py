"""The least that writes the same bytes: what a sink is measured against."""

from __future__ import annotations

import mmap
import os

import numpy as np
import numpy.typing as npt


def aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Give ``nbytes`` bytes of memory that begins on a page."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def write_all(file: int, data: npt.NDArray[np.uint8]) -> None:
    """Write all of a flat array, by as many calls as the system wants."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
