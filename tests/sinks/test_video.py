"""What the MP4 holds, read back with PyAV: frames, rate, size, tags, colours."""

import logging
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from streamvae._errors import MissingDependencyError, UsageError
from streamvae.sinks import VideoFile
from streamvae.sinks._rates import rate_of
from tests.sinks.streams import cut, describe, keep, left_in, psnr, read_mp4, smooth

#: White, black, grey, the primaries, a skin tone and a sky: colours that show a wrong matrix.
CHART = np.array(
    [
        [255, 255, 255],
        [0, 0, 0],
        [128, 128, 128],
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [224, 172, 138],
        [90, 150, 220],
    ],
    np.uint8,
)


async def test_frames_rate_size_and_tags(tmp_path: Path) -> None:
    """The file has every frame in order, the stream's rate and size, all four BT.709 tags."""
    pictures = smooth(41, 96, 128)
    sink = VideoFile(tmp_path / "a.mp4")
    await keep(sink, pictures)
    with av.open(sink.path) as container:
        (video,) = container.streams
        context = video.codec_context
        assert video.frames == 41
        assert video.average_rate == 16
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (128, 96)
        tags = (context.colorspace, context.color_primaries, context.color_trc)
        assert tags == (1, 1, 1)
        assert context.color_range == ColorRange.MPEG
    back = read_mp4(sink.path)
    assert back.shape == pictures.shape
    assert min(map(psnr, back, pictures)) >= 38
    assert sink.committed == 41


async def test_ordinary_mp4_once_closed(tmp_path: Path) -> None:
    """A closed file has one index and no fragments, so that every player can seek in it."""
    sink = VideoFile(tmp_path / "a.mp4", gop=4)
    await keep(sink, smooth(20, 64, 64))
    boxes, data = [], sink.path.read_bytes()
    while data:
        size = int.from_bytes(data[:4], "big")
        size = int.from_bytes(data[8:16], "big") if size == 1 else size
        boxes.append(data[4:8])
        data = data[size:]
    assert boxes.count(b"moov") == 1
    assert b"moof" not in boxes


