"""What a .flac holds, read back by FFmpeg (through PyAV)."""

from pathlib import Path

import numpy as np
import pytest

from streamvae._errors import UsageError
from streamvae.sinks import FlacFile
from tests.sinks.streams import cut, describe, keep, left_in
from tests.sinks.test_crash import files_end_at
from tests.sinks.test_wav import read


@pytest.fixture
def sound() -> np.ndarray:
    """Stereo of an odd length, beyond [-1, 1] here and there."""
    return np.random.default_rng(2).normal(0, 0.5, (48011, 2)).astype(np.float32)


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize(("count", "channels"), [(1, 2), (48011, 1), (48011, 2)])
async def test_rounded_once(
    tmp_path: Path, sound: np.ndarray, bits: int, count: int, channels: int
) -> None:
    """Every sample is there, at its rate, rounded to the nearest and cut off at full scale."""
    given = sound[:count, :channels].copy()
    sink = FlacFile(tmp_path / "a.flac", bits=bits)  # type: ignore[arg-type]
    await keep(sink, given, "sound", sample_rate=44100)
    back, rate = read(sink.path)
    most = 2 ** (bits - 1) - 1
    values = back.astype(np.float64) / (256 if bits == 24 else 1) / most
    assert (values.shape, rate) == (given.shape, 44100)
    assert np.abs(values - np.clip(given, -1, 1)).max() <= 0.51 / most
    assert sink.committed == count
    assert left_in(tmp_path) == {"a.flac"}


async def test_partial_plays(tmp_path: Path, sound: np.ndarray) -> None:
    """After every chunk .partial holds what is committed; after an abort, all accepted."""
    sink = FlacFile(tmp_path / "a.flac", bits=16)
    await sink.open(describe(sound, "sound", sample_rate=8000))
    for chunk in list(cut(sound, "sound", (6000, 5000)))[:4]:
        await sink.write(chunk)
        if sink.committed:
            assert len(read(sink.partial)[0]) >= sink.committed
    assert 21000 - sink.committed <= 4608
    await sink.abort()
    assert (sink.committed, len(read(sink.partial)[0])) == (21000, 21000)
    assert left_in(tmp_path) == {"a.flac.partial"}


async def test_disk_full(tmp_path: Path, sound: np.ndarray) -> None:
    """The system's error comes out; what is committed plays, and no more than that is there."""
    sink = FlacFile(tmp_path / "a.flac")
    with files_end_at(100_000):
        with pytest.raises(OSError, match="File too large"):
            await sink.open(describe(sound, "sound", sample_rate=8000))
            for chunk in cut(sound, "sound", (5000,)):
                await sink.write(chunk)
            await sink.close()
        await sink.abort()
    assert sink.committed > 4000
    assert len(read(sink.partial)[0]) == sink.committed
    assert left_in(tmp_path) == {"a.flac.partial"}


async def test_what_is_refused(tmp_path: Path, sound: np.ndarray, frames: np.ndarray) -> None:
    """Pictures, no rate, other channels, bad options and no samples: one clear error each."""
    path = tmp_path / "a.flac"
    with pytest.raises(UsageError, match="keeps sound; got video"):
        await FlacFile(path).open(describe(frames))
    with pytest.raises(UsageError, match=r"expected sample_rate=\.\.\., got none"):
        await FlacFile(path).open(describe(sound, "sound"))
    with pytest.raises(UsageError, match="16 or 24 bits, got 8"):
        FlacFile(path, bits=8)  # type: ignore[arg-type]
    many = np.zeros((10, 5), np.float32)
    for rows, words in ((many, "1 or 2 channels, got 5"), (many[:0], "at least one sample")):
        sink = FlacFile(path, sample_rate=8000)
        with pytest.raises(UsageError, match=words):
            await keep(sink, rows, "sound")
        await sink.abort()
    assert left_in(tmp_path) == set()
