"""Comparing two ways to the same pixels, value by value and byte by byte."""

from __future__ import annotations

import hashlib
import math

import torch

#: What may be rounding, as a share of the greatest value, by dtype. A unit in the last place is up
#: to 1.2e-7, 1e-3 and 8e-3 of that, and layers add some up: tiny autoencoders of all families come
#: to 3.7e-6, 2.6e-3 and 2.8e-2 at most. It only has to keep out what float64 need not look at.
TOLERANCES = {
    torch.float64: 1e-5,
    torch.float32: 1e-4,
    torch.float16: 2.0**-6,
    torch.bfloat16: 2.0**-4,
}

#: The same where both ways decode in float64: some norms compute in float32 even then.
WIDE_TOLERANCE = 1e-5


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The greatest difference; NaN if there is one, infinity if the shapes differ.

    Args:
        one: Values on the host, any float dtype.
        other: The same, to be compared with it.
    """
    if one.shape != other.shape:
        return math.inf
    # Item by item along time: clips are large, and float64 doubles them.
    pairs = zip(one.unbind(1), other.unbind(1), strict=True)
    greatest = [(mine.double() - its.double()).abs().max() for mine, its in pairs if mine.numel()]
    return float(torch.stack(greatest).max()) if greatest else 0.0


def peak(values: torch.Tensor) -> float:
    """The greatest magnitude."""
    least, most = values.aminmax()
    return max(abs(float(least)), abs(float(most)))


def equal_share(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of values that are equal; 0 if the shapes differ."""
    if one.shape != other.shape:
        return 0.0
    return int((one == other).sum()) / one.numel()


def sha256(values: torch.Tensor) -> str:
    """Of the values in C order, on the host, little-endian."""
    array = values.contiguous().numpy()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.data).hexdigest()
