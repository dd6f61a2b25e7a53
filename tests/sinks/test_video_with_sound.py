"""Video with sound in one file: both from the first on, in time, whichever ends first."""

import asyncio
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch

from streamvae import AVStream, UsageError, VideoFile, save_av, stream_decode_av
from streamvae._errors import ClosedError
from streamvae.sinks import SoundTrack
from streamvae.testing import FakeBackend, TagCodec, tagged_latents
from tests.av import Beeps, silence
from tests.sinks.streams import Pictures, cut, describe, left_in, psnr, read_mp4, smooth

Sound = npt.NDArray[np.float32]
CONTAINERS = [".mp4", ".mkv", ".mov", ".webm"]


def chirp(samples: int, rate: int, channels: int = 2) -> Sound:
    """A tone that rises from 100 Hz by 2000 Hz a second, so that no part is like another."""
    t = np.arange(samples) / rate
    tone = 0.5 * np.sin(2 * np.pi * (100 * t + 1000 * t**2))
    sound: Sound = np.stack([tone, -0.5 * tone], 1)[:, :channels].astype(np.float32)
    return sound


def heard(path: Path) -> tuple[float, int, Sound]:
    """When the sound of a file begins, its rate, and its samples (N, C)."""
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
    blocks = [frame.to_ndarray() for frame in frames]
    return frames[0].time or 0.0, frames[0].sample_rate, np.concatenate(blocks, 1).T


def shown(path: Path) -> list[float]:
    """When each frame is shown, in seconds."""
    with av.open(path) as container:
        return [frame.time or 0.0 for frame in container.decode(video=0)]


def lag(later: Sound, earlier: Sound) -> int:
    """By how many samples ``later`` comes after ``earlier``, of one channel."""
    size = len(later) + len(earlier)
    product = np.fft.rfft(later[:, 0], size) * np.conj(np.fft.rfft(earlier[:, 0], size))
    at = int(np.argmax(np.fft.irfft(product, size)))
    return at if at < size // 2 else at - size


async def keep_both(
    video: VideoFile, pictures: Pictures, sound: Sound, rate: int, *, fps: float = 24.0
) -> SoundTrack:
    """Drive both sinks through a stream, in time order."""
    track = video.sound_track()
    await video.open(describe(pictures, fps=fps))
    await track.open(describe(sound, "sound", sample_rate=rate))
    chunks = [(one.start / Fraction(fps), 1, one) for one in cut(pictures)]
    chunks += [(Fraction(one.start, rate), 0, one) for one in cut(sound, "sound", (1000,))]
    for _, which, chunk in sorted(chunks, key=lambda item: item[:2]):
        await (video if which else track).write(chunk)
    await video.close()
    assert left_in(video.path.parent) == {video.partial.name}
    await track.close()
    return track


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("rate", [24000, 44100, 48000])
async def test_picture_and_sound_are_in_time(tmp_path: Path, suffix: str, rate: int) -> None:
    """Both begin at 0, every frame is at its time, and the sound is not a sample late."""
    pictures, sound = smooth(49, 64, 64), chirp(2 * rate, rate)
    file = VideoFile(tmp_path / f"a{suffix}")
    track = await keep_both(file, pictures, sound, rate)
    assert left_in(tmp_path) == {file.path.name}
    assert (file.committed, track.committed) == (49, len(sound))
    assert np.allclose(shown(file.path), np.arange(49) / 24, atol=0.0006)
    assert min(map(psnr, read_mp4(file.path), pictures)) >= 36
    begins, kept, back = heard(file.path)
    assert abs(begins) < 1 / kept
    assert kept == (48000 if suffix == ".webm" else rate)
    assert abs(len(back) * rate / kept - len(sound)) <= 1024 * rate / kept
    if kept == rate:
        assert lag(back, sound) == 0
    else:
        assert lag(back, chirp(2 * kept, kept)) == 0
    with av.open(file.path) as container:
        names = {
            stream.type: stream.codec_context.codec.canonical_name for stream in container.streams
        }
    assert names["audio"] == ("opus" if suffix == ".webm" else "aac")


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize(("frames", "seconds"), [(49, 0.5), (13, 2.0), (13, 0.0)])
async def test_either_ends_first(tmp_path: Path, suffix: str, frames: int, seconds: float) -> None:
    """The one that is longer is whole, and sound that has no sample is no track."""
    sound = chirp(round(48000 * seconds), 48000, 1)
    file = VideoFile(tmp_path / f"a{suffix}")
    await keep_both(file, smooth(frames, 64, 64), sound, 48000)
    assert len(shown(file.path)) == frames
    with av.open(file.path) as container:
        assert len(container.streams.audio) == (1 if seconds else 0)
    if seconds:
        _, _, back = heard(file.path)
        assert abs(len(back) - len(sound)) <= 1024
        assert back.shape[1] == 1


