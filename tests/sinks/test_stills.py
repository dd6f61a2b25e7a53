"""What numbered pictures hold, read back with Pillow; their names, their order, and their end."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvae._chunks import HostChunk
from streamvae._errors import UsageError
from streamvae.sinks import Stills
from tests.sinks.streams import cut, describe, keep, left_in, psnr, smooth


def read(path: Path) -> np.ndarray:
    """A picture (H, W, C)."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.mark.parametrize("count", [1, 13])
@pytest.mark.parametrize("kind", ["video", "image"])
async def test_png_is_lossless(tmp_path: Path, count: int, kind: str) -> None:
    """Pictures of odd size come back equal, numbered from 0; the directory is made."""
    pictures = np.random.default_rng(3).integers(0, 256, (count, 255, 47, 3), dtype=np.uint8)
    sink = Stills(tmp_path / "frames" / "%05d.png")
    await keep(sink, pictures, kind, batch=None if kind == "image" else 1)
    assert left_in(tmp_path / "frames") == {f"{index:05}.png" for index in range(count)}
    for index, picture in enumerate(pictures):
        assert np.array_equal(read(tmp_path / "frames" / f"{index:05}.png"), picture)
    assert sink.committed == count


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {}), ("webp", {}), ("JPEG", {})])
async def test_lossy(tmp_path: Path, suffix: str, options: dict[str, int]) -> None:
    """JPEG and WebP keep pictures of odd size well at their defaults."""
    pictures = smooth(5, 95, 127)
    await keep(Stills(tmp_path / f"%d.{suffix}", **options), pictures)
    for index, picture in enumerate(pictures):
        assert psnr(read(tmp_path / f"{index}.{suffix}"), picture) >= 38


async def test_channels(tmp_path: Path) -> None:
    """Grey and RGBA are kept as they are where the format has them; JPEG has no transparency."""
    rng = np.random.default_rng(5)
    grey, rgba = (rng.integers(0, 256, (3, 9, 7, n), dtype=np.uint8) for n in (1, 4))
    await keep(Stills(tmp_path / "g%d.png"), grey)
    await keep(Stills(tmp_path / "a%d.png"), rgba)
    await keep(Stills(tmp_path / "w%d.webp", lossless=True), rgba[..., :3].copy())
    for index in range(3):
        assert np.array_equal(read(tmp_path / f"g{index}.png"), grey[index])
        assert np.array_equal(read(tmp_path / f"a{index}.png"), rgba[index])
        assert np.array_equal(read(tmp_path / f"w{index}.webp"), rgba[index, ..., :3])
    sink = Stills(tmp_path / "%d.jpg")
    with pytest.raises(UsageError, match="with 1 or 3 channels, got uint8 with 4"):
        await keep(sink, rgba)
    await sink.abort()


