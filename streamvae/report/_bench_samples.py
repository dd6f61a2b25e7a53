"""Measuring side by side: several samples of each figure, in an order that turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Samples:
    """One figure, measured several times.

    Attributes:
        values: As they came; at least one.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """What the figure is said to be."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest."""
        return max(self.values)

    def as_json(self) -> dict[str, object]:
        """Median, extremes, and the samples themselves."""
        return {
            "median": self.median,
            "min": self.least,
            "max": self.most,
            "samples": list(self.values),
        }


def seconds(call: Callable[[], object]) -> float:
    """How long ``call`` took."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def alternate(
    variants: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warm: bool = True,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Samples]:
    """Measure all variants in each round, in an order that turns, so that drift hits all alike.

    Args:
        variants: By name, what runs once and gives the figure.
        rounds: Samples of each, at least 1.
        warm: Whether each is run once before, unmeasured.
        done: Called after every run.
    """
    names = list(variants)
    for name in names if warm else ():
        variants[name]()
        done()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            samples[name].append(variants[name]())
            done()
    return {name: Samples(tuple(each)) for name, each in samples.items()}
