"""A full disk, and a kill: what was committed is there and readable."""

import asyncio
import contextlib
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from streamvae._errors import ClosedError
from streamvae.sinks import FileSink, NpyFile, RawFile, VideoFile, Y4MFile
from tests.sinks.streams import Rows, cut, describe, keep, left_in, psnr, read_mp4, read_raw, smooth

CHUNKS = 40

#: Writes to three files at once, says after each chunk how much is committed, never closes.
WRITER = """
import asyncio, json, pathlib, sys
import numpy as np
from streamvae.sinks import NpyFile, RawFile, VideoFile
from tests.sinks.streams import cut, describe

async def main(place):
    sinks = [RawFile(place / "a.raw"), NpyFile(place / "a.npy"), VideoFile(place / "a.mp4", gop=8)]
    for sink in sinks:
        await sink.open(describe(pictures))
    for chunk in cut(pictures):
        await asyncio.gather(*(sink.write(chunk) for sink in sinks))
        print(json.dumps([sink.committed for sink in sinks]), flush=True)
    await asyncio.Event().wait()

pictures = np.load(sys.argv[2])
asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Refuse every byte of a file behind ``size``, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read(path: Path) -> Rows:
    """Read what a sink left, by its suffix before ``.partial``."""
    if path.suffixes[0] == ".npy":
        rows: Rows = np.load(path)
        return rows
    return read_raw(path) if path.suffixes[0] == ".raw" else read_mp4(path)


@pytest.mark.parametrize(
    "sink",
    [
        pytest.param(lambda place: RawFile(place / "a.raw"), id="raw"),
        pytest.param(lambda place: NpyFile(place / "a.npy"), id="npy"),
        pytest.param(lambda place: VideoFile(place / "a.mp4", gop=4, crf=0), id="mp4"),
        pytest.param(lambda place: Y4MFile(place / "a.y4m", matrix="bt709"), id="y4m"),
    ],
)
async def test_disk_full(sink: object, tmp_path: Path) -> None:
    """The system's error comes out, names the sink; the committed frames are readable."""
    file: FileSink = sink(tmp_path)  # type: ignore[operator]
    pictures = smooth(200, 64, 64)
    with files_end_at(100_000):
        with pytest.raises(OSError, match="File too large") as caught:
            await keep(file, pictures)
        done = file.committed
        assert done > 0
        assert caught.value.__notes__ == [
            f"In sink {file.name}: {done} frames kept in {file.partial}."
        ]
        with pytest.raises(ClosedError, match="it is failed"):
            await file.close()
        await file.abort()
    assert file.committed == done
    assert not file.path.exists()
    left = read(file.partial)
    assert len(left) == done
    if file.path.suffix in {".mp4", ".y4m"}:
        assert psnr(left, pictures[:done]) >= 38
    else:
        np.testing.assert_array_equal(left, pictures[:done])


async def test_disk_full_at_the_end(tmp_path: Path) -> None:
    """A video whose index finds no room is not called complete; its whole fragments play."""
    pictures = smooth(60, 64, 64)
    await keep(VideoFile(tmp_path / "whole.mp4", gop=8), pictures)
    size = (tmp_path / "whole.mp4").stat().st_size
    sink = VideoFile(tmp_path / "a.mp4", gop=8)
    await sink.open(describe(pictures))
    for chunk in cut(pictures):
        await sink.write(chunk)
    with files_end_at(size - 200):
        with pytest.raises(OSError, match="File too large"):
            await sink.close()
        await sink.abort()
    assert not sink.path.exists()
    assert sink.committed >= 48
    assert len(read(sink.partial)) == sink.committed


@pytest.mark.parametrize("make", [RawFile, NpyFile, VideoFile])
async def test_disk_full_at_once(make: type[FileSink], tmp_path: Path) -> None:
    """No room for the first chunk: the error, and nothing left behind."""
    name = {RawFile: "a.raw", NpyFile: "a.npy", VideoFile: "a.mp4"}[make]
    sink = make(tmp_path / name)
    with files_end_at(20):
        with pytest.raises(OSError, match="File too large"):
            await keep(sink, smooth(30, 64, 64))
        await sink.abort()
    assert left_in(tmp_path) == set()


