"""Writers that are killed, for every kind of file: a short run of the program that tells of 30."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_what_is_committed_survives(tmp_path: Path) -> None:
    """After SIGKILL at a random moment every frame that was called committed is read back."""
    out = tmp_path / "kills.json"
    sizes = ("--runs", "1", "--chunks", "40", "--at", str(tmp_path), "--out", str(out))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *sizes],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads(out.read_text())["kinds"]
    assert {"mp4", "npy", "png", "raw", "zarr"} <= set(kinds)
    kills = [kill for kind in kinds.values() for kill in kind["kills"]]
    assert len(kills) == len(kinds)
    assert sum(kill["lost"] for kill in kills) == 0
    assert any(kill["committed"] > 0 for kill in kills), "none was cut off in its middle"
