"""Joules a frame: what is made of the numbers that a card's counter gave."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamvae.report._bench_energy import Energy, consumed, counter_of, idle_watts

#: Joules and seconds: of a card at 120 W, then at 690 W.
IDLE = ([1000.0, 1240.0], [10.0, 12.0])
BUSY = ([1500.0, 4950.0], [20.0, 22.4, 23.9, 25.0])


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card's counter, as if its package were installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "installed"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("pynvml", None)


def reader(values: list[float]):
    """Give recorded numbers, one after another."""
    return iter(values).__next__


def test_watts_of_an_idle_card() -> None:
    """They are the counter's difference over the clock's, after a time in which it got idle."""
    slept: list[float] = []
    joules, seconds = IDLE
    watts = idle_watts(reader(joules), 2.0, clock=reader(seconds), sleep=slept.append)
    assert watts == 120.0
    assert slept == [2.0, 2.0]


def test_joules_a_frame() -> None:
    """A clip is decoded until enough time has passed, and all frames share what was taken."""
    runs: list[None] = []
    joules, seconds = BUSY
    found = consumed(
        "streamvae, fast",
        lambda: runs.append(None),
        reader(joules),
        frames=41,
        idle=120.0,
        seconds=5.0,
        clock=reader(seconds),
    )
    assert found == Energy("streamvae, fast", 3, 123, 5.0, 3450.0, 120.0)
    assert len(runs) == 3
    assert found.watts == 690.0
    assert found.joules_per_frame == pytest.approx(3450 / 123)
    assert found.joules_above_idle_per_frame == pytest.approx((3450 - 600) / 123)
    assert {"joules_per_frame", "idle_watts", "watts"} <= set(found.as_json())


@pytest.mark.usefixtures("nvml")
def test_the_counter_of_a_card() -> None:
    """NVML is asked for the card of this process, and its millijoules are given as joules."""
    counter = counter_of(["GPU-of-this-process", "3"])
    assert not isinstance(counter, str)
    assert counter() in {910.0, 1030.0}


@pytest.mark.usefixtures("nvml")
def test_a_card_that_is_known_by_its_number() -> None:
    """Where NVML does not know a card's UUID, its number is tried; else NVML's word is said."""
    assert not isinstance(counter_of(["GPU-of-another", "0"]), str)
    assert counter_of(["GPU-of-another", "7"]) == (
        "NVML does not count them here: Invalid Argument"
    )


def test_without_nvml() -> None:
    """Where its package is not installed, what to install is said."""
    if importlib.util.find_spec("pynvml"):
        pytest.skip("it is installed")
    assert "pip install 'streamvae[energy]'" in str(counter_of(["0"]))
