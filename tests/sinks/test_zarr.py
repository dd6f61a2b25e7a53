"""What a zarr array holds, read back with zarr-python; its place, its name and its end."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from streamvae._chunks import HostChunk
from streamvae._errors import ClosedError, UsageError
from streamvae.sinks import ZarrArray, sink_for
from tests.sinks.streams import Rows, cut, describe, keep, left_in


def read(path: Path) -> Rows:
    """The whole array, as another library reads it."""
    array = zarr.open_array(path, mode="r")
    rows: Rows = np.asarray(array[...])
    return rows


def about(path: Path) -> dict[str, object]:
    """What the array says of itself."""
    return dict(zarr.open_array(path, mode="r").attrs)


@pytest.mark.parametrize("zstd", [None, 1])
@pytest.mark.parametrize("length", [None, 1, 4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
async def test_frames_come_back_equal(
    tmp_path: Path, dtype: str, length: int | None, zstd: int | None
) -> None:
    """In pieces of any length, compressed or not, of odd size, whatever the stream's chunks are."""
    pictures = np.random.default_rng(3).integers(0, 256, (13, 25, 47, 3), dtype=np.uint8)
    rows = pictures if dtype == "uint8" else pictures.astype(np.float32) / 127.5 - 1
    sink = ZarrArray(tmp_path / "a.zarr", length=length, zstd=zstd)
    await keep(sink, rows)
    assert sink.committed == 13
    assert left_in(tmp_path) == {"a.zarr"}
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert array.chunks[0] == (length or 13 if length else 16)
    assert array.metadata.dimension_names == ("time", "height", "width", "channel")
    assert array.dtype == rows.dtype
    assert np.array_equal(array[...], rows)


async def test_attributes(tmp_path: Path, frames: np.ndarray) -> None:
    """They say what the numbers are, how fast they go, and that all of them are there."""
    await keep(ZarrArray(tmp_path / "a.zarr"), frames, exactness="equal")
    said = about(tmp_path / "a.zarr")
    assert said.pop("streamvae")
    assert said == {
        "kind": "video",
        "range": [0, 255],
        "fps": 16.0,
        "sample_rate": None,
        "family": "AutoencoderKLWan",
        "exactness": "equal",
        "complete": True,
    }


async def test_pieces_of_a_known_length_are_equally_full(
    tmp_path: Path, frames: np.ndarray
) -> None:
    """Where the number of frames is known, hardly any room is left in the last piece."""
    many = np.concatenate([frames, frames])[:21]
    await keep(ZarrArray(tmp_path / "a.zarr"), many, frames=21)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert array.chunks[0] == 11
    assert np.array_equal(array[...], many)


async def test_pictures_and_sound(tmp_path: Path) -> None:
    """Pictures are (N, H, W, C), sound is (S, C) in pieces of a second."""
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (5, 9, 7, 4), dtype=np.uint8)
    sound = rng.standard_normal((2500, 2), dtype=np.float32)
    await keep(ZarrArray(tmp_path / "p.zarr"), pictures, "image", batch=None)
    sink = ZarrArray(tmp_path / "s.zarr")
    await sink.open(describe(sound, "sound", sample_rate=1000))
    for chunk in cut(sound, "sound", sizes=(300, 700)):
        await sink.write(chunk)
        assert sink.committed == (chunk.start + len(chunk)) // 1000 * 1000
    await sink.close()
    assert np.array_equal(read(tmp_path / "p.zarr"), pictures)
    assert np.array_equal(read(tmp_path / "s.zarr"), sound)
    array = zarr.open_array(tmp_path / "s.zarr", mode="r")
    assert array.chunks == (1000, 2)
    assert array.metadata.dimension_names == ("time", "channel")
    assert about(tmp_path / "s.zarr")["sample_rate"] == 1000


