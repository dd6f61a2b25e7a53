"""What goes wrong around any sink: one clear error, nothing committed is lost, the rest goes on."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamvae import NpyFile, SinkTimeout, UsageError, stream_decode
from streamvae.sinks import Y4MFile, Y4MPipe
from streamvae.sinks._stills import FORMATS
from streamvae.testing import FakeBackend, MemorySink, TagCodec, tagged_latents

from .every import SUFFIXES, about, chunks, every_suffix, expect_kept, kept, made, noise, target
from .streams import left_in

#: A user with no rights that nobody gave.
NOBODY = 65534

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def without_rights(place: Path, mode: int = 0o777) -> Iterator[None]:
    """Be nobody, for whom the directory ``place`` has ``mode``."""
    place.chmod(mode)
    root = os.geteuid() == 0
    if root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A directory that nobody, too, can get to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        place = Path(name) / "place"
        place.mkdir()
        yield place
        place.chmod(0o777)


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What came of filling a disk of 600 KiB, by suffix."""
    place = tmp_path_factory.mktemp("disk")
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", place], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk of one's own cannot be mounted here")
    command = [*alone, sys.executable, "-m", "tests.sinks.every", str(place)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {str(line["suffix"]): line for line in lines}


@every_suffix
def test_full_disk(suffix: str, full_disks: dict[str, dict[str, object]]) -> None:
    """The system's own error, with the sink and what is safe; all of that is read from the disk."""
    came = full_disks[suffix]  # what is committed was compared with what is there
    assert came["error"] == "OSError"
    said = "\n".join(came["said"])  # type: ignore[arg-type]
    assert "No space left on device" in said
    assert f"a{suffix}" in said or f"%03d{suffix}" in said
    assert str(came["before"]) in said
    assert came["before"]
    assert came["committed"] >= came["before"]  # type: ignore[operator]


@every_suffix
async def test_read_only_directory(suffix: str, anyones: Path) -> None:
    """Refused by the directory's name before anything is decoded, and nothing is left there."""
    rows, sink = noise(suffix, 1), made(suffix, anyones)
    with without_rights(anyones, 0o555):
        with pytest.raises(UsageError, match=f"expected a writable directory {anyones}"):
            await sink.open(about(suffix, rows))
        await sink.abort()
    assert left_in(anyones) == set()


@every_suffix
async def test_permission_is_lost(suffix: str, anyones: Path) -> None:
    """A directory that is closed midway costs the name, and nothing that was committed."""
    rows = noise(suffix, 40)
    await _keep_one(suffix)  # what is imported late is imported now
    with without_rights(anyones):
        sink = made(suffix, anyones)
        await sink.open(about(suffix, rows))
        first, *others = chunks(suffix, rows)
        await sink.write(first)
        await asyncio.sleep(0)
    with without_rights(anyones, 0o555):
        with pytest.raises((OSError, UsageError)) as caught:
            for chunk in others:
                await sink.write(chunk)
            await sink.close()
        said = "\n".join([str(caught.value), *caught.value.__notes__])
        assert "denied" in said
        assert sink.name in said
        before = sink.committed
        assert str(before) in said
        await sink.abort()
    assert sink.committed >= before
    expect_kept(suffix, anyones, sink.committed, rows)


async def _keep_one(suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        sink, rows = made(suffix, Path(name)), noise(suffix, 1)
        await sink.open(about(suffix, rows))
        await sink.write(chunks(suffix, rows)[0])
        await sink.close()


@every_suffix
async def test_two_clips(suffix: str, tmp_path: Path) -> None:
    """What keeps one clip says so, and what to do; what keeps several keeps both."""
    rows = noise(suffix, 2)
    sink = made(suffix, tmp_path)
    if suffix == ".zarr":
        await sink.open(about(suffix, rows, batch=2))
        await sink.abort()
        return
    said = "expected two places, clip%d" if suffix in FORMATS else "expected batch 1, got 2"
    with pytest.raises(UsageError, match=said):
        await sink.open(about(suffix, rows, batch=2))
    assert left_in(tmp_path) == set()


# Syncing to the disk.

#: Writes a file, prints what was synced (``d``: data, ``f``: a directory) after each call of it.
SYNCS = """
import asyncio, json, os, pathlib, sys, stat

synced = []
for name in ("fdatasync", "fsync"):
    def told(file, call=getattr(os, name)):
        synced.append("f" if stat.S_ISDIR(os.fstat(file).st_mode) else "d")
        call(file)
    setattr(os, name, told)

from tests.sinks.every import about, chunks, made, noise

async def main(suffix, place, sync):
    rows = noise(suffix, 33)
    sink = made(suffix, place, sync=sync)
    await sink.open(about(suffix, rows))
    for chunk in chunks(suffix, rows):
        counted = sink.committed
        await sink.write(chunk)
        print(json.dumps(["write", sink.committed > counted, "".join(synced)]))
        synced.clear()
    await sink.close()
    print(json.dumps(["close", True, "".join(synced)]))

for suffix in sys.argv[3:]:
    place = pathlib.Path(sys.argv[1], suffix)
    place.mkdir()
    asyncio.run(main(suffix, place, sys.argv[2]))
"""


@pytest.mark.parametrize("sync", ["none", "close", "commit"])
def test_sync(sync: str, tmp_path: Path) -> None:
    """Nothing is synced unasked; data go before the name; with commits, data go before each."""
    command = [sys.executable, "-c", SYNCS, str(tmp_path), sync, *SUFFIXES]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    for call, counted, synced in calls:
        if sync == "none":
            assert synced == ""
        elif call == "close":
            assert "d" in synced or not counted
            assert synced.endswith("f")
        elif sync == "commit" and counted:
            assert synced
    assert sum(call == "close" for call, *_ in calls) == len(SUFFIXES)
    for suffix in SUFFIXES:
        assert len(kept(suffix, target(suffix, tmp_path / suffix))) >= 33


@every_suffix
def test_sync_that_is_none(suffix: str, tmp_path: Path) -> None:
    """Another word is refused when the sink is made."""
    with pytest.raises(UsageError, match="expected sync to be one of 'none', 'close', 'commit'"):
        made(suffix, tmp_path, sync="always")


# Whole streams.


async def test_killed_reader() -> None:
    """A pipe whose reader is killed fails alone: the file beside it is complete."""
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(["/bin/sleep", "600"], stdin=subprocess.PIPE) as reader,  # noqa: ASYNC220
    ):
        assert reader.stdin is not None
        file = NpyFile(Path(name) / "a.npy")
        pipe = Y4MPipe(reader.stdin, fps=8, name="player")
        latents, seen = tagged_latents(20), 0
        stream = stream_decode(
            latents,
            TagCodec(),
            sinks=(pipe, file),
            on_sink_error="continue",
            backend=FakeBackend(),
        )
        with pytest.raises(BrokenPipeError) as caught:
            async for _ in stream:
                seen += 1
                if seen == 2:
                    reader.send_signal(signal.SIGKILL)
                    reader.wait()
        with contextlib.suppress(BrokenPipeError):
            reader.stdin.close()
        assert seen == 20
        assert len(np.load(file.path)) == 20
        assert any(
            note.startswith("While sink player took chunk") for note in caught.value.__notes__
        )
        assert stream.stats.failures[0].sink == "player"
        assert stream.stats.failures[0].committed < 20


@pytest.mark.parametrize("policy", ["stop", "continue"])
async def test_stuck_file(policy: str, tmp_path: Path) -> None:
    """A file that takes nothing any more costs its timeouts and not what is beside it."""
    stuck = Y4MFile(tmp_path / "dead.y4m", fps=8)
    os.mkfifo(stuck.partial)  # nobody reads it: it takes 64 KiB, then a write hangs
    other, latents = MemorySink(name="other"), tagged_latents(4, size=80)
    stream = stream_decode(
        latents,
        TagCodec(),
        sinks=(stuck, other),
        backend=FakeBackend(),
        write_timeout=0.2,
        sink_timeout=0.2,
        on_sink_error=policy,  # type: ignore[arg-type]
    )
    began = asyncio.get_running_loop().time()
    with pytest.raises(SinkTimeout, match="did not take chunk") as caught:
        async with stream:
            async for _ in stream:
                pass
    assert asyncio.get_running_loop().time() - began < 5
    assert f"sink {stuck.name} did not end within 0.2 s" in caught.value.__notes__
    assert other.calls == ["open", "close" if policy == "continue" else "abort"]
    assert stat.S_ISFIFO(stuck.partial.stat().st_mode)
    with stuck.partial.open("rb") as reader:  # its thread ends when its call does
        os.set_blocking(reader.fileno(), False)
        while any(one.name.endswith("dead.y4m") for one in threading.enumerate()):
            with contextlib.suppress(BlockingIOError):
                os.read(reader.fileno(), 1 << 16)
            await asyncio.sleep(0)
    for _ in range(5):  # what the thread has raised at last is still to be let go of
        await asyncio.sleep(0)