async def test_several_clips(tmp_path: Path, frames: np.ndarray) -> None:
    """A template with two places keeps a batch, clip by clip; one with one place refuses it."""
    both = np.stack([frames, frames[::-1]])
    sink = Stills(tmp_path / "clip%d" / "%03d.png")
    await sink.open(describe(frames, batch=2))
    for start in range(0, 13, 4):
        part = both[:, start : start + 4].copy()
        await sink.write(HostChunk(start // 4, start, "video", part))
    await sink.close()
    assert sink.committed == 13
    for clip in (0, 1):
        assert np.array_equal(read(tmp_path / f"clip{clip}" / "012.png"), both[clip, 12])
    with pytest.raises(UsageError, match="expected two places, .*got a batch of 2"):
        await Stills(tmp_path / "%d.png").open(describe(frames, batch=2))
    with pytest.raises(UsageError, match=r"clip1.000.png exists already"):
        (tmp_path / "clip0").rename(tmp_path / "away")
        await Stills(tmp_path / "clip%d" / "%03d.png").open(describe(frames, batch=2))


async def test_one_picture_needs_no_number(tmp_path: Path, frames: np.ndarray) -> None:
    """One picture is kept under a plain name; more are refused, before decoding if known."""
    await keep(Stills(tmp_path / "a.png"), frames[:1])
    assert np.array_equal(read(tmp_path / "a.png"), frames[0])
    with pytest.raises(UsageError, match="for more than one picture; got 13"):
        await Stills(tmp_path / "b.png").open(describe(frames, frames=13))
    sink = Stills(tmp_path / "b.png")
    with pytest.raises(UsageError, match="for more than one picture"):
        await keep(sink, frames)
    await sink.abort()


async def test_nothing_is_overwritten(tmp_path: Path, frames: np.ndarray) -> None:
    """Any picture that the template names is refused before decoding, and replaced when told."""
    await keep(Stills(tmp_path / "%03d.png"), frames[:3])
    with pytest.raises(UsageError, match=r"000\.png exists already, as 3 of .*overwrite=True"):
        await Stills(tmp_path / "%03d.png").open(describe(frames))
    await keep(Stills(tmp_path / "%03d.png", overwrite=True), frames[::-1].copy())
    assert np.array_equal(read(tmp_path / "000.png"), frames[-1])
    await keep(Stills(tmp_path / "other%03d.png"), frames[:1])


async def test_those_there_are_the_first(tmp_path: Path, frames: np.ndarray) -> None:
    """A picture that cannot be written ends the stream; those before it stay, none after it."""
    sink = Stills(tmp_path / "%d.png", workers=3)
    await sink.open(describe(frames))
    (tmp_path / "6.png").write_text("theirs")
    with pytest.raises(UsageError, match="exists already") as caught:
        for chunk in cut(frames):
            await sink.write(chunk)
        await sink.close()
    assert "6 committed before" in caught.value.__notes__[0]
    await sink.abort()
    assert sink.committed == 6
    assert left_in(tmp_path) == {f"{index}.png" for index in range(7)}
    assert (tmp_path / "6.png").read_text() == "theirs"


async def test_abort_keeps_what_was_accepted(
    tmp_path: Path, frames: np.ndarray, thread_ended: Callable[[str], bool]
) -> None:
    """Broken off, all accepted pictures are there, whole; no thread stays; no file without any."""
    sink = Stills(tmp_path / "%d.png", workers=1)
    await sink.open(describe(frames))
    for chunk in list(cut(frames))[:3]:
        await sink.write(chunk)
    await sink.abort()
    assert sink.committed == 9
    assert left_in(tmp_path) == {f"{index}.png" for index in range(9)}
    assert thread_ended(sink.name)
    empty = Stills(tmp_path / "new" / "%d.png")
    await empty.open(describe(frames))
    await empty.abort()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stills("%d.gif"), r"ending in \.png"),
        (lambda: Stills("%d/%d/%d.png"), "one number's place"),
        (lambda: Stills("%s.png"), "one number's place"),
        (lambda: Stills("%d.jpg", quality=101), r"0\.\.100, got 101"),
        (lambda: Stills("%d.png", level=10), r"0\.\.9, got 10"),
        (lambda: Stills("%d.png", workers=0), "one worker or more, got 0"),
    ],
)
def test_bad_options(make: Callable[[], Stills], words: str) -> None:
    """A bad template or option is refused at once."""
    with pytest.raises(UsageError, match=words):
        make()


async def test_what_is_no_picture(tmp_path: Path, frames: np.ndarray) -> None:
    """Sound, float pixels, a gap and a place that cannot be written are refused."""
    sound = np.zeros((5, 2), np.float32)
    for info, words in (
        (describe(sound, "sound"), "keeps pictures; got sound"),
        (describe(frames, output="float32"), "keeps 8 bits"),
    ):
        with pytest.raises(UsageError, match=words):
            await Stills(tmp_path / "%d.png").open(info)
    with pytest.raises(UsageError, match="expected a writable directory"):
        await Stills(tmp_path / "no" / "where" / "%d.png").open(describe(frames))
    sink = Stills(tmp_path / "%d.png")
    await sink.open(describe(frames))
    with pytest.raises(UsageError, match="expected the chunk at 0, got 5"):
        await sink.write(list(cut(frames))[2])
    await sink.abort()
    assert left_in(tmp_path) == set()
