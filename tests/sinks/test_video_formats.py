"""Every container and codec, read back by another reader: frames, rate, size, tags, colours."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from streamvae import collect
from streamvae._errors import UsageError
from streamvae.models import demo_latents
from streamvae.sinks import VideoFile
from streamvae.sinks._codecs import CODECS, CONTAINERS, CodecName, expect_encoder
from tests.sinks.streams import Pictures, cut, describe, keep, left_in, psnr, smooth
from tests.sinks.test_video import CHART

#: Every pair there is.
PAIRS = [(suffix, codec) for suffix, one in CONTAINERS.items() for codec in one.codecs]
#: What FFmpeg calls what is in the file.
DECODED: dict[CodecName, str] = {
    "h264": "h264",
    "hevc": "hevc",
    "vp9": "vp9",
    "av1": "av1",
    "ffv1": "ffv1",
}


def read(path: Path) -> Pictures:
    """All frames (T, H, W, 3), converted as the tags of each say."""
    matrices = {1: Colorspace.ITU709}
    pictures = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            if frame.format.is_rgb:
                pictures.append(frame.to_ndarray(format="rgb24"))
                continue
            pictures.append(
                frame.to_ndarray(
                    format="rgb24",
                    src_colorspace=matrices[int(frame.colorspace)],
                    src_color_range=ColorRange(int(frame.color_range)),
                    dst_color_range=ColorRange.JPEG,
                )
            )
    return np.stack(pictures)


@pytest.mark.parametrize(("suffix", "codec"), PAIRS)
async def test_frames_rate_size_and_tags(tmp_path: Path, suffix: str, codec: CodecName) -> None:
    """Every frame once and in order, the exact rate, the size, the tags, and the pictures."""
    pictures = smooth(30, 96, 128)
    sink = VideoFile(tmp_path / f"a{suffix}", 23.976, codec=codec)
    await keep(sink, pictures)
    assert sink.committed == 30
    assert left_in(tmp_path) == {sink.path.name}
    with av.open(sink.path) as container:
        (video,) = container.streams
        context = video.codec_context
        assert video.average_rate == Fraction(24000, 1001)
        assert context.codec.canonical_name == DECODED[codec]
        assert (context.width, context.height) == (128, 96)
        if not CODECS[codec].exact:
            tags = (context.colorspace, context.color_primaries, context.color_trc)
            assert tags == (1, 1, 1)
            assert (context.pix_fmt, context.color_range) == ("yuv420p", ColorRange.MPEG)
        times = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(times, np.arange(30) * 1001 / 24000, atol=0.0006)  # Matroska has whole ms
    back = read(sink.path)
    assert back.shape == pictures.shape
    if CODECS[codec].exact:
        assert np.array_equal(back, pictures)
    else:
        assert min(map(psnr, back, pictures)) >= 38


@pytest.mark.parametrize(("suffix", "codec"), PAIRS)
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_odd_size(tmp_path: Path, suffix: str, codec: CodecName, count: int) -> None:
    """255x447 is padded where it has to be, also when it is one frame only."""
    pictures = smooth(count, 255, 447)
    sink = VideoFile(tmp_path / f"a{suffix}", codec=codec)
    await keep(sink, pictures)
    back = read(sink.path)
    if CODECS[codec].exact:
        assert np.array_equal(back, pictures)
    else:
        padded: Pictures = np.pad(pictures, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge")
        assert back.shape == padded.shape
        assert psnr(back, padded) >= 38


@pytest.mark.parametrize("size", [(480, 832), (720, 1280)])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "h264"), (".webm", "vp9"), (".mkv", "h264"), (".mkv", "av1")]
)
async def test_colours(
    tmp_path: Path, suffix: str, codec: CodecName, size: tuple[int, int]
) -> None:
    """Eight patches come back within two levels, at sizes where readers guess differently."""
    height, width = size
    chart = np.repeat(np.repeat(CHART.reshape(1, 2, 4, 3), height // 2, 1), width // 4, 2)
    sink = VideoFile(tmp_path / f"a{suffix}", codec=codec)
    await keep(sink, np.repeat(chart, 2, 0))
    for picture in read(sink.path):
        for patch in range(8):
            row, column = divmod(patch, 4)
            y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // 8
            seen = picture[y - 20 : y + 20, x - 20 : x + 20].reshape(-1, 3).astype(int)
            assert np.abs(seen - CHART[patch]).max() <= 2, (patch, seen[0])


@pytest.mark.parametrize("channels", [1, 3, 4])
async def test_lossless(tmp_path: Path, channels: int) -> None:
    """FFV1 gives back every byte of noise, of RGB, of RGBA with its transparency, and of grey."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 33, 47, channels), np.uint8)
    sink = VideoFile(tmp_path / "a.mkv", codec="ffv1")
    await keep(sink, noise)
    with av.open(sink.path) as container:
        frames = list(container.decode(video=0))
        form = "rgba" if channels == 4 else "rgb24"
        back = np.stack([frame.to_ndarray(format=form) for frame in frames])
        assert container.streams.video[0].codec_context.colorspace != 1  # an RGB has no matrix
    assert np.array_equal(back, np.repeat(noise, 3, -1) if channels == 1 else noise)


