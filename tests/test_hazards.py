"""Breaking the code in every dangerous way makes a test fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from .hazards import HAZARDS, Patch

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(600)
def test_every_hazard_is_caught() -> None:
    """``tests/hazards.py`` finds a failing test for each named patch, and none without."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hazards.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(HAZARDS)} of {len(HAZARDS)} hazards caught" in done.stdout


@pytest.mark.parametrize("old", ["nothing like it", "a"])
def test_a_patch_that_does_not_fit_is_refused(tmp_path: Path, old: str) -> None:
    """A patch matches one place or fails by saying how many it found."""
    (tmp_path / "file.py").write_text("a = a\n")
    with pytest.raises(LookupError, match="expected one place in file.py to match, found [02]"):
        Patch("file.py", old, "b").apply(tmp_path)
