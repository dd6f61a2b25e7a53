"""What a .wav holds, read back by PyAV and by the standard library."""

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from streamvae._errors import UsageError
from streamvae.sinks import WavFile
from tests.sinks.streams import cut, describe, keep, left_in


def read(path: Path) -> tuple[np.ndarray, int]:
    """Samples (N, C) as they are stored, and their rate."""
    with av.open(path) as container:
        (stream,) = container.streams
        parts = [frame.to_ndarray() for frame in container.decode(stream)]
        channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
    return np.concatenate([part.reshape(-1, channels) for part in parts]), rate


@pytest.fixture
def sound() -> np.ndarray:
    """Stereo of an odd length, beyond [-1, 1] here and there."""
    return np.random.default_rng(2).normal(0, 0.5, (4801, 2)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("count", [1, 4801])
async def test_float_is_lossless(
    tmp_path: Path, sound: np.ndarray, channels: int, count: int
) -> None:
    """What was decoded comes back bit for bit, at its rate."""
    given = sound[:count, :channels].copy()
    sink = WavFile(tmp_path / "a.wav")
    await keep(sink, given, "sound", sample_rate=48000)
    back, rate = read(sink.path)
    assert (back.dtype, rate) == (np.float32, 48000)
    assert np.array_equal(back, given)
    assert sink.committed == count
    assert left_in(tmp_path) == {"a.wav"}


async def test_int16(tmp_path: Path, sound: np.ndarray) -> None:
    """In 16 bits it is rounded to the nearest and cut off, not wrapped around."""
    sink = WavFile(tmp_path / "a.wav", samples="int16")
    await keep(sink, sound, "sound", sample_rate=44100)
    with wave.open(str(sink.path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 44100, 4801)
        back = np.frombuffer(file.readframes(4801), "<i2").reshape(-1, 2)
    assert np.abs(back / 32767 - np.clip(sound, -1, 1)).max() <= 0.5 / 32767 + 1e-7


async def test_partial_plays(tmp_path: Path, sound: np.ndarray) -> None:
    """After every chunk, and after an abort, .partial holds what was accepted."""
    sink = WavFile(tmp_path / "a.wav")
    await sink.open(describe(sound, "sound", sample_rate=8000))
    for chunk in list(cut(sound, "sound", (1000, 777)))[:3]:
        await sink.write(chunk)
        assert np.array_equal(read(sink.partial)[0], sound[: sink.committed])
    await sink.abort()
    assert np.array_equal(read(sink.partial)[0], sound[:2554])
    assert left_in(tmp_path) == {"a.wav.partial"}


async def test_what_is_refused(tmp_path: Path, sound: np.ndarray, frames: np.ndarray) -> None:
    """Pictures, a batch, no rate, bad options and no samples at all: one clear error each."""
    with pytest.raises(UsageError, match="keeps sound; got video"):
        await WavFile(tmp_path / "a.wav").open(describe(frames))
    with pytest.raises(UsageError, match="expected batch 1, got 2"):
        info = describe(sound, "sound", batch=2, sample_rate=8000)
        await WavFile(tmp_path / "a.wav").open(info)
    with pytest.raises(UsageError, match=r"expected sample_rate=\.\.\., got none"):
        await WavFile(tmp_path / "a.wav").open(describe(sound, "sound"))
    with pytest.raises(UsageError, match="expected samples='float32' or 'int16', got 'mp3'"):
        WavFile(tmp_path / "a.wav", samples="mp3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sample_rate to be at least 1, got 0"):
        WavFile(tmp_path / "a.wav", sample_rate=0)
    sink = WavFile(tmp_path / "a.wav", sample_rate=8000)
    await sink.open(describe(sound, "sound"))
    with pytest.raises(UsageError, match="at least one sample, got none"):
        await sink.close()
    await sink.abort()
    assert left_in(tmp_path) == set()