@pytest.mark.parametrize(("suffix", "codec"), PAIRS)
async def test_committed_is_what_a_kill_leaves(
    tmp_path: Path, suffix: str, codec: CodecName
) -> None:
    """Cut off where the file ends whenever more is committed, a reader finds that much."""
    pictures = smooth(60, 64, 64)
    sink = VideoFile(tmp_path / f"a{suffix}", codec=codec, gop=4, preset=FAST.get(codec))
    await sink.open(describe(pictures))
    counts, killed = [0], tmp_path / "killed"
    for chunk in cut(pictures):
        await sink.write(chunk)
        if sink.committed > counts[-1]:
            counts.append(sink.committed)
            killed.write_bytes(sink.partial.read_bytes())
            assert len(read(killed)) >= sink.committed
    assert len(counts) >= 3
    assert min(map(psnr_or_equal, read(killed), pictures)) >= 36
    await sink.abort()
    assert sink.committed == len(read(sink.partial)) == 60


#: HEVC and AV1 look far ahead otherwise: more than this clip is long.
FAST: dict[CodecName, str | int] = {"hevc": "ultrafast"}


def psnr_or_equal(left: Pictures, right: Pictures) -> float:
    """In decibels, 99 for equal pictures."""
    return 99.0 if np.array_equal(left, right) else psnr(left, right)


@pytest.mark.parametrize(("suffix", "codec"), PAIRS)
async def test_batch_is_refused(tmp_path: Path, suffix: str, codec: CodecName) -> None:
    """One file keeps one clip, which is said before anything is decoded."""
    sink = VideoFile(tmp_path / f"a{suffix}", codec=codec)
    with pytest.raises(UsageError, match="expected batch 1, got 2"):
        await sink.open(describe(smooth(1, 8, 8), batch=2))
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.webm", {"codec": "h264"}, r"'vp9', 'av1' for .webm, got 'h264' \(h264 goes into .mp4"),
        ("a.webm", {"crf": 64}, r"crf in 0..63 for vp9, got 64"),
        ("a.webm", {"preset": "fast"}, r"whole number in 0..9 .* for vp9, got preset='fast'"),
        ("a.webm", {"preset": 10}, r"whole number in 0..9 .* for vp9, got preset=10"),
        ("a.mkv", {"preset": 3}, r"placebo for h264, got preset=3"),
        ("a.mkv", {"preset": True, "codec": "av1"}, r"0..13 .* for av1, got preset=True"),
        ("a.mkv", {"crf": 0, "codec": "ffv1"}, r"no crf for ffv1, which is lossless, got 0"),
        ("a.mkv", {"preset": "fast", "codec": "ffv1"}, r"preset=None for ffv1, got preset='fast'"),
        ("a.avi", {}, r"ending in .mp4, .mkv, .mov, .webm, got '.avi'"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], words: str) -> None:
    """What a codec or a container cannot do is refused when the sink is made."""
    with pytest.raises(UsageError, match=words):
        VideoFile(name, **options)  # type: ignore[arg-type]


async def test_size_that_the_encoder_refuses(tmp_path: Path) -> None:
    """What only the encoder knows of comes out as an error that says what it was given."""
    sink = VideoFile(tmp_path / "a.mp4", codec="hevc")
    with pytest.raises(UsageError, match="what libx265 takes, got 8x8 pixels and .*: Invalid arg"):
        await keep(sink, smooth(1, 8, 8))
    await sink.abort()
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("available", "words"),
    [
        ({"libx264"}, r"built with libx265, got PyAV 18 without it; .*, or use codec='h264'$"),
        ((), r"pip install --force-reinstall --only-binary av av\)$"),
    ],
)
def test_codec_that_pyav_lacks(available: Collection[str], words: str) -> None:
    """An encoder that this PyAV was built without is named, with what can be done about it."""
    with pytest.raises(UsageError, match=words):
        expect_encoder("libx265", available, "18")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
@pytest.mark.parametrize(("suffix", "codec"), PAIRS)
def test_ffprobe(tmp_path: Path, suffix: str, codec: CodecName) -> None:
    """The system's ffprobe counts the same frames, of the same rate, size and colours."""
    sink = VideoFile(tmp_path / f"a{suffix}", 29.97, codec=codec)
    asyncio.run(keep(sink, smooth(10, 64, 96)))
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json"]
    told = subprocess.run([*command, sink.path], check=True, capture_output=True).stdout
    (stream,) = json.loads(told)["streams"]
    assert stream["codec_name"] == DECODED[codec]
    assert (stream["width"], stream["height"]) == (96, 64)
    assert (stream["nb_read_frames"], stream["avg_frame_rate"]) == ("10", "30000/1001")
    if not CODECS[codec].exact:
        assert (stream["color_space"], stream["color_range"]) == ("bt709", "tv")


@pytest.fixture(scope="module")
def demo() -> Pictures:
    """The demo's clip (65, 256, 448, 3), as the embedded VAE decodes it."""
    latents, _ = demo_latents()
    (pictures,) = collect(latents)
    return pictures  # type: ignore[return-value]  # uint8 unless asked otherwise


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", "h264"), (".mkv", "h264"), (".webm", "vp9"), (".mp4", "hevc"), (".webm", "av1")],
)
async def test_default_quality_on_the_demo(
    tmp_path: Path, demo: Pictures, suffix: str, codec: CodecName
) -> None:
    """At the default quality the demo's clip keeps 38 dB and more."""
    sink = VideoFile(tmp_path / f"a{suffix}", codec=codec)
    await keep(sink, demo, fps=25.0)
    assert psnr(read(sink.path), demo) >= 38
