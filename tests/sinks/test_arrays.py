"""What the raw and npy files hold, read back with numpy, also while they grow."""

import json
from pathlib import Path

import numpy as np
import pytest

from streamvae._pixels import Kind
from streamvae.sinks import NpyFile, RawFile
from tests.sinks.streams import Rows, cut, describe, keep, left_in, read_raw

STREAMS = ["uint8", "float32", "images", "grey", "sound"]


@pytest.fixture(params=STREAMS)
def stream(request: pytest.FixtureRequest, frames: np.ndarray) -> tuple[Rows, Kind]:
    """A stream of each sort: its rows and its kind."""
    if request.param == "sound":
        rng = np.random.default_rng(5)
        return rng.standard_normal((1000, 2), dtype=np.float32), "sound"
    if request.param == "float32":
        return (frames / 127.5 - 1).astype(np.float32), "video"
    if request.param == "grey":
        return frames[..., :1].copy(), "video"
    return frames, "image" if request.param == "images" else "video"


async def test_npy_is_right_after_every_write(stream: tuple[Rows, Kind], tmp_path: Path) -> None:
    """After each write numpy reads the frames committed so far, mapped or not; then all."""
    rows, kind = stream
    sink = NpyFile(tmp_path / "a.npy")
    await sink.open(describe(rows, kind))
    for chunk in cut(rows, kind):
        await sink.write(chunk)
        done = chunk.start + len(chunk)
        assert sink.committed == done
        np.testing.assert_array_equal(np.load(sink.partial), rows[:done])
        np.testing.assert_array_equal(np.load(sink.partial, mmap_mode="r"), rows[:done])
    await sink.close()
    result = np.load(sink.path)
    np.testing.assert_array_equal(result, rows)
    assert result.dtype == rows.dtype


async def test_raw_and_its_sidecar(stream: tuple[Rows, Kind], tmp_path: Path) -> None:
    """The sidecar reads the file at every moment; the end says what the stream was."""
    rows, kind = stream
    sink = RawFile(tmp_path / "a.raw")
    await sink.open(describe(rows, kind, sample_rate=44100 if kind == "sound" else None))
    for chunk in cut(rows, kind):
        await sink.write(chunk)
        assert sink.committed == chunk.start + len(chunk)
        np.testing.assert_array_equal(read_raw(sink.partial), rows[: sink.committed])
    await sink.close()
    np.testing.assert_array_equal(read_raw(sink.path), rows)
    about = json.loads(sink.sidecar.read_text())
    assert about["shape"] == list(rows.shape)
    assert about["dtype"] == str(rows.dtype)
    assert about["layout"] == ("NC" if kind == "sound" else "NHWC")
    assert about["fps"] == (16.0 if kind == "video" else None)
    assert about["sample_rate"] == (44100 if kind == "sound" else None)
    assert about["family"] == "AutoencoderKLWan"
    assert about["complete"] is True
    assert left_in(tmp_path) == {"a.raw", "a.raw.json"}


async def test_abort_keeps_what_was_accepted(stream: tuple[Rows, Kind], tmp_path: Path) -> None:
    """Aborted midway, both files hold exactly the accepted rows, readable under .partial."""
    rows, kind = stream
    for sink in (NpyFile(tmp_path / "a.npy"), RawFile(tmp_path / "a.raw")):
        await sink.open(describe(rows, kind))
        for chunk in list(cut(rows, kind))[:3]:
            await sink.write(chunk)
        await sink.abort()
        read = np.load(sink.partial) if isinstance(sink, NpyFile) else read_raw(sink.partial)
        assert sink.committed == 9
        np.testing.assert_array_equal(read, rows[:9])
    about = json.loads((tmp_path / "a.raw.partial.json").read_text())
    assert about["shape"][0] == 9
    assert about["complete"] is False


@pytest.mark.parametrize("make", [NpyFile, RawFile])
async def test_stream_without_frames(
    make: type[NpyFile | RawFile], tmp_path: Path, frames: np.ndarray
) -> None:
    """A stream that ends before its first chunk leaves a readable file of length 0."""
    sink = make(tmp_path / "a")
    await keep(sink, frames[:0])
    read = np.load(sink.path) if isinstance(sink, NpyFile) else read_raw(sink.path)
    assert len(read) == 0


async def test_sidecar_is_not_overwritten(tmp_path: Path, frames: np.ndarray) -> None:
    """Somebody else's JSON file of the sidecar's name is refused at opening, and meanwhile."""
    theirs = tmp_path / "a.raw.json"
    theirs.write_text("{}")
    with pytest.raises(ValueError, match=r"a\.raw\.json exists already"):
        await RawFile(tmp_path / "a.raw").open(describe(frames))
    theirs.unlink()
    sink = RawFile(tmp_path / "a.raw")
    await sink.open(describe(frames))
    await sink.write(next(cut(frames)))
    theirs.write_text("{}")
    with pytest.raises(ValueError, match=r"a\.raw\.json exists already"):
        await sink.close()
    await sink.abort()
    assert theirs.read_text() == "{}"
    np.testing.assert_array_equal(read_raw(sink.partial), frames[:1])


async def test_sidecar_goes_back_when_the_file_cannot_move(
    tmp_path: Path, frames: np.ndarray
) -> None:
    """A close that fails at the file leaves both under their temporary names."""
    sink = RawFile(tmp_path / "a.raw")
    await sink.open(describe(frames))
    await sink.write(next(cut(frames)))
    sink.path.touch()
    with pytest.raises(ValueError, match=r"a\.raw exists already"):
        await sink.close()
    await sink.abort()
    np.testing.assert_array_equal(read_raw(sink.partial), frames[:1])
    assert not sink.sidecar.exists()
