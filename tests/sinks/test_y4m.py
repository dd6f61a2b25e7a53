"""What a .y4m holds, read back by FFmpeg (through PyAV): frames, rate, size, colours."""

import io
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np
import pytest

from streamvae._errors import UsageError
from streamvae.sinks import Y4MFile, Y4MPipe
from tests.sinks.streams import cut, describe, keep, left_in, psnr, smooth


def read(source: Path | IO[bytes]) -> tuple[np.ndarray, Fraction | None]:
    """All frames (T, H, W, 3) as a reader that was told nothing sees them, and their rate."""
    with av.open(source, format="yuv4mpegpipe") as container:
        (video,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        return np.stack(frames), video.average_rate


@pytest.mark.parametrize("chroma", ["420", "444"])
@pytest.mark.parametrize(("count", "size"), [(1, (64, 64)), (13, (255, 447)), (5, (64, 95))])
async def test_any_size(tmp_path: Path, chroma: str, count: int, size: tuple[int, int]) -> None:
    """Every frame is there, of its own size, also an odd one, in its colours."""
    pictures = smooth(count, *size)
    sink = Y4MFile(tmp_path / "a.y4m", 23.976, chroma=chroma)  # type: ignore[arg-type]
    await keep(sink, pictures)
    back, rate = read(sink.path)
    assert back.shape == pictures.shape
    assert rate == Fraction(24000, 1001)
    assert min(map(psnr, back, pictures)) >= 38
    assert sink.committed == count


async def test_colours(tmp_path: Path) -> None:
    """Flat patches come back within two levels."""
    patches = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [224, 172, 138], [128] * 3])
    chart = np.broadcast_to(patches.astype(np.uint8)[:, None, None], (5, 32, 32, 3)).copy()
    sink = Y4MFile(tmp_path / "a.y4m", chroma="444")
    await keep(sink, chart)
    assert np.abs(read(sink.path)[0].astype(int) - chart).max() <= 2


async def test_grey_and_images(tmp_path: Path) -> None:
    """Grey is shown as grey; images become consecutive frames."""
    grey = smooth(3, 32, 48)[..., :1].copy()
    sink = Y4MFile(tmp_path / "a.y4m", 4)
    await keep(sink, grey, "image", batch=None)
    assert psnr(read(sink.path)[0], np.repeat(grey, 3, -1)) >= 38


async def test_abort_leaves_whole_frames(tmp_path: Path) -> None:
    """Broken off, .partial holds every frame that was accepted and nothing else."""
    pictures = smooth(13, 33, 47)
    sink = Y4MFile(tmp_path / "a.y4m")
    await sink.open(describe(pictures))
    for chunk in list(cut(pictures))[:2]:
        await sink.write(chunk)
    await sink.abort()
    assert sink.committed == 5
    assert len(read(sink.partial)[0]) == 5


async def test_pipe(tmp_path: Path) -> None:
    """Into an open file go the same bytes, and it stays open."""
    pictures, into = smooth(9, 33, 47), io.BytesIO()
    await keep(Y4MPipe(into), pictures)
    await keep(Y4MFile(tmp_path / "a.y4m"), pictures)
    assert into.getvalue() == (tmp_path / "a.y4m").read_bytes()


async def test_pipe_refuses_a_batch_and_other_sizes(frames: np.ndarray) -> None:
    """One clip of one size goes through a pipe."""
    with pytest.raises(UsageError, match="expected batch 1, got 2"):
        await Y4MPipe(io.BytesIO()).open(describe(frames, batch=2))
    sink = Y4MPipe(io.BytesIO())
    await sink.open(describe(frames))
    await sink.write(next(cut(frames)))
    with pytest.raises(UsageError, match="expected more of"):
        await sink.write(list(cut(np.repeat(frames, 2, axis=1)))[1])
    await sink.abort()


async def test_what_is_refused(tmp_path: Path, frames: np.ndarray) -> None:
    """Sound, floats, RGBA, no rate, bad options and no frames: one clear error each."""
    path = tmp_path / "a.y4m"
    sound = np.zeros((5, 2), np.float32)
    for info, words in (
        (describe(sound, "sound"), "keeps pictures; got sound"),
        (describe(frames, output="float32"), "keeps 8 bits"),
        (describe(frames, fps=None), r"expected fps=\.\.\., got none"),
    ):
        with pytest.raises(UsageError, match=words):
            await Y4MFile(path).open(info)
    with pytest.raises(UsageError, match="chroma='420' or '444', got '422'"):
        Y4MFile(path, chroma="422")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="matrix='bt601' or 'bt709', got 'rgb'"):
        Y4MFile(path, matrix="rgb")  # type: ignore[arg-type]
    rgba = np.zeros((2, 8, 8, 4), np.uint8)
    for rows, words in ((rgba, "with 1 or 3 channels"), (frames[:0], "at least one frame")):
        sink = Y4MFile(path)
        with pytest.raises(UsageError, match=words):
            await keep(sink, rows)
        await sink.abort()
    assert left_in(tmp_path) == set()
