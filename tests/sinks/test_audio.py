"""What .m4a and .opus hold, read back by FFmpeg (through PyAV)."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from streamvae._errors import UsageError
from streamvae.sinks import AudioFile
from tests.sinks.streams import cut, describe, keep, left_in
from tests.sinks.test_crash import files_end_at
from tests.sinks.test_video_with_sound import Sound, chirp, heard, lag

SUFFIXES = [".m4a", ".opus"]


async def keep_blocks(sink: AudioFile, sound: Sound, rate: int) -> None:
    """Drive ``sink`` through a stream in blocks of 1000 samples."""
    await sink.open(describe(sound, "sound", sample_rate=rate))
    for chunk in cut(sound, "sound", (1000,)):
        await sink.write(chunk)
    await sink.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("rate", "channels"), [(24000, 1), (44100, 2), (48000, 2), (37000, 1)])
async def test_not_a_sample_late(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, rate: int, channels: int
) -> None:
    """The sound begins with its first sample, at its rate or at 48 kHz, which the log says."""
    sound = chirp(2 * rate, rate, channels)
    sink = AudioFile(tmp_path / f"a{suffix}")
    with caplog.at_level(logging.INFO, "streamvae"):
        await keep_blocks(sink, sound, rate)
    begins, kept, back = heard(sink.path)
    takes = {24000, 48000} if suffix == ".opus" else {24000, 44100, 48000}
    assert (f"{rate} Hz become 48000 Hz" in caplog.text) == (rate not in takes)
    assert kept == (rate if rate in takes and suffix == ".m4a" else 48000)
    assert abs(begins) < 1 / kept
    assert back.shape[1] == channels
    assert abs(len(back) / kept - 2) <= 1024 / kept
    assert lag(back, chirp(2 * kept, kept, channels)) == 0
    assert sink.committed == len(sound)
    assert left_in(tmp_path) == {sink.path.name}
    with av.open(sink.path) as container:
        name = container.streams.audio[0].codec_context.codec.canonical_name
    assert name == ("opus" if suffix == ".opus" else "aac")


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_committed_is_what_a_kill_leaves(tmp_path: Path, suffix: str) -> None:
    """Cut off where the file ends, what is committed can be heard; after an abort all can."""
    sound = chirp(12 * 24000, 24000)
    sink = AudioFile(tmp_path / f"a{suffix}")
    await sink.open(describe(sound, "sound", sample_rate=24000))
    killed, counts = tmp_path / f"killed{suffix}", [0]
    for chunk in cut(sound, "sound", (6000,)):
        await sink.write(chunk)
        if sink.committed > counts[-1]:
            counts.append(sink.committed)
            killed.write_bytes(sink.partial.read_bytes())
            _, kept, back = heard(killed)
            assert len(back) * 24000 / kept >= sink.committed
    assert len(counts) >= 5
    assert 12 * 24000 - counts[-1] <= 4 * 24000
    await sink.abort()
    _, kept, back = heard(sink.partial)
    assert abs(len(back) / kept - 12) <= 1024 / kept
    assert sink.committed == len(sound)


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_disk_full(tmp_path: Path, suffix: str) -> None:
    """The system's error comes out; what is committed can be heard."""
    sound = chirp(20 * 24000, 24000)
    sink = AudioFile(tmp_path / f"a{suffix}")
    with files_end_at(100_000):
        with pytest.raises(OSError, match="File too large"):
            await keep_blocks(sink, sound, 24000)
        await sink.abort()
    _, kept, back = heard(sink.partial)
    assert len(back) * 24000 / kept >= sink.committed > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.aac", {}, "ending in .m4a or .opus, got '.aac'"),
        ("a.m4a", {"bitrate": 0}, "bitrate to be at least 1, got 0"),
        ("a.opus", {"sample_rate": -1}, "sample_rate to be at least 1, got -1"),
    ],
)
def test_bad_options(name: str, options: dict[str, int], words: str) -> None:
    """Options out of range are refused when the sink is made."""
    with pytest.raises(UsageError, match=words):
        AudioFile(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"kind": "video"}, "keeps sound; got video"),
        ({"sample_rate": None}, "needs samples a second; expected sample_rate=..., got none"),
        ({"batch": 2}, "expected batch 1, got 2"),
    ],
)
async def test_stream_that_is_no_sound(
    tmp_path: Path, known: dict[str, object], words: str
) -> None:
    """Pictures, several pieces and a missing rate are refused before anything is decoded."""
    values = {"kind": "sound", "sample_rate": 48000} | known
    with pytest.raises(UsageError, match=words):
        await AudioFile(tmp_path / "a.m4a").open(describe(chirp(9, 48000), **values))  # type: ignore[arg-type]
    assert left_in(tmp_path) == set()


async def test_without_sound_or_with_too_many_channels(tmp_path: Path) -> None:
    """No sample, and three channels: an error each, and no file."""
    sink = AudioFile(tmp_path / "a.m4a")
    with pytest.raises(UsageError, match="at least one sample, got none"):
        await keep(sink, chirp(0, 48000), "sound", sample_rate=48000)
    await sink.abort()
    sink = AudioFile(tmp_path / "a.opus")
    with pytest.raises(UsageError, match="expected 1 or 2 channels, got 3"):
        await keep(sink, np.zeros((9, 3), np.float32), "sound", sample_rate=48000)
    await sink.abort()
    assert left_in(tmp_path) == set()
