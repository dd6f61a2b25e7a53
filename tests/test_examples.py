"""The examples, run as a reader would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_as_it_is(example: Path, tmp_path: Path) -> None:
    """An example runs to its end without arguments, on a CPU, and warns of nothing of ours."""
    run = subprocess.run(
        [sys.executable, "-W", "error:::streamvae", str(example)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr
