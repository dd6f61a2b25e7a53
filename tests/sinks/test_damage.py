"""What an interrupted stream left, damaged at random, and then gone on with."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamvae._errors import StreamVAEError, UsageError
from streamvae.sinks import NpyFile, RawFile, Stills, ZarrArray
from streamvae.sinks._resumable import ResumableSink
from tests.sinks.streams import Rows
from tests.sinks.test_resume import KNOWN, begin, files, go_on

#: Damages for each kind and seed.
COUNT = 40

MAKERS: dict[str, Callable[[Path], ResumableSink]] = {
    "npy": lambda place: NpyFile(place / "a.npy"),
    "raw": lambda place: RawFile(place / "a.raw"),
    "zarr": lambda place: ZarrArray(place / "a.zarr", length=3),
    "zstd": lambda place: ZarrArray(place / "a.zarr", length=3, zstd=1),
    "png": lambda place: Stills(place / "a" / "%d.png"),
    "webp": lambda place: Stills(place / "a" / "%d.webp", lossless=True),
}
VALUES = [None, 0, -1, True, 1.5, 1e99, 2**70, "x", [], {}, [0, 0, 0], [[1]], ["a"] * 4, {"a": 1}]


def damage(path: Path, rng: random.Random) -> str:
    """Change a file as a disk, a copy or a hand does; what was done."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "flip", "cut", "empty", "remove", "json", "json", "zeros", "append"])
    at = rng.randrange(min(len(data), 400) or 1)
    if how == "remove":
        path.unlink()
        return how
    if how == "flip" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "empty":
        data.clear()
    elif how == "zeros":
        data[at : at + 50] = bytes(len(data[at : at + 50]))
    elif how == "append":
        data += rng.randbytes(rng.choice([1, 1000]))
    elif path.suffix == ".json":
        data = bytearray(json.dumps(changed(json.loads(data), rng)).encode())
    path.write_bytes(data)
    return how


def changed(held: object, rng: random.Random) -> object:
    """JSON with another value in one place, at any depth."""
    if isinstance(held, dict | list) and held and rng.random() < 0.9:
        key = rng.choice(list(held) if isinstance(held, dict) else list(range(len(held))))
        other: dict[object, object] | list[object] = held.copy()
        other[key] = changed(held[key], rng)  # type: ignore[index]
        return other
    return rng.choice(VALUES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("kind", MAKERS)
async def test_damaged_at_random(
    kind: str, dtype: type[np.uint8 | np.float32], seed: int, tmp_path: Path, frames: np.ndarray
) -> None:
    """Either all becomes what one run makes, or an error of ours says why not; no frame is lost."""
    rng = random.Random(f"{kind} {dtype} {seed}")
    rows: Rows = frames.astype(dtype)
    if kind in {"png", "webp"} and dtype is np.float32:
        pytest.skip("pictures are of 8 bits")
    left, once = tmp_path / "left", tmp_path / "once"
    for place in (left, once):
        place.mkdir()
    await go_on(MAKERS[kind](once), rows)
    await begin(MAKERS[kind](left), rows[:7])
    for number in range(COUNT):
        place = tmp_path / str(number)
        shutil.copytree(left, place)
        target = rng.choice(sorted(path for path in place.rglob("*") if path.is_file()))
        how = f"{number}: {damage(target, rng)} {target.name}"
        before = files(place)
        try:
            await go_on(MAKERS[kind](place), rows)
        except StreamVAEError:
            after = files(place)
            data = [name for name in before if "manifest" not in name]
            assert [after.get(name) == before[name] for name in data] == [True] * len(data), how
        except Exception as error:
            error.add_note(how)
            raise
        else:
            assert files(place) == files(once), how
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("npy", b"|u1", b"|i1"),
        ("npy", b"False", b"True "),
        ("npy", b"(7, ", b"(7.5"),
        ("npy", b"}", b"("),
        ("npy", b"\x93", b"\x92"),
        ("raw", b'"uint8"', b'"int8"'),
        ("raw", b'"little"', b'"big"'),
        ("raw", b'"shape": [', b'"shape": [[1],'),
        ("raw", b'"shape"', b'"shepa"'),
        ("raw", b"{", b"["),
        ("zarr", b'"uint8"', b'"uint9"'),
        ("zarr", b'"shape"', b'"shepa"'),
        ("zarr", b'"chunk_grid"', b'"chunk_grit"'),
        ("zarr", b'"time"', b'"tame"'),
        ("zarr", b'"fill_value": 0', b'"fill_value": 1'),
        ("zarr", b"{", b"["),
    ],
)
async def test_what_is_damaged_is_named(
    kind: str, old: bytes, new: bytes, tmp_path: Path, frames: np.ndarray
) -> None:
    """The error says which file, and that nothing was touched; without resume all begins anew."""
    await begin(MAKERS[kind](tmp_path), frames[:7])
    pattern = {"npy": "*.partial", "raw": "*.partial.json", "zarr": "*.partial/zarr.json"}[kind]
    (path,) = tmp_path.glob(pattern)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    before = files(tmp_path)
    with pytest.raises(UsageError, match=f"expected .*{path.name} as an .*nothing was touched"):
        await go_on(MAKERS[kind](tmp_path), frames)
    assert files(tmp_path) == before
    await begin(MAKERS[kind](tmp_path), frames[:9])
    assert await go_on(MAKERS[kind](tmp_path), frames) == 9


@pytest.mark.parametrize("kind", ["npy", "raw", "zarr", "zstd"])
@pytest.mark.parametrize("count", [1, 5, 9])
async def test_more_than_the_stream_has(
    kind: str, count: int, tmp_path: Path, frames: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies behind the stream's end is cut off: it is none of its frames."""
    once, longer = tmp_path / "once", tmp_path / "longer"
    for place in (once, longer):
        place.mkdir()
    await go_on(MAKERS[kind](once), frames[:count])
    await begin(MAKERS[kind](longer), frames)
    assert await go_on(MAKERS[kind](longer), frames[:count]) == 13
    assert f"there are 13 frames, the stream has {count}" in caplog.text
    assert files(longer).keys() - files(once).keys() == {
        name for name in files(longer) if "/c." in name and name not in files(once)
    }
    for name, data in files(once).items():
        if "/c." not in name:
            assert files(longer)[name] == data


@pytest.mark.parametrize("kind", ["npy", "raw", "zarr"])
async def test_frames_of_another_size(kind: str, tmp_path: Path, frames: np.ndarray) -> None:
    """A stream of the same frames, but of another shape, touches nothing."""
    await begin(MAKERS[kind](tmp_path), frames[:7])
    before = files(tmp_path)
    other = frames.reshape(len(frames), frames.shape[2], frames.shape[1], 3).copy()
    with pytest.raises(UsageError, match="expected more of"):
        await go_on(MAKERS[kind](tmp_path), other, KNOWN)
    assert files(tmp_path) == before
