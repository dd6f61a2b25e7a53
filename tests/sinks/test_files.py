"""What every file sink promises about its place, its name and its end."""

import asyncio
import fcntl
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamvae._errors import ClosedError, UsageError
from streamvae.sinks import FileSink, NpyFile, RawFile, VideoFile, Y4MFile
from tests.sinks.streams import cut, describe, keep, left_in

Make = Callable[..., FileSink]

FILES = [pytest.param(RawFile, "a.raw"), pytest.param(NpyFile, "a.npy")]
FILES += [pytest.param(VideoFile, "a.mp4"), pytest.param(Y4MFile, "a.y4m")]
every_file = pytest.mark.parametrize(("make", "name"), FILES)


def names(directory: Path) -> set[str]:
    """The files there, sidecars aside."""
    return {path.name for path in directory.iterdir() if path.suffix != ".json"}


@every_file
async def test_temporary_name_until_complete(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """The file grows under .partial and takes its name when it is closed, not before."""
    sink = make(tmp_path / name)
    await sink.open(describe(frames))
    for chunk in cut(frames):
        await sink.write(chunk)
        assert names(tmp_path) == {f"{name}.partial"}
    await sink.close()
    assert names(tmp_path) == {name}
    assert sink.committed == len(frames)


@every_file
@pytest.mark.parametrize("taken", ["file", "dangling link"])
async def test_nothing_is_overwritten(
    make: Make, name: str, taken: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """An existing target is refused before anything is decoded, and left as it is."""
    target = tmp_path / name
    target.write_text("mine") if taken == "file" else target.symlink_to("nowhere")
    sink = make(target)
    with pytest.raises(UsageError, match=f"{name} exists already; pass overwrite=True"):
        await sink.open(describe(frames))
    await sink.abort()
    assert names(tmp_path) == {name}
    assert taken != "file" or target.read_text() == "mine"


@every_file
async def test_overwrite(make: Make, name: str, tmp_path: Path, frames: np.ndarray) -> None:
    """Told to, a sink replaces its target, and only once it is complete."""
    target = tmp_path / name
    target.write_text("old")
    sink = make(target, overwrite=True)
    await sink.open(describe(frames))
    for chunk in cut(frames):
        await sink.write(chunk)
        assert target.read_text() == "old"
    await sink.close()
    assert target.stat().st_size > 1000
    assert names(tmp_path) == {name}


@every_file
async def test_target_that_appears_meanwhile(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """A target somebody makes while we write is not replaced; the frames stay under .partial."""
    sink = make(tmp_path / name)
    await sink.open(describe(frames))
    for chunk in cut(frames):
        await sink.write(chunk)
    (tmp_path / name).write_text("theirs")
    with pytest.raises(UsageError, match="exists already") as caught:
        await sink.close()
    assert "13 frames kept" in caught.value.__notes__[0]
    await sink.abort()
    assert (tmp_path / name).read_text() == "theirs"
    assert sink.partial.stat().st_size > 1000
    assert sink.committed == len(frames)


@every_file
async def test_older_partial_stays_until_the_first_chunk(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """What an earlier run left is touched by the first accepted chunk, not by opening."""
    older = tmp_path / f"{name}.partial"
    older.write_text("older")
    first = make(tmp_path / name)
    await first.open(describe(frames))
    await first.abort()
    assert older.read_text() == "older"
    await keep(make(tmp_path / name), frames)
    assert names(tmp_path) == {name}


@every_file
async def test_abort_without_frames_leaves_nothing(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """Aborted before the first chunk, in whatever state, a sink leaves no file behind."""
    for opened in (False, True):
        sink = make(tmp_path / name)
        if opened:
            await sink.open(describe(frames))
        await sink.abort()
        await sink.abort()
        assert left_in(tmp_path) == set()
        with pytest.raises(ClosedError, match="make a new one"):
            await sink.open(describe(frames))


@every_file
async def test_two_writers(make: Make, name: str, tmp_path: Path, frames: np.ndarray) -> None:
    """A second sink on a target at work is refused, and the first is none the worse."""
    first, second = make(tmp_path / name), make(tmp_path / name, overwrite=True)
    await first.open(describe(frames))
    for chunk in cut(frames):
        await first.write(chunk)
        if chunk.index == 1:
            with pytest.raises(UsageError, match=r"another sink is writing to .*" + name):
                await second.open(describe(frames))
            await second.abort()
    await first.close()
    assert names(tmp_path) == {name}
    await keep(make(tmp_path / name, overwrite=True), frames)


async def test_writer_in_another_process(tmp_path: Path, frames: np.ndarray) -> None:
    """A writer in another process is noticed too."""
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", holder, str(tmp_path / "a.npy.partial"), stdin=-1, stdout=-1
    )
    assert other.stdout is not None
    await other.stdout.readline()
    with pytest.raises(UsageError, match="another sink is writing"):
        await NpyFile(tmp_path / "a.npy").open(describe(frames))
    await other.communicate(b"")
    await keep(NpyFile(tmp_path / "a.npy"), frames)


@every_file
@pytest.mark.parametrize("place", ["nowhere", "file"])
async def test_place_that_cannot_be_written(
    make: Make, name: str, place: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """A directory that is missing, or none, is refused by its name before decoding."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"expected a writable directory .*{place}"):
        await make(tmp_path / place / name).open(describe(frames))
    assert names(tmp_path) == {"file"}


@every_file
async def test_directory_as_target(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """A directory is never replaced, even with overwrite."""
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        await make(tmp_path / name, overwrite=True).open(describe(frames))


@every_file
async def test_what_one_file_cannot_hold(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """Several clips, and frames left on the device, are refused before anything is written."""
    with pytest.raises(UsageError, match="expected batch 1, got 2"):
        await make(tmp_path / name).open(describe(frames, batch=2))
    with pytest.raises(UsageError, match="got 'device'"):
        await make(tmp_path / name).open(describe(frames, output="device"))
    assert left_in(tmp_path) == set()


@every_file
async def test_chunk_that_does_not_follow(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """A gap is refused, after it nothing is accepted, and nothing truncated becomes complete."""
    sink = make(tmp_path / name)
    chunks = list(cut(frames))
    await sink.open(describe(frames))
    await sink.write(chunks[0])
    with pytest.raises(UsageError, match="expected the chunk at 1, got 5"):
        await sink.write(chunks[2])
    with pytest.raises(ClosedError, match="it is failed"):
        await sink.write(chunks[1])
    with pytest.raises(ClosedError, match="it is failed"):
        await sink.close()
    await sink.abort()
    assert names(tmp_path) == {f"{name}.partial"}


@every_file
async def test_chunk_of_another_size(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """All frames of a file have one size and dtype."""
    sink = make(tmp_path / name)
    chunks, taller = list(cut(frames)), list(cut(np.repeat(frames, 2, axis=1)))
    await sink.open(describe(frames))
    await sink.write(chunks[0])
    with pytest.raises(UsageError, match=r"expected more of \(\(24, 32, 3\)"):
        await sink.write(taller[1])
    await sink.abort()


@every_file
async def test_ends(
    make: Make,
    name: str,
    tmp_path: Path,
    frames: np.ndarray,
    thread_ended: Callable[[str], bool],
) -> None:
    """Closing twice and aborting after a close do nothing; the thread ends; no second stream."""
    sink = make(tmp_path / name)
    with pytest.raises(ClosedError, match="it is new"):
        await sink.close()
    await keep(sink, frames)
    await sink.close()
    await sink.abort()
    assert names(tmp_path) == {name}
    assert thread_ended(sink.name)
    with pytest.raises(ClosedError, match="it is closed"):
        await sink.open(describe(frames))
    with pytest.raises(ClosedError, match="it is closed"):
        await sink.write(next(cut(frames)))


@every_file
async def test_loop_stays_free(make: Make, name: str, tmp_path: Path, frames: np.ndarray) -> None:
    """Every file operation happens on the sink's own thread, none on the loop's."""
    seen: dict[str, set[str]] = {}
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        watched = ("open", "fcntl.flock", "os.link", "os.remove", "os.rename", "os.truncate")
        if watching and event in watched:
            seen.setdefault(event, set()).add(threading.current_thread().name)

    sink = make(tmp_path / name)
    sys.addaudithook(watch)  # for good, so it is switched off below
    await keep(sink, frames)
    watching = False
    assert {"open", "fcntl.flock", "os.link", "os.remove"} <= set(seen)
    assert set().union(*seen.values()) == {f"streamvae sink {sink.name}"}


@every_file
async def test_cancelled_at_any_step(
    make: Make,
    name: str,
    tmp_path: Path,
    frames: np.ndarray,
    thread_ended: Callable[[str], bool],
) -> None:
    """However a stream is cut off, abort leaves whole chunks, no lock and no thread."""
    turns = random.Random(3)
    for run in range(12):
        sink = make(tmp_path / f"{run}{name}")
        task = asyncio.create_task(keep(sink, frames))
        for _ in range(turns.randrange(16)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await sink.abort()
        assert thread_ended(sink.name)
        left = sink.path if sink.path.exists() else sink.partial
        assert left.exists() == (sink.committed > 0)
        if left.exists():
            assert sink.committed in {1, 5, 9, 13}
            with left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@every_file
def test_loop_that_ends_in_between(
    make: Make,
    name: str,
    tmp_path: Path,
    frames: np.ndarray,
    thread_ended: Callable[[str], bool],
) -> None:
    """A sink outlives its loop: another one can abort it, and the accepted frames are there."""
    sink = make(tmp_path / name)

    async def begin() -> None:
        await sink.open(describe(frames))
        for chunk in list(cut(frames))[:2]:
            await sink.write(chunk)

    asyncio.run(begin())
    asyncio.run(sink.abort())
    assert sink.committed == 5
    assert sink.partial.exists()
    assert thread_ended(sink.name)


@every_file
async def test_relative_path_is_fixed_at_construction(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the working directory in between does not move the file."""
    monkeypatch.chdir(tmp_path)
    sink = make(name)
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    await keep(sink, frames)
    assert (tmp_path / name).exists()
    assert sink.name == name


@every_file
async def test_file_system_without_links(
    make: Make,
    name: str,
    tmp_path: Path,
    frames: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing can be linked, the file still gets its name and still replaces nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    await keep(make(tmp_path / name), frames)
    assert names(tmp_path) == {name}
    size = (tmp_path / name).stat().st_size
    sink = make(tmp_path / f"b{name}")
    await sink.open(describe(frames))
    await sink.write(next(cut(frames)))
    (tmp_path / name).rename(tmp_path / f"b{name}")
    with pytest.raises(UsageError, match="exists already"):
        await sink.close()
    await sink.abort()
    assert (tmp_path / f"b{name}").stat().st_size == size


@every_file
async def test_partial_that_somebody_removed(
    make: Make, name: str, tmp_path: Path, frames: np.ndarray
) -> None:
    """A file removed under our hands is an error at the close, and no empty target is left."""
    sink = make(tmp_path / name)
    await sink.open(describe(frames))
    await sink.write(next(cut(frames)))
    sink.partial.unlink()
    with pytest.raises(FileNotFoundError):
        await sink.close()
    await sink.abort()
    assert names(tmp_path) == set()
