"""``streamvae demo``."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvae._demo import ACROSS, COLUMNS, contact_sheet, exactness, is_exact
from streamvae._whole import Whole

from .command import Invoke, one_error


def test_demo_leaves_a_film_and_a_picture_and_compares(invoke: Invoke) -> None:
    """The demo writes both files, finds every frame equal to vae.decode's, and may run again."""
    for _ in range(2):
        result = invoke("demo", "--seconds", "0.04", "--device", "cpu", "--out", "here")
        assert result.exit_code == 0, result.output
        assert "all 1 frames equal" in result.stdout
        assert "the first 1 frames equal" in result.stdout
        for word in ("first frame after", "frames a second", "memory added", "limit: "):
            assert word in result.stdout
    assert Path("here/demo.mp4").stat().st_size > 0
    with Image.open("here/demo.png") as sheet:
        assert sheet.width == COLUMNS * ACROSS
    assert sorted(path.name for path in Path("here").iterdir()) == ["demo.mp4", "demo.png"]


def test_the_demo_replaces_only_its_own(invoke: Invoke) -> None:
    """A demo.mp4 that no demo wrote is refused before anything is decoded."""
    Path("demo.mp4").write_text("of value")
    assert "--overwrite" in one_error(invoke("demo", "--seconds", "0.04"), 2)
    assert Path("demo.mp4").read_text() == "of value"


def test_contact_sheet_shows_first_to_last() -> None:
    """Twelve pictures lie in three rows, the first frame first, the last one last."""
    frames = np.zeros((97, 64, 112, 3), np.uint8)
    frames[:] = np.arange(97, dtype=np.uint8)[:, None, None, None]
    sheet = np.asarray(contact_sheet(frames, 24.0))
    assert sheet.shape == (3 * 128, 4 * ACROSS, 3)
    assert (sheet[127, 0] == 0).all()
    assert (sheet[-1, -1] == 96).all()


def test_unequal_frames_are_told() -> None:
    """The demo does not call a stream exact that is not."""
    equal = Whole(1.0, 1, frames=9, equal=9, float_frames=9, float_equal=True)
    assert is_exact(equal, 9)
    assert not is_exact(equal, 5)
    wrong = Whole(1.0, 1, frames=9, equal=8, float_frames=9, float_equal=False)
    assert not is_exact(wrong, 9)
    assert exactness(wrong, 9).startswith("NO: 8 of 9")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_peak_memory_is_what_was_added() -> None:
    """Memory that was used and given back counts; what was there before does not."""
    # In a process of its own, as it is used: what other tests leave is given back at any moment.
    code = (
        "import torch\n"
        "from streamvae.report._memory import PeakMemory\n"
        "there = torch.ones(32 * 2**20, dtype=torch.uint8)\n"
        "peak = PeakMemory('cpu')\n"
        "torch.ones(64 * 2**20, dtype=torch.uint8)\n"
        "print(peak.above())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # The kernel counts in batches of pages.
    assert 60 * 2**20 <= int(done.stdout) < 128 * 2**20