def test_kill(tmp_path: Path) -> None:
    """After SIGKILL midway every file holds, under .partial, the frames it called committed."""
    pictures = smooth(600, 48, 64)
    np.save(tmp_path / "pictures.npy", pictures)
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(tmp_path / "pictures.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        committed: list[int] = []
        for _ in range(CHUNKS):
            committed = json.loads(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            committed = json.loads(line)
    assert writer.returncode == -signal.SIGKILL
    about = json.loads((tmp_path / "a.raw.partial.json").read_text())
    raw = np.fromfile(tmp_path / "a.raw.partial", np.uint8)
    whole = len(raw) // pictures[0].size * pictures[0].size  # it may have died in a write
    raw = raw[:whole].reshape(about["shape"])
    npy, video = np.load(tmp_path / "a.npy.partial"), read(tmp_path / "a.mp4.partial")
    assert min(committed) > 100
    np.testing.assert_array_equal(raw[: committed[0]], pictures[: committed[0]])
    np.testing.assert_array_equal(npy[: committed[1]], pictures[: committed[1]])
    assert len(video) >= committed[2]
    assert psnr(video[: committed[2]], pictures[: committed[2]]) >= 38
    assert not any((tmp_path / f"a.{suffix}").exists() for suffix in ("raw", "npy", "mp4"))
    # The lock died with its holder.
    sink = NpyFile(tmp_path / "a.npy")
    asyncio.run(keep(sink, pictures[:5]))
    np.testing.assert_array_equal(np.load(sink.path), pictures[:5])


#: As `WRITER`, into other files.
OTHERS = """
import asyncio, json, pathlib, sys
import numpy as np
from streamvae.sinks import Stills, WavFile, Y4MFile
from tests.sinks.streams import cut, describe

async def main(place):
    video = [Y4MFile(place / "a.y4m", matrix="bt709"), Stills(place / "%d.png")]
    wav = WavFile(place / "a.wav")
    await wav.open(describe(sound, "sound", sample_rate=8000))
    for sink in video:
        await sink.open(describe(pictures))
    for chunk, heard in zip(cut(pictures), cut(sound, "sound", (100,))):
        await asyncio.gather(*(sink.write(chunk) for sink in video), wav.write(heard))
        print(json.dumps([sink.committed for sink in (*video, wav)]), flush=True)
    await asyncio.Event().wait()

pictures = np.load(sys.argv[2])
sound = np.arange(20000, dtype=np.float32)[:, None]
asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def test_kill_others(tmp_path: Path) -> None:
    """After SIGKILL y4m, sound and pictures are there as far as they were called committed."""
    pictures, stills = smooth(600, 48, 64), tmp_path / "kept"
    np.save(tmp_path / "pictures.npy", pictures)
    stills.mkdir()
    command = [sys.executable, "-c", OTHERS, str(stills), str(tmp_path / "pictures.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(CHUNKS):
            committed = json.loads(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            committed = json.loads(line)
    assert min(committed) > 100
    video = read_mp4(stills / "a.y4m.partial")
    assert psnr(video[: committed[0]], pictures[: committed[0]]) >= 38
    for index in range(committed[1]):
        with Image.open(stills / f"{index}.png") as still:
            np.testing.assert_array_equal(np.asarray(still), pictures[index])
    with av.open(stills / "a.wav.partial") as container:
        heard = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    assert np.concatenate(heard)[: committed[2]].tolist() == list(range(committed[2]))


async def test_disk_full_during_abort(tmp_path: Path) -> None:
    """An abort that finds no room for the rest raises nothing and keeps the whole fragments."""
    pictures = smooth(41, 64, 64)
    sink = VideoFile(tmp_path / "a.mp4", gop=8)
    await sink.open(describe(pictures))
    for chunk in cut(pictures):
        await sink.write(chunk)
    done = sink.committed
    assert done > 0
    with files_end_at(sink.partial.stat().st_size + 10):
        await sink.abort()
    assert sink.committed == done
    assert len(read(sink.partial)) == done
