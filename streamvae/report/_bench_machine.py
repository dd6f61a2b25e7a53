"""Facts of a run, without which figures say nothing: versions, machine, command, date, clocks."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

#: What the installed versions of are written down.
PACKAGES = (
    "streamvae",
    "torch",
    "diffusers",
    "fastvae",
    "numpy",
    "anyio",
    "aiofiles",
    "av",
    "accelerate",
    "nvidia-ml-py",
    "cuda-bindings",
)
#: What nvidia-smi is asked for.
CLOCKS = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit"
)


def facts(device: torch.device) -> dict[str, object]:
    """Versions, machine, command and date.

    Args:
        device: Where is decoded.
    """
    on_cuda = device.type == "cuda"
    return {
        "command": _command(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,  # type: ignore[no-untyped-call]
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if on_cuda else None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def clocks(device: torch.device) -> dict[str, str] | None:
    """Clocks, temperature and power as nvidia-smi reports them now; None without it."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return None
    for name in card_names(device):
        command = [program, f"--query-gpu={CLOCKS}", "--format=csv,noheader", f"--id={name}"]
        try:
            done = subprocess.run(  # noqa: S603  # found on PATH, with arguments of our own
                command, capture_output=True, text=True, check=True, timeout=30
            )
        except (subprocess.SubprocessError, OSError):
            continue
        return dict(zip(CLOCKS.split(","), done.stdout.strip().split(", "), strict=False))
    return None


def filesystem(path: Path) -> str:
    """What kind of filesystem ``path`` is on, where the system tells."""
    best, kind, resolved = "", "unknown", path.resolve()
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for mount in mounts:
        _, where, this, *_ = mount.split()
        if resolved.is_relative_to(where) and len(where) >= len(best):
            best, kind = where, this
    return kind


def _command() -> str:
    """As it was given, with what it is called in the place of where that lies."""
    name = Path(sys.argv[0]).name
    if name in {"streamvae", "__main__.py"}:
        return shlex.join(["streamvae", *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])


def card_names(device: torch.device) -> list[str]:
    """What NVML may know a CUDA device by: it counts those too that are hidden from CUDA."""
    index = torch.empty(0, device=device).device.index
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return [str(index)] if uuid is None else [f"GPU-{uuid}", str(index)]


def _version(name: str) -> str | None:
    if name == "torch":
        return str(torch.__version__)
    if name == "streamvae":  # which may be a checkout, not installed
        return str(vars(sys.modules[__name__.partition(".")[0]])["__version__"])
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