@pytest.mark.parametrize("size", [(480, 832), (720, 1280)])
async def test_colours(tmp_path: Path, size: tuple[int, int]) -> None:
    """Eight patches come back within two levels, at sizes where readers guess differently."""
    height, width = size
    chart = np.repeat(np.repeat(CHART.reshape(1, 2, 4, 3), height // 2, 1), width // 4, 2)
    sink = VideoFile(tmp_path / "a.mp4")
    await keep(sink, np.repeat(chart, 2, 0))
    back = read_mp4(sink.path)
    for picture in back:
        for patch in range(8):
            row, column = divmod(patch, 4)
            y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // 8
            seen = picture[y - 20 : y + 20, x - 20 : x + 20].reshape(-1, 3).astype(int)
            assert np.abs(seen - CHART[patch]).max() <= 2, (patch, seen[0])


async def test_grey_and_images(tmp_path: Path) -> None:
    """Grey pictures are shown as grey, and images become consecutive frames."""
    grey = smooth(9, 64, 64)[..., :1].copy()
    sink = VideoFile(tmp_path / "grey.mp4")
    await keep(sink, grey)
    assert psnr(read_mp4(sink.path), np.repeat(grey, 3, -1)) >= 38
    sink = VideoFile(tmp_path / "images.mp4", fps=4)
    await keep(sink, smooth(9, 64, 64), "image", batch=None)
    assert psnr(read_mp4(sink.path), smooth(9, 64, 64)) >= 38


async def test_odd_size_is_padded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An odd size gets its last row and column once more, never stretched, and the log says so."""
    pictures = smooth(9, 63, 95)
    sink = VideoFile(tmp_path / "a.mp4")
    with caplog.at_level(logging.INFO, "streamvae"):
        await keep(sink, pictures)
    assert "95x63 padded to 96x64" in caplog.text
    assert (
        psnr(read_mp4(sink.path), np.pad(pictures, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge")) >= 38
    )


async def test_odd_size_is_refused_by_choice(tmp_path: Path, frames: np.ndarray) -> None:
    """odd='refuse' raises before decoding where the size is known, else at the first chunk."""
    sink = VideoFile(tmp_path / "a.mp4", odd="refuse")
    with pytest.raises(UsageError, match="even size, got 95x64"):
        await sink.open(describe(frames, height=64, width=95))
    sink = VideoFile(tmp_path / "a.mp4", odd="refuse")
    with pytest.raises(UsageError, match="even size, got 31x24"):
        await keep(sink, frames[:, :, :31].copy())
    await sink.abort()
    assert left_in(tmp_path) == set()


async def test_abort_leaves_a_whole_video(tmp_path: Path) -> None:
    """Aborted midway, .partial plays and has every frame that was accepted."""
    pictures = smooth(30, 64, 64)
    sink = VideoFile(tmp_path / "a.mp4", gop=8)
    await sink.open(describe(pictures))
    for chunk in list(cut(pictures))[:6]:
        await sink.write(chunk)
    await sink.abort()
    assert sink.committed == 21
    assert psnr(read_mp4(sink.partial), pictures[:21]) >= 38


async def test_committed_is_what_is_in_the_file(tmp_path: Path) -> None:
    """While it grows, the file plays and has at least the frames that are called committed."""
    pictures = smooth(60, 64, 64)
    sink = VideoFile(tmp_path / "a.mp4", gop=4)
    await sink.open(describe(pictures))
    counts: list[int] = []
    for chunk in cut(pictures):
        await sink.write(chunk)
        if sink.committed > max(counts, default=0):
            assert len(read_mp4(sink.partial)) >= sink.committed
            counts.append(sink.committed)
    assert len(counts) >= 5
    assert psnr(read_mp4(sink.partial)[: counts[-1]], pictures[: counts[-1]]) >= 38
    await sink.close()


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"fps": None}, "needs frames a second; expected fps=..., got none"),
        ({"fps": 0.0}, "expected fps above 0, got 0"),
        ({"output": "float32"}, "expected output='uint8', got 'float32'"),
        ({"kind": "sound"}, "keeps pictures; got sound"),
    ],
)
async def test_stream_that_is_no_video(
    tmp_path: Path, frames: np.ndarray, known: dict[str, object], words: str
) -> None:
    """Sound, float pixels and a missing rate are refused before anything is decoded."""
    with pytest.raises(UsageError, match=words):
        await VideoFile(tmp_path / "a.mp4").open(describe(frames, **known))  # type: ignore[arg-type]
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("channels", [2, 4])
async def test_channels_that_h264_has_not(tmp_path: Path, channels: int) -> None:
    """Transparency and other channels are refused, in words."""
    pictures = np.zeros((3, 32, 32, channels), np.uint8)
    sink = VideoFile(tmp_path / "a.mp4")
    words = "keep transparency" if channels == 4 else "with 1 or 3 channels, got uint8 with 2"
    with pytest.raises(UsageError, match=words):
        await keep(sink, pictures)
    await sink.abort()
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crf": 60}, r"crf in 0..51 for h264, got 60"),
        ({"crf": "18"}, r"crf in 0..51 for h264, got '18'"),
        ({"preset": "warp"}, r"or placebo for h264, got preset='warp'"),
        ({"codec": "ffv1"}, r"for .mp4, got 'ffv1' \(ffv1 goes into .mkv\)"),
        ({"codec": "mpeg2"}, r"'av1', 'vp9' for .mp4, got 'mpeg2'$"),
        ({"odd": "stretch"}, "odd='pad' or 'refuse', got 'stretch'"),
        ({"gop": 0}, "gop of one frame or more, got 0"),
        ({"fps": -1}, "fps above 0, got -1"),
        ({"fps": float("nan")}, "fps above 0, got nan"),
        ({"fps": "24"}, "fps as a number, got '24'"),
        ({"fps": True}, "fps as a number, got True"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    """Options out of range are refused when the sink is made."""
    with pytest.raises(UsageError, match=words):
        VideoFile("a.mp4", **options)  # type: ignore[arg-type]


async def test_stream_without_frames(tmp_path: Path, frames: np.ndarray) -> None:
    """There is no video without a frame: an error, and no file."""
    sink = VideoFile(tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="at least one frame"):
        await keep(sink, frames[:0])
    await sink.abort()
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (24, (24, 1)),
        (16.0, (16, 1)),
        (12.5, (25, 2)),
        (23.976, (24000, 1001)),
        (23.98, (24000, 1001)),
        (29.97, (30000, 1001)),
        (59.94, (60000, 1001)),
        (Fraction(30000, 1001), (30000, 1001)),
        (0.5, (1, 2)),
    ],
)
def test_rates(given: float | Fraction, meant: Sequence[int]) -> None:
    """A rate is the fraction that is meant, also when it was rounded in writing."""
    assert rate_of(given) == Fraction(*meant)


async def test_ntsc_rate_reaches_the_file(tmp_path: Path, frames: np.ndarray) -> None:
    """The sink's own rate goes before the stream's, and is exact in the file."""
    sink = VideoFile(tmp_path / "a.mp4", fps=23.976)
    await keep(sink, frames, fps=16.0)
    with av.open(sink.path) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyAV the sink cannot be made, and the error has the install line."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'streamvae\[video\]'"):
        VideoFile("a.mp4")
