"""One of every file sink there is, by suffix: what to give it, and how to read back what it kept.

Run as a program, ``python -m tests.sinks.every PLACE``, it fills a small disk mounted at PLACE by
each sink in turn, and prints what came of it, a line of JSON each.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._pixels import Kind
from streamvae.abc import Sink
from streamvae.sinks import BY_SUFFIX
from streamvae.sinks._stills import FORMATS

from .streams import Rows, cut, describe, left_in, read_raw

#: Of files, without one that is another's second name.
SUFFIXES = tuple(sorted(set(BY_SUFFIX) - {".jpeg"}))

#: Those that keep sound only.
SOUND = {".flac", ".m4a", ".opus", ".wav"}

#: Those whose frames are equal, byte for byte, to those they were given.
EQUAL = {".npy", ".png", ".raw", ".wav", ".zarr"}

every_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def kind_of(suffix: str) -> Kind:
    """What a file of ``suffix`` is given here."""
    return "sound" if suffix in SOUND else "video"


def target(suffix: str, place: Path) -> Path:
    """A path in ``place`` that has that suffix."""
    return place / (f"%03d{suffix}" if suffix in FORMATS else f"a{suffix}")


def noise(suffix: str, count: int) -> Rows:
    """``count`` pictures of 64x64, or 12000 samples for each, that take much room; seeded."""
    random = np.random.default_rng(5)
    if suffix in SOUND:
        sound: Rows = random.uniform(-1, 1, (12000 * count, 1)).astype(np.float32)
        return sound
    return random.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def about(suffix: str, rows: Rows, **known: object) -> StreamInfo:
    """What a stream of ``rows`` would say of itself."""
    rate = {"sample_rate": 48000} if suffix in SOUND else {}
    return describe(rows, kind_of(suffix), **(rate | known))


def chunks(suffix: str, rows: Rows) -> list[HostChunk]:
    """The stream of ``rows``, four pictures a chunk."""
    return list(cut(rows, kind_of(suffix), (48000,) if suffix in SOUND else (1, 4)))


def made(suffix: str, place: Path, **options: object) -> Sink:
    """A sink of that suffix."""
    make: Callable[..., Sink] = BY_SUFFIX[suffix]
    return make(target(suffix, place), **options)


def kept(suffix: str, path: Path) -> Rows:
    """What another reader finds at ``path``, up to what is not whole."""
    if suffix in FORMATS:
        stills = []
        while (still := path.with_name(path.name % len(stills))).exists():
            with Image.open(still) as picture:
                stills.append(np.asarray(picture))
        return np.array(stills, np.uint8)
    if suffix == ".zarr":
        import zarr

        return np.asarray(zarr.open_array(path, mode="r")[:])
    if suffix == ".npy":
        return np.asarray(np.load(path))
    return read_raw(path) if suffix == ".raw" else _played(suffix, path)


def _played(suffix: str, path: Path) -> Rows:
    parts = []
    with av.open(path) as container:
        if suffix in SOUND:
            parts = [frame.to_ndarray().reshape(-1, 1) for frame in container.decode(audio=0)]
            return np.concatenate(parts)
        parts = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(parts)


def partial(suffix: str, place: Path) -> Path:
    """Where what was committed is until it is complete."""
    path = target(suffix, place)
    return path if suffix in FORMATS else path.with_name(path.name + ".partial")


def expect_kept(suffix: str, place: Path, committed: int, rows: Rows) -> None:
    """Everything that was committed is there, nothing looks complete."""
    assert not target(suffix, place).exists()
    if not committed:
        return
    there = kept(suffix, partial(suffix, place))
    assert len(there) >= committed
    if suffix in EQUAL:
        np.testing.assert_array_equal(there[:committed], rows[:committed])


async def _fill(suffix: str, place: Path) -> dict[str, object]:
    """Write until the disk is full; what came of it."""
    rows, sink = noise(suffix, 400), made(suffix, place)
    await sink.open(about(suffix, rows))
    said: dict[str, object] = {"suffix": suffix, "error": None}
    try:
        for chunk in chunks(suffix, rows):
            await sink.write(chunk)
        await sink.close()
    except Exception as error:  # noqa: BLE001  # the test looks at it
        text = [str(error), *getattr(error, "__notes__", ())]
        said |= {"error": type(error).__name__, "errno": getattr(error, "errno", 0), "said": text}
    before = sink.committed
    await sink.abort()
    expect_kept(suffix, place, sink.committed, rows)
    return said | {"before": before, "committed": sink.committed, "left": sorted(left_in(place))}


def main(place: Path) -> None:
    """Fill a disk by each sink in turn."""
    mount, umount = shutil.which("mount") or "mount", shutil.which("umount") or "umount"
    for suffix in SUFFIXES:
        subprocess.run([mount, "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], check=True)
        try:
            sys.stdout.write(json.dumps(asyncio.run(_fill(suffix, place))) + "\n")
        finally:
            subprocess.run([umount, "--lazy", place], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