@pytest.mark.parametrize("suffix", CONTAINERS)
async def test_committed_is_what_a_kill_leaves(tmp_path: Path, suffix: str) -> None:
    """Cut off where the file ends, it has the frames and the sound that both call committed."""
    pictures, sound = smooth(96, 64, 64), chirp(4 * 48000, 48000)
    file = VideoFile(tmp_path / f"a{suffix}", gop=8)
    track = file.sound_track()
    await file.open(describe(pictures, fps=24.0))
    await track.open(describe(sound, "sound", sample_rate=48000))
    counts, killed = [(0, 0)], tmp_path / f"killed{suffix}"
    for one, other in zip(cut(pictures, sizes=(4,)), cut(sound, "sound", (8000,)), strict=True):
        await file.write(one)
        await track.write(other)
        if file.committed > counts[-1][0]:
            counts.append((file.committed, track.committed))
            killed.write_bytes(file.partial.read_bytes())
            _, _, back = heard(killed)
            assert len(shown(killed)) >= file.committed
            assert len(back) >= track.committed
            assert lag(back, sound) == 0
    assert len(counts) >= 5
    assert counts[-1][1] > 48000
    await track.abort()
    await file.abort()
    assert len(shown(file.partial)) == file.committed == 96
    assert abs(len(heard(file.partial)[2]) - len(sound)) <= 1024


@pytest.mark.parametrize("first", ["video", "sound"])
async def test_one_is_aborted_while_the_other_goes_on(tmp_path: Path, first: str) -> None:
    """What there is becomes whole when the second ends, however it does, and not before."""
    pictures, sound = smooth(24, 64, 64), chirp(48000, 48000)
    file = VideoFile(tmp_path / "a.mp4")
    track = file.sound_track()
    await file.open(describe(pictures, fps=24.0))
    await track.open(describe(sound, "sound", sample_rate=48000))
    for chunk in cut(pictures):
        await file.write(chunk)
    for chunk in cut(sound, "sound", (8000,)):
        await track.write(chunk)
    await (file if first == "video" else track).abort()
    assert file.committed < 24
    await (track if first == "video" else file).close()
    assert left_in(tmp_path) == {file.partial.name}
    assert len(shown(file.partial)) == file.committed == 24


async def test_sound_that_comes_too_late(tmp_path: Path) -> None:
    """Where the video was aborted before the sound was opened, the sound finds a closed file."""
    file = VideoFile(tmp_path / "a.mp4")
    track = file.sound_track()
    await file.open(describe(smooth(1, 64, 64)))
    await file.write(next(cut(smooth(9, 64, 64))))
    await file.abort()
    with pytest.raises(ClosedError, match="its other sink was aborted"):
        await track.open(describe(chirp(9, 48000), "sound", sample_rate=48000))
    assert len(shown(file.partial)) == 1


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"batch": 2}, "expected batch 1, got 2"),
        ({"sample_rate": None}, "needs a sample rate, got none"),
        ({"kind": "video"}, "keeps sound on the host, got video"),
        ({"output": "device"}, "keeps sound on the host, got sound, 'device'"),
    ],
)
async def test_stream_that_is_no_sound(
    tmp_path: Path, known: dict[str, object], words: str
) -> None:
    """What is no sound of one clip is refused before anything is decoded."""
    track = VideoFile(tmp_path / "a.mp4").sound_track()
    values = {"kind": "sound", "sample_rate": 48000} | known
    with pytest.raises(UsageError, match=words):
        await track.open(describe(chirp(9, 48000), **values))  # type: ignore[arg-type]
    assert left_in(tmp_path) == set()


async def test_channels(tmp_path: Path) -> None:
    """Mono and stereo only."""
    track = VideoFile(tmp_path / "a.mp4").sound_track()
    sound = np.zeros((9, 3), np.float32)
    await track.open(describe(sound, "sound", sample_rate=48000))
    with pytest.raises(UsageError, match="expected 1 or 2 channels, got 3"):
        await track.write(next(cut(sound, "sound")))
    await track.abort()
    assert left_in(tmp_path) == set()


async def test_another_rate_than_the_stream_s(tmp_path: Path) -> None:
    """Slowed down or sped up, pictures would not be in time with their sound: refused."""
    file = VideoFile(tmp_path / "a.mp4", fps=30)
    file.sound_track()
    with pytest.raises(UsageError, match=r"the stream's 16.0 frames a second, got fps=30.0"):
        await file.open(describe(smooth(1, 64, 64)))
    file = VideoFile(tmp_path / "a.mp4", fps=Fraction(30000, 1001))
    await keep_both(file, smooth(3, 64, 64), chirp(900, 48000), 48000, fps=29.97)