async def test_several_clips(tmp_path: Path, frames: np.ndarray) -> None:
    """A batch has its axis in front, and each clip its own pieces."""
    both = np.stack([frames, frames[::-1]])
    sink = ZarrArray(tmp_path / "a.zarr", length=4)
    await sink.open(describe(frames, batch=2))
    for start in range(0, 13, 3):
        part = both[:, start : start + 3].copy()
        await sink.write(HostChunk(start // 3, start, "video", part))
    await sink.close()
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert array.chunks == (1, 4, 24, 32, 3)
    assert array.metadata.dimension_names == ("batch", "time", "height", "width", "channel")
    assert np.array_equal(array[...], both)
    assert sink.committed == 13


async def test_no_frames(tmp_path: Path, frames: np.ndarray) -> None:
    """A stream without frames gives an array of length 0."""
    await keep(ZarrArray(tmp_path / "a.zarr"), frames[:0])
    assert read(tmp_path / "a.zarr").shape == (0,)


async def test_the_partial_grows_by_pieces(tmp_path: Path, frames: np.ndarray) -> None:
    """At every moment it opens as an array of what is committed, and the name comes last."""
    sink = ZarrArray(tmp_path / "a.zarr", length=3)
    await sink.open(describe(frames, frames=13))
    for chunk in cut(frames):
        await sink.write(chunk)
        assert left_in(tmp_path) == {"a.zarr.partial"}
        assert sink.committed == (chunk.start + len(chunk)) // 3 * 3
        assert np.array_equal(read(sink.partial), frames[: sink.committed])
        assert about(sink.partial)["complete"] is False
    await sink.close()
    assert left_in(tmp_path) == {"a.zarr"}


async def test_abort_keeps_what_was_accepted(tmp_path: Path, frames: np.ndarray) -> None:
    """The frames of the piece that is not whole are stored too when a stream breaks off."""
    sink = ZarrArray(tmp_path / "a.zarr", length=4)
    await sink.open(describe(frames))
    for chunk in cut(frames[:10]):
        await sink.write(chunk)
    assert sink.committed == 8
    await sink.abort()
    assert sink.committed == 10
    assert left_in(tmp_path) == {"a.zarr.partial"}
    assert np.array_equal(read(sink.partial), frames[:10])
    await keep(ZarrArray(tmp_path / "a.zarr"), frames[:5])  # replaces what was left
    assert left_in(tmp_path) == {"a.zarr"}
    assert np.array_equal(read(tmp_path / "a.zarr"), frames[:5])


async def test_abort_without_frames_leaves_nothing(tmp_path: Path, frames: np.ndarray) -> None:
    """Aborted before the first chunk, in whatever state, it leaves nothing behind."""
    for opened in (False, True):
        sink = ZarrArray(tmp_path / "a.zarr")
        if opened:
            await sink.open(describe(frames))
        await sink.abort()
        assert left_in(tmp_path) == set()
        with pytest.raises(ClosedError, match="make a new one"):
            await sink.open(describe(frames))


async def test_nothing_is_overwritten_unasked(tmp_path: Path, frames: np.ndarray) -> None:
    """An array that is there is refused; told to, the sink replaces it once it is complete."""
    target = tmp_path / "a.zarr"
    await keep(ZarrArray(target), frames)
    with pytest.raises(UsageError, match="a.zarr exists already; pass overwrite=True"):
        await ZarrArray(target).open(describe(frames))
    sink = ZarrArray(target, overwrite=True)
    await sink.open(describe(frames))
    for chunk in cut(frames[:7]):
        await sink.write(chunk)
        assert len(read(target)) == 13
    await sink.close()
    assert left_in(tmp_path) == {"a.zarr"}
    assert np.array_equal(read(target), frames[:7])


@pytest.mark.parametrize("taken", ["file", "directory"])
async def test_what_is_no_array_is_never_replaced(
    tmp_path: Path, frames: np.ndarray, taken: str
) -> None:
    """Not even with overwrite=True: a directory of something else stays as it is."""
    target = tmp_path / "a.zarr"
    if taken == "file":
        target.write_text("mine")
    else:
        (target / "photos").mkdir(parents=True)
    sink = ZarrArray(target, overwrite=True)
    with pytest.raises(UsageError, match="is a file" if taken == "file" else "something else"):
        await sink.open(describe(frames))
    await sink.abort()
    assert left_in(tmp_path) == {"a.zarr"}
    assert taken == "file" or left_in(target) == {"photos"}


async def test_target_that_appears_meanwhile(tmp_path: Path, frames: np.ndarray) -> None:
    """A target somebody makes while we write is not replaced; the frames stay under .partial."""
    sink = ZarrArray(tmp_path / "a.zarr")
    await sink.open(describe(frames))
    for chunk in cut(frames):
        await sink.write(chunk)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(UsageError, match="exists already") as caught:
        await sink.close()
    assert "13 frames kept" in caught.value.__notes__[0]
    await sink.abort()
    assert left_in(tmp_path / "a.zarr") == set()
    assert np.array_equal(read(sink.partial), frames)


async def test_two_writers(tmp_path: Path, frames: np.ndarray) -> None:
    """A second sink on a target at work is refused, and the first is none the worse."""
    first = ZarrArray(tmp_path / "a.zarr")
    second = ZarrArray(tmp_path / "a.zarr", overwrite=True)
    await first.open(describe(frames))
    for chunk in cut(frames):
        await first.write(chunk)
        if chunk.index == 1:
            with pytest.raises(UsageError, match=r"another sink is writing to .*a\.zarr"):
                await second.open(describe(frames))
            await second.abort()
    await first.close()
    assert left_in(tmp_path) == {"a.zarr"}
    assert np.array_equal(read(tmp_path / "a.zarr"), frames)


@pytest.mark.parametrize(
    ("where", "complaint"),
    [("missing/a.zarr", "expected a writable directory .*missing"), ("file/a.zarr", "writable")],
)
async def test_bad_places(tmp_path: Path, frames: np.ndarray, where: str, complaint: str) -> None:
    """A directory that is not there, or is none, is named before anything is decoded."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=complaint):
        await ZarrArray(tmp_path / where).open(describe(frames))


async def test_disk_full(tmp_path: Path) -> None:
    """The system's error comes out, names the sink; the whole pieces are readable."""
    noise = np.random.default_rng(9).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    noise[:8] = 7  # compressed, these are small enough, and those after them are not
    sink = ZarrArray(tmp_path / "a.zarr", length=4, zstd=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            await keep(sink, noise)
        assert caught.value.__notes__ == [f"In sink {sink.name}: 8 frames kept in {sink.partial}."]
        with pytest.raises(ClosedError, match="it is failed"):
            await sink.close()
        await sink.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sink.committed == 8
    assert left_in(tmp_path) == {"a.zarr.partial"}
    assert np.array_equal(read(sink.partial), noise[:8])


#: Writes chunks of one frame for ever, and says after each how many are committed.
WRITER = """
import asyncio, sys
import numpy as np
from streamvae.sinks import ZarrArray
from tests.sinks.streams import cut, describe

async def main():
    sink = ZarrArray(sys.argv[1], length=3)
    await sink.open(describe(frames))
    for chunk in cut(frames, sizes=(1,)):
        await sink.write(chunk)
        print(sink.committed, flush=True)

frames = np.arange(4000, dtype=np.uint8)[:, None, None, None] + np.zeros((4, 4, 3), np.uint8)
asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 50, 333])
def test_a_kill(tmp_path: Path, after: int) -> None:
    """Killed at some moment, the partial holds every frame that was counted, and no other."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.zarr")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        counted = 0
        for _ in range(after):
            counted = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        counted = max([counted, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    left = read(tmp_path / "a.zarr.partial")
    assert len(left) >= counted
    assert np.array_equal(left[:, 0, 0, 0], np.arange(len(left), dtype=np.uint8))


@pytest.mark.parametrize("sync", ["close", "commit"])
async def test_synced(tmp_path: Path, frames: np.ndarray, sync: str) -> None:
    """A sink that syncs keeps the same array."""
    await keep(ZarrArray(tmp_path / "a.zarr", length=5, sync=sync), frames)
    assert np.array_equal(read(tmp_path / "a.zarr"), frames)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"length": 0}, "expected a length of one frame or more, got 0"),
        ({"zstd": 23}, r"expected zstd in -7\.\.22, got 23"),
        ({"sync": "often"}, "expected sync to be one of"),
    ],
)
def test_bad_options(options: dict[str, object], complaint: str) -> None:
    """Options out of range are named at once."""
    with pytest.raises(UsageError, match=complaint):
        ZarrArray("a.zarr", **options)


async def test_what_does_not_fit(tmp_path: Path, frames: np.ndarray) -> None:
    """Frames on the device, another shape and a gap are refused, and what came before is kept."""
    with pytest.raises(UsageError, match="needs frames on the host"):
        await ZarrArray(tmp_path / "d.zarr").open(describe(frames, output="device"))
    for wrong, complaint in (
        (HostChunk(1, 3, "video", frames[None, 3:6, :8]), "expected more of"),
        (HostChunk(1, 5, "video", frames[None, 5:6]), "expected the chunk at 3, got 5"),
    ):
        sink = ZarrArray(tmp_path / "a.zarr", length=4)
        await sink.open(describe(frames))
        await sink.write(HostChunk(0, 0, "video", frames[None, :3]))
        with pytest.raises(UsageError, match=complaint):
            await sink.write(wrong)
        await sink.abort()
        assert np.array_equal(read(sink.partial), frames[:3])


def test_the_suffix(tmp_path: Path) -> None:
    """A path that ends in .zarr, with or without a slash behind it, is a zarr array."""
    for name in ("a.zarr", "a.zarr/"):
        sink = sink_for(f"{tmp_path}/{name}")
        assert isinstance(sink, ZarrArray)
        assert sink.path == tmp_path / "a.zarr"
