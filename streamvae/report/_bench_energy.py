"""Joules a frame, by NVML's counter of energy (package ``nvidia-ml-py``, extra ``energy``)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Joules that a card has taken since some moment.
Counter = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Energy:
    """What a card takes while one way decodes the same clip again and again.

    Attributes:
        way: The way; frames come to the host and are dropped.
        runs: Clips that were decoded.
        frames: Of all of them.
        seconds: That it took.
        joules: That the card took, of which the host's are none.
        idle_watts: What the card takes when nothing runs on it.
    """

    way: str
    runs: int
    frames: int
    seconds: float
    joules: float
    idle_watts: float

    @property
    def joules_per_frame(self) -> float:
        """All that the card took."""
        return self.joules / self.frames

    @property
    def joules_above_idle_per_frame(self) -> float:
        """What it took for decoding."""
        return (self.joules - self.idle_watts * self.seconds) / self.frames

    @property
    def watts(self) -> float:
        """On average."""
        return self.joules / self.seconds

    def as_json(self) -> dict[str, object]:
        """All of it, as it is written down."""
        return {
            "way": self.way,
            "runs": self.runs,
            "frames": self.frames,
            "seconds": self.seconds,
            "joules": self.joules,
            "idle_watts": self.idle_watts,
            "watts": self.watts,
            "joules_per_frame": self.joules_per_frame,
            "joules_above_idle_per_frame": self.joules_above_idle_per_frame,
        }


def counter_of(names: Sequence[str]) -> Counter | str:
    """What counts a card's joules, or why nothing does.

    Args:
        names: What NVML may know the card by: UUIDs (``"GPU-..."``) or numbers, the best first.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed (pip install 'streamvae[energy]')"
    try:
        nvml.nvmlInit()
        handle = _handle(nvml, names)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return f"NVML does not count them here: {error}"
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def _handle(nvml: Any, names: Sequence[str]) -> object:  # noqa: ANN401  # a module without types
    *others, last = names
    for name in others:
        try:
            return nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:
            continue
    return nvml.nvmlDeviceGetHandleByIndex(int(last))


def idle_watts(
    counter: Counter,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> float:
    """Watts of a card on which nothing runs, from ``seconds`` after this is called.

    Args:
        counter: Its.
        seconds: How long to look.
        clock: Seconds.
        sleep: Waits so many.
    """
    sleep(seconds)
    began, before = clock(), counter()
    sleep(seconds)
    after, ended = counter(), clock()
    return (after - before) / (ended - began)


def consumed(
    way: str,
    run: Callable[[], object],
    counter: Counter,
    *,
    frames: int,
    idle: float,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Decode a clip again and again, and read the counter before and after.

    The counter goes on in steps of some tens of milliseconds: the longer, the better is it known.

    Args:
        way: What it is called.
        run: Decodes the clip, to its end.
        counter: Of the card.
        frames: Of the clip.
        idle: Watts of the card when nothing runs on it.
        seconds: How long at least.
        clock: Seconds.
    """
    runs = 0
    began, before = clock(), counter()
    while True:
        run()
        runs += 1
        ended = clock()
        if ended - began >= seconds:
            break
    return Energy(way, runs, runs * frames, ended - began, counter() - before, idle)