async def test_one_sound_track(tmp_path: Path) -> None:
    """A file has one, made before it is opened."""
    file = VideoFile(tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="bitrate above 0, got 0"):
        file.sound_track(bitrate=0)
    file.sound_track()
    with pytest.raises(UsageError, match="expected one sound track"):
        file.sound_track()
    other = VideoFile(tmp_path / "b.mp4")
    await other.open(describe(smooth(1, 64, 64)))
    with pytest.raises(UsageError, match="made before it is opened"):
        other.sound_track()
    await other.abort()


def both(
    sinks: object,
    *,
    makes_planes: bool = False,
    fail_at: int | None = None,
    resume: bool = False,
) -> AVStream:
    """Two seconds of both: 49 frames and 48000 samples."""
    return stream_decode_av(
        tagged_latents(7, size=8),
        silence(50),
        (TagCodec(8), Beeps(fail_at=fail_at)),
        fps=24.0,
        sinks=sinks,  # type: ignore[arg-type]
        backend=FakeBackend(makes_planes=makes_planes),
        resume=resume,
    )


@pytest.mark.parametrize("makes_planes", [False, True])
async def test_streamed_into_one_file(tmp_path: Path, makes_planes: bool) -> None:
    """stream_decode_av keeps both in every file it is given, by path or as a sink."""
    files = tmp_path / "a.mp4", tmp_path / "b.webm"
    stream = both([files[0], VideoFile(files[1], crf=30)], makes_planes=makes_planes)
    await stream.finish()
    assert stream.info.video.pixel_format == ("yuv420p" if makes_planes else None)
    for file in files:
        assert len(shown(file)) == 49
        _, kept, back = heard(file)
        assert abs(len(back) / kept - 2) <= 1024 / kept
    assert left_in(tmp_path) == {"a.mp4", "b.webm"}


async def test_an_error_keeps_what_there_is(tmp_path: Path) -> None:
    """Sound that cannot be decoded ends both, and the file has what came before it."""
    stream = both(tmp_path / "a.mkv", fail_at=30)
    with pytest.raises(ValueError, match="latent 30 was to fail"):
        await stream.finish()
    assert "a.mkv" not in left_in(tmp_path)
    assert len(shown(tmp_path / "a.mkv.partial")) > 1
    assert len(heard(tmp_path / "a.mkv.partial")[2]) >= 20 * 960


async def test_resumed(tmp_path: Path) -> None:
    """With resume=True a file that was broken off becomes whole, both of it."""
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match="latent 30 was to fail"):
        await both(path, fail_at=30).finish()
    await both(path, resume=True).finish()
    assert len(shown(path)) == 49
    _, kept, back = heard(path)
    assert abs(len(back) / kept - 2) <= 1024 / kept
    assert left_in(tmp_path) == {"a.mp4"}


def test_saved(tmp_path: Path) -> None:
    """save_av needs no loop, and a place to save to."""
    latents, source = (tagged_latents(3, size=8), silence(9)), (TagCodec(8), Beeps())
    stats = save_av(*latents, source, fps=24.0, sinks=tmp_path / "a.mov")
    assert stats.video.frames == len(shown(tmp_path / "a.mov")) == 17
    with pytest.raises(UsageError, match="at least one path or sink to save to, got none"):
        save_av(*latents, source, fps=24.0)


@pytest.mark.parametrize("sink", ["a.wav", "a.y4m", torch.nn.Identity()])
def test_what_holds_only_one(sink: object) -> None:
    """A file of sound or of pictures alone is refused, with where it goes instead."""
    with pytest.raises(UsageError, match="goes into video_sinks or audio_sinks"):
        both(sink)


async def test_side_by_side(tmp_path: Path) -> None:
    """Written from two threads at once, nothing is lost."""
    pictures, sound = smooth(48, 64, 64), chirp(2 * 48000, 48000)
    file = VideoFile(tmp_path / "a.mp4", gop=4)
    track = file.sound_track()
    await file.open(describe(pictures, fps=24.0))
    await track.open(describe(sound, "sound", sample_rate=48000))

    async def drive(sink: VideoFile | SoundTrack, chunks: object) -> None:
        for chunk in chunks:  # type: ignore[attr-defined]
            await sink.write(chunk)
        await sink.close()

    await asyncio.gather(drive(file, cut(pictures)), drive(track, cut(sound, "sound", (500,))))
    assert len(shown(file.path)) == 48
    assert lag(heard(file.path)[2], sound) == 0
