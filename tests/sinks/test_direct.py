"""Writing past the cache gives the same files, from any memory, at any place, or falls back."""

import io
import logging
import mmap
import resource
from pathlib import Path

import numpy as np
import pytest

from streamvae._chunks import HostChunk
from streamvae._identity import Identity
from streamvae.sinks import Continued, RawFile
from streamvae.sinks._direct import BETWEEN, BLOCK, DirectFile, direct
from tests.sinks.streams import cut, describe, keep, left_in, read_raw


def on_pages(rows: np.ndarray, behind: int) -> np.ndarray:
    """A copy that begins ``behind`` bytes after a page does."""
    memory = np.frombuffer(mmap.mmap(-1, rows.nbytes + BLOCK), np.uint8)
    copy = memory[behind : behind + rows.nbytes].view(rows.dtype).reshape(rows.shape)
    copy[...] = rows
    return copy


@pytest.mark.parametrize("behind", [0, 64])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((9, 64, 64, 3), id="whole blocks"),
        pytest.param((9, 61, 47, 3), id="odd"),
        pytest.param((9, 5, 7, 3), id="less than a block"),
        pytest.param((9, 1024, 768, 3), id="more than goes between"),
    ],
)
async def test_the_same_file(tmp_path: Path, shape: tuple[int, ...], behind: int) -> None:
    """Each frame is in the file when its write returns, and no byte more."""
    frames = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    sink = RawFile(tmp_path / "a.raw", direct=True)
    await sink.open(describe(frames))
    for index, (start, end) in enumerate([(0, 1), (1, 5), (5, 9)]):
        part = on_pages(frames[start:end], behind)
        await sink.write(HostChunk(index, start, "video", part[None]))
        assert np.array_equal(np.fromfile(sink.partial, np.uint8), frames[:end].reshape(-1))
    await sink.close()
    assert np.array_equal(read_raw(sink.path), frames)
    assert 4 * frames[0].nbytes > BETWEEN or shape[1] < 1024


async def test_sound(tmp_path: Path) -> None:
    """Blocks of sound, of any length, come back equal."""
    sound = np.random.default_rng(2).standard_normal((20_000, 2), dtype=np.float32)
    await keep(RawFile(tmp_path / "a.raw", direct=True), sound, "sound", sample_rate=8000)
    assert np.array_equal(read_raw(tmp_path / "a.raw"), sound)


async def test_abort_keeps_what_was_accepted(tmp_path: Path) -> None:
    """A stream that breaks off leaves its frames, and no open file."""
    frames = np.random.default_rng(3).integers(0, 256, (4, 61, 47, 3), dtype=np.uint8)
    sink = RawFile(tmp_path / "a.raw", direct=True)
    await sink.open(describe(frames))
    await sink.write(HostChunk(0, 0, "video", frames[None, :3]))
    await sink.abort()
    assert left_in(tmp_path) == {"a.raw.partial", "a.raw.partial.json"}
    assert np.array_equal(read_raw(sink.partial), frames[:3])


async def test_no_room(tmp_path: Path) -> None:
    """The system's error is that of a usual write, and the whole chunks before it are there."""
    frames = np.random.default_rng(4).integers(0, 256, (9, 61, 47, 3), dtype=np.uint8)
    sink = RawFile(tmp_path / "a.raw", direct=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_001, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            await keep(sink, frames)
        await sink.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sink.committed == 5
    assert np.array_equal(read_raw(sink.partial), frames[:5])


def test_a_file_system_that_cannot(caplog: pytest.LogCaptureFixture) -> None:
    """It is written to as usual, and the log says so."""
    name = Path("/proc/self/comm")
    with io.FileIO(name, "r+") as plain, caplog.at_level(logging.INFO, "streamvae"):
        assert direct(plain, name) is plain
    assert "no O_DIRECT" in caplog.text


def test_it_goes_on_where_the_file_stands(tmp_path: Path) -> None:
    """What stands before an odd place stays as it is, also what another wrote."""
    path = tmp_path / "a"
    data = np.random.default_rng(5).integers(0, 256, 30_000, dtype=np.uint8)
    path.write_bytes(data[:10_001].tobytes())
    with io.FileIO(path, "r+") as plain:
        plain.seek(10_001)
        file = direct(plain, path)
        if not isinstance(file, DirectFile):
            pytest.skip("this file system cannot")
        with file:
            assert file.write(data[10_001:].data) == 19_999
        assert plain.tell() == 30_000
    assert path.read_bytes() == data.tobytes()


async def test_it_is_resumed(tmp_path: Path) -> None:
    """What was begun past the cache goes on there, behind what was kept, at any place."""
    frames = np.random.default_rng(6).integers(0, 256, (13, 61, 47, 3), dtype=np.uint8)
    identity = Identity({"mode": "exact"}, {"weights": "w", "latents": "z"})
    first = RawFile(tmp_path / "a.raw", direct=True)
    await first.identify(identity)
    await first.open(describe(frames))
    for chunk in cut(frames[:7]):
        await first.write(chunk)
    await first.abort()
    second = Continued(RawFile(tmp_path / "a.raw", direct=True))
    await second.identify(identity)
    await second.open(describe(frames))
    assert second.committed == 7
    for chunk in cut(frames):
        await second.write(chunk)
    await second.close()
    assert left_in(tmp_path) == {"a.raw", "a.raw.json"}
    assert np.array_equal(read_raw(tmp_path / "a.raw"), frames)
