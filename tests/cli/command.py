"""The command as tests give it, and what it says when it fails."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import Result

ROOT = Path(__file__).parents[2]
LATENTS = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))

#: Runs the command in this process.
Invoke = Callable[..., Result]


def command(*args: object) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "streamvae", *map(str, args)]


def environment() -> dict[str, str]:
    """This very package, and no GPU."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def one_error(result: Result, code: int) -> str:
    """The one line a failed command said."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
