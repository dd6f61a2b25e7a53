"""Measuring side by side: samples in alternating order, one JSON a run, promises kept or broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamvae.report import _bench_samples as _samples
from streamvae.report._bench_machine import clocks, facts, filesystem
from streamvae.report._bench_samples import Samples, seconds

__all__ = [
    "Json",
    "alternate",
    "clocks",
    "facts",
    "filesystem",
    "promised",
    "seconds",
    "show",
    "show_promises",
    "summary",
    "write",
]

Json = dict[str, Any]


def summary(samples: list[float]) -> Json:
    """Median, extremes and the samples themselves."""
    return Samples(tuple(samples)).as_json()


def alternate(
    variants: Mapping[str, Callable[[], float]], rounds: int, *, warm: bool = True
) -> dict[str, Json]:
    """Measure all variants in turns: see `streamvae.report._bench_samples.alternate`."""
    measured = _samples.alternate(variants, rounds, warm=warm)
    return {name: each.as_json() for name, each in measured.items()}


def write(result: Json, path: Path) -> None:
    """Write ``result`` to ``path``, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def show(title: str, rows: Mapping[str, Json], unit: str = "s") -> None:
    """Print medians with their range."""
    print(f"\n{title}")
    for name, row in rows.items():
        median, low, high = row["median"], row["min"], row["max"]
        print(f"  {name:34s} {median:9.4f} {unit}   ({low:.4f} to {high:.4f})")


def promised(rows: Mapping[str, tuple[float, float]]) -> dict[str, Json]:
    """What was measured and what is promised, as it is written down."""
    return {
        name: {"measured": value, "at most": limit, "kept": value <= limit}
        for name, (value, limit) in rows.items()
    }


def show_promises(rows: Mapping[str, Json], *, quick: bool) -> None:
    """Print each promise, and whether it is kept."""
    print("\npromises" + (" (this is a rehearsal: nothing follows from it)" if quick else ""))
    for name, row in rows.items():
        word = "kept" if row["kept"] else "BROKEN"
        print(f"  {name:36s} {row['measured']:9.4f}   at most {row['at most']:<6} {word}")
