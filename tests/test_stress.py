"""Everything at once over the fake device, for some seeds; ``python -m tests.stress`` runs more."""

import pytest

from tests import stress


@pytest.fixture(scope="module")
def clips() -> stress.Clips:
    """Every family."""
    return stress.Clips(tuple(make() for make in stress.FAMILIES))


@pytest.mark.parametrize("seed", range(8))
async def test_frames_are_right(seed: int, clips: stress.Clips) -> None:
    """Streams beside warm-ups, cancels, moving weights and a denoiser: every frame as decoded."""
    done = await stress.fake(seed, clips)
    assert done.denoiser.uses
    assert done.steps.total()
