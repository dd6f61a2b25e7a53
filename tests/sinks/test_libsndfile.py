"""Files of sound read by libsndfile, which shares no code with what wrote them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamvae.sinks import FlacFile, WavFile
from tests.sinks.streams import keep


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("count", [1, 4801])
@pytest.mark.parametrize(
    ("make", "name", "steps"),
    [
        (WavFile, "a.wav", 0),
        (lambda path: WavFile(path, samples="int16"), "a.wav", 2**15),
        (FlacFile, "a.flac", 2**23),
        (lambda path: FlacFile(path, bits=16), "a.flac", 2**15),
    ],
)
async def test_every_sample(tmp_path: Path, make, name, steps, channels, count) -> None:
    """Every sample is there, at its rate: the float itself, or the nearest step."""
    sound = np.random.default_rng(3).uniform(-0.9, 0.9, (count, channels)).astype(np.float32)
    await keep(make(tmp_path / name), sound, "sound", sample_rate=44100)
    back, rate = soundfile.read(tmp_path / name, dtype="float64", always_2d=True)
    assert (back.shape, rate) == (sound.shape, 44100)
    # Full scale is the largest step there is, and libsndfile divides by one more.
    allowed = 1.51 / steps if steps else 0
    assert np.abs(back - sound).max() <= allowed
