"""Frames a second, exactly."""

from __future__ import annotations

import math
from fractions import Fraction

from streamvae._errors import UsageError


def rate_of(fps: float | Fraction) -> Fraction:
    """Frames a second as the fraction that is meant.

    Raises:
        UsageError: Not a positive finite number.
    """
    if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction):
        raise UsageError(f"expected fps as a number, got {fps!r}")
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"expected fps above 0, got {fps}")
    if not isinstance(fps, float):
        return Fraction(fps)
    drop = Fraction(math.ceil(fps) * 1000, 1001)  # NTSC: 24000/1001 is written 23.976 or 23.98
    if not fps.is_integer() and abs(drop - fps) < 0.005:
        return drop
    return Fraction(fps).limit_denominator(1001)
