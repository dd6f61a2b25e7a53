"""Measuring side by side: samples in alternating order, facts of the machine, one JSON a run."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

#: What the installed versions of are written down.
PACKAGES = ("streamvae", "torch", "diffusers", "numpy", "anyio", "aiofiles", "av", "accelerate")
#: What nvidia-smi is asked for.
CLOCKS = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit"
)

Json = dict[str, Any]


def seconds(call: Callable[[], object]) -> float:
    """How long ``call`` took."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def summary(samples: list[float]) -> Json:
    """Median, extremes and the samples themselves."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": samples,
    }


def alternate(
    variants: Mapping[str, Callable[[], float]], rounds: int, *, warm: bool = True
) -> dict[str, Json]:
    """Measure all variants in each round, in an order that turns, so that drift hits all alike.

    Each is run once before, unmeasured, unless ``warm`` is False.
    """
    names = list(variants)
    for name in names if warm else ():
        variants[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            samples[name].append(variants[name]())
    return {name: summary(each) for name, each in samples.items()}


def facts(device: torch.device) -> Json:
    """Versions, machine, command and date: what a figure means nothing without."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def clocks(device: torch.device) -> Json | None:
    """Clocks, temperature and power as nvidia-smi reports them now; None without it."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return None
    command = [program, f"--query-gpu={CLOCKS}", "--format=csv,noheader", f"--id={device.index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except (subprocess.SubprocessError, OSError):
        return None
    return dict(zip(CLOCKS.split(","), done.stdout.strip().split(", "), strict=False))


def filesystem(path: Path) -> str:
    """What kind of filesystem ``path`` is on, where the system tells."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for mount in mounts:
        _, where, this, *_ = mount.split()
        inside = str(path.resolve()) == where or str(path.resolve()).startswith(
            where.rstrip("/") + "/"
        )
        if inside and len(where) >= len(best):
            best, kind = where, this
    return kind


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


def _version(name: str) -> str | None:
    if name == "torch":
        return str(torch.__version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
