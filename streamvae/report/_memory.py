"""How much memory a process or a device needs, and programs of this package run in their own."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .._errors import StreamVAEError

# The kernel counts a thread's pages in batches: the highest, just reset, may be this far off.
_COUNTED_APART = 1 << 20


class PeakMemory:
    """Measures how much memory is used at most from now on, above what is used now.

    Args:
        device: CUDA: what torch allocates there. Else: this process's resident memory, as Linux
            tells it; other systems do not say.
        reserved: CUDA: what torch keeps from others, with what lies free between tensors and in
            the pools of graphs; what is cached and unused now is given back first.
    """

    def __init__(self, device: str, *, reserved: bool = False) -> None:
        self._cuda = device if torch.device(device).type == "cuda" else None
        self._reserved = reserved
        gc.collect()
        if self._cuda is not None and reserved:
            torch.cuda.empty_cache()
        self._before = self._used()
        self.restart()

    def restart(self) -> None:
        """Forget the highest so far; what `above` counts from stays."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        # Not getrusage: its maximum outlives exec, so a child would report its parent's.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._now, self._high = _status("VmRSS"), _status("VmHWM")

    def above(self) -> int | None:
        """Bytes, not below 0; None where that is not known."""
        if self._before is None:
            return None
        if self._cuda is not None:
            peak = torch.cuda.max_memory_reserved if self._reserved else _most_allocated
            return max(peak(self._cuda) - self._before, 0)
        high = _status("VmHWM")
        return None if high is None or self._stale(high) else max(high - self._before, 0)

    def _stale(self, high: int) -> bool:
        """Whether ``high`` is an old maximum that could not be reset, and was not reached again."""
        was, now = self._high or 0, self._now or 0
        return high == was and was - now > _COUNTED_APART

    def _used(self) -> int | None:
        if self._cuda is None:
            return _status("VmRSS")
        used = torch.cuda.memory_reserved if self._reserved else torch.cuda.memory_allocated
        return used(self._cuda)


def told_by(module: str, *args: str, what: str) -> object:
    """What ``python -m module`` says, which is JSON, in the last line of its standard output.

    Args:
        module: One of this package.
        *args: Its arguments.
        what: For the error: what was to run.

    Raises:
        StreamVAEError: The process failed, as it does without enough memory.
    """
    home = str(Path(__file__).parents[2])  # where this very package is, installed or not
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(  # noqa: S603  # this package, with arguments of our own
        [sys.executable, "-m", module, *args],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # ctrl-C is for the parent, which ends it
    )
    if ran.returncode != 0:
        said = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise StreamVAEError(f"expected {what} to run in a process of its own, got: {said}")
    return json.loads(ran.stdout.splitlines()[-1])


def _most_allocated(device: str) -> int:
    return torch.cuda.max_memory_allocated(device)


def _status(field: str) -> int | None:
    """A line of ``/proc/self/status`` in bytes; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return next((int(value) * 1024 for value in values), None)
