"""Sinks that go on with what an earlier run left, driven as a stage drives them."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from streamvae._chunks import Band, HostChunk
from streamvae._errors import LatentsError, UsageError
from streamvae._identity import UNKNOWN, Identity
from streamvae.sinks import (
    Continued,
    FileSink,
    NpyFile,
    RawFile,
    Stills,
    VideoFile,
    Y4MPipe,
    ZarrArray,
)
from streamvae.sinks._resumable import ResumableSink
from tests.sinks.streams import cut, describe, left_in, read_mp4, smooth

Pictures = npt.NDArray[np.uint8]

#: All of it known beforehand, and latents that come one by one.
KNOWN = Identity({"mode": "exact"}, {"weights": "w", "latents": "z"})
COMING = Identity({"mode": "exact"}, {"weights": "w"})

MAKERS: dict[str, Callable[[Path], ResumableSink]] = {
    "raw": lambda place: RawFile(place / "a.raw"),
    "npy": lambda place: NpyFile(place / "a.npy"),
    "png": lambda place: Stills(place / "a" / "%d.png"),
    "jpg": lambda place: Stills(place / "a" / "%d.jpg"),
    "zarr": lambda place: ZarrArray(place / "a.zarr", length=3),
    "webp": lambda place: Stills(place / "a" / "%d.webp", lossless=True),
}
every = pytest.mark.parametrize("kind", MAKERS)


async def begin(sink: ResumableSink, rows: Pictures, identity: Identity = KNOWN) -> int:
    """Have ``rows`` accepted, then break off; what is committed."""
    await sink.identify(replace(identity, hashes=None))
    await sink.open(describe(rows))
    for chunk in cut(rows):
        await sink.write(chunk)
    await sink.identify(identity)
    await sink.abort()
    return sink.committed


async def go_on(
    sink: ResumableSink,
    rows: Pictures,
    identity: Identity = KNOWN,
    sizes: tuple[int, ...] = (1, 4),
) -> int:
    """Resume, and give all of ``rows``; how many were there."""
    continued = Continued(sink)
    await continued.identify(replace(identity, hashes=None))
    await continued.identify(identity)
    try:
        await continued.open(describe(rows))
        there = continued.committed
        for chunk in cut(rows, sizes=sizes):
            await continued.write(chunk)
        await continued.close()
    except BaseException:
        await continued.abort()
        raise
    return there


def files(place: Path) -> dict[str, bytes]:
    """Everything there."""
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@every
@pytest.mark.parametrize("count", [1, 5, 12, 13])
@pytest.mark.parametrize("identity", [KNOWN, COMING])
async def test_the_result_is_that_of_one_run(
    kind: str, count: int, identity: Identity, tmp_path: Path, frames: Pictures
) -> None:
    """Broken off anywhere and resumed, also in other chunks, files are bit for bit the same."""
    for place in ("once", "twice"):
        (tmp_path / place).mkdir()
    assert await go_on(MAKERS[kind](tmp_path / "once"), frames) == 0
    place = tmp_path / "twice"
    assert await begin(MAKERS[kind](place), frames[:count], identity) == count
    assert any(name.endswith("manifest.json") for name in files(place))
    assert (
        await go_on(MAKERS[kind](place), frames, identity, (1, 4) if count < 12 else (3,)) == count
    )
    assert files(place) == files(tmp_path / "once")


@every
async def test_what_is_of_another_stream_stays(kind: str, tmp_path: Path, frames: Pictures) -> None:
    """Other weights, latents or options: all that differs is named, before anything is touched."""
    await begin(MAKERS[kind](tmp_path), frames[:5])
    before = files(tmp_path)
    other = Identity({"mode": "fast"}, {"weights": "v", "latents": "y"})
    said = "other weights, other latents, mode fast and not exact; nothing was touched"
    with pytest.raises(UsageError, match=said):
        await go_on(MAKERS[kind](tmp_path), frames, other)
    assert files(tmp_path) == before


@every
@pytest.mark.parametrize("damage", ["gone", "torn", "of another version"])
async def test_without_a_manifest_nothing_is_touched(
    kind: str, damage: str, tmp_path: Path, frames: Pictures
) -> None:
    """What nobody knows the stream of is not gone on with."""
    await begin(MAKERS[kind](tmp_path), frames[:5])
    (manifest,) = tmp_path.rglob("*.manifest.json")
    text = json.loads(manifest.read_text()) | {"version": 0}
    manifest.write_text('{"version": 1' if damage == "torn" else json.dumps(text))
    if damage == "gone":
        manifest.unlink()
    before = files(tmp_path)
    with pytest.raises(UsageError, match="which says what it is the beginning of, got none"):
        await go_on(MAKERS[kind](tmp_path), frames)
    assert files(tmp_path) == before


@every
@pytest.mark.parametrize("proof", [None, {"weights": "w"}, {"weights": UNKNOWN, "latents": "z"}])
async def test_unproven_frames_are_compared(
    kind: str, proof: dict[str, str] | None, tmp_path: Path, frames: Pictures
) -> None:
    """Where no hash tells, other frames than those that are there end it, and these stay."""
    unproven = replace(KNOWN, hashes=proof)
    assert await begin(MAKERS[kind](tmp_path), frames[:5], unproven) == 5
    before = files(tmp_path)
    with pytest.raises(LatentsError, match="expected the latents that .* was begun with"):
        await go_on(
            MAKERS[kind](tmp_path), frames[::-1].copy(), replace(unproven, hashes=proof or {})
        )
    after = files(tmp_path)
    data = [name for name in before if not name.endswith(".json")]
    assert [after[name] for name in data] == [before[name] for name in data]
    assert await go_on(MAKERS[kind](tmp_path), frames, replace(unproven, hashes=proof or {})) == 5


@every
@pytest.mark.parametrize("at", [0, 3])
async def test_proven_frames_are_mended(
    kind: str, at: int, tmp_path: Path, frames: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """What a loss of power has torn is written again, if weights and latents are the same."""
    torn = frames.copy()
    torn[at, 3, 4] ^= 255
    await begin(MAKERS[kind](tmp_path), torn[:7])
    assert await go_on(MAKERS[kind](tmp_path), frames) == 7
    assert f"what is there from frame {0 if at == 0 else 1} on" in caplog.text
    (tmp_path / "once").mkdir()
    await go_on(MAKERS[kind](tmp_path / "once"), frames)
    once = files(tmp_path / "once")
    assert {name: data for name, data in files(tmp_path).items() if "once" not in name} == once


@pytest.mark.parametrize("kind", ["raw", "npy"])
async def test_a_frame_that_is_not_whole_is_not_there(
    kind: str, tmp_path: Path, frames: Pictures
) -> None:
    """What a kill left of a frame is cut off."""
    sink = MAKERS[kind](tmp_path)
    assert isinstance(sink, FileSink)
    await begin(sink, frames[:6])
    with sink.partial.open("ab") as file:
        file.write(b"half a frame")
    assert await go_on(MAKERS[kind](tmp_path), frames) == 6
    end = sink.path.read_bytes()[-frames[0].size :]
    assert end == frames[-1].tobytes()
    assert not [name for name in left_in(tmp_path) if "partial" in name]


@pytest.mark.parametrize("kind", ["raw", "npy"])
@pytest.mark.parametrize("left", [0, 20])
async def test_nothing_but_a_beginning(
    kind: str, left: int, tmp_path: Path, frames: Pictures
) -> None:
    """A writer killed before its first frame left nothing to go on with: all is written."""
    sink = MAKERS[kind](tmp_path)
    assert isinstance(sink, FileSink)
    await begin(sink, frames[:6])
    with sink.partial.open("r+b") as file:
        file.truncate(left)
    assert await go_on(MAKERS[kind](tmp_path), frames) == 0
    assert sink.path.read_bytes()[-frames[0].size :] == frames[-1].tobytes()


async def test_a_kill_between_two_names(tmp_path: Path, frames: Pictures) -> None:
    """A raw file whose sidecar is called complete already, and which is not, is gone on with."""
    sink = RawFile(tmp_path / "a.raw")
    await begin(sink, frames)
    (tmp_path / "a.raw.partial.json").rename(sink.sidecar)
    assert await go_on(RawFile(tmp_path / "a.raw"), frames) == 13
    assert left_in(tmp_path) == {"a.raw", "a.raw.json"}
    assert json.loads(sink.sidecar.read_text())["complete"]


@pytest.mark.parametrize("kind", ["raw", "npy"])
async def test_bands(kind: str, tmp_path: Path, frames: Pictures) -> None:
    """Pictures that come in bands are gone on with, and mended, as whole ones are."""

    def bands(pictures: Pictures) -> Iterator[HostChunk]:
        for index, picture in enumerate(pictures):
            for number, rows in enumerate((range(10), range(10, 24))):
                data = picture[None, None, rows.start : rows.stop]
                yield HostChunk(2 * index + number, index, "image", data, Band(rows, 24))

    sink, info = MAKERS[kind](tmp_path), describe(frames, "image", batch=None)
    torn = frames.copy()
    torn[2, 20] ^= 255
    await sink.identify(KNOWN)
    await sink.open(info)
    for chunk in list(bands(torn[:5]))[:-1]:
        await sink.write(chunk)
    await sink.abort()
    assert sink.committed == 4
    again = Continued(MAKERS[kind](tmp_path))
    assert again.takes_bands
    await again.identify(KNOWN)
    await again.open(info)
    assert again.committed == 4
    for chunk in bands(frames):
        await again.write(chunk)
    await again.close()
    assert isinstance(sink, FileSink)
    assert sink.path.read_bytes()[-frames.nbytes :] == frames.tobytes()


async def test_several_clips(tmp_path: Path, frames: Pictures) -> None:
    """Of several clips those frames are there that every clip has; the others are replaced."""
    both = np.stack([frames, frames[::-1]])

    def chunks(end: int) -> Iterator[HostChunk]:
        for start in range(0, end, 4):
            yield HostChunk(start // 4, start, "video", both[:, start : start + 4].copy())

    def sink() -> Stills:
        return Stills(tmp_path / "clip%d" / "%d.png")

    first = sink()
    await first.identify(KNOWN)
    await first.open(describe(frames, batch=2))
    for chunk in chunks(8):
        await first.write(chunk)
    await first.abort()
    assert "clip%d-%d.png.partial.manifest.json" in left_in(tmp_path)
    (tmp_path / "clip1" / "7.png").unlink()
    again = Continued(sink())
    await again.identify(KNOWN)
    await again.open(describe(frames, batch=2))
    assert again.committed == 7
    for chunk in chunks(13):
        await again.write(chunk)
    await again.close()
    assert left_in(tmp_path) == {"clip0", "clip1"}
    for clip in (0, 1):
        for index in range(13):
            with Image.open(tmp_path / f"clip{clip}" / f"{index}.png") as picture:
                assert np.array_equal(np.asarray(picture), both[clip, index])


async def test_a_video_is_made_anew_beside_the_old_one(tmp_path: Path) -> None:
    """The video that is there stays until the new one is complete, or longer."""
    pictures = smooth(60, 48, 64)

    def sink() -> VideoFile:
        return VideoFile(tmp_path / "a.mp4", gop=4)

    assert await begin(sink(), pictures[:40]) == 40
    old = sink().partial.read_bytes()
    again = Continued(sink())
    await again.identify(KNOWN)
    await again.open(describe(pictures))
    assert again.committed == 0
    for chunk in cut(pictures[:9]):
        await again.write(chunk)
    assert (tmp_path / "a.mp4.partial.before").read_bytes() == old
    await again.abort()
    assert sink().partial.read_bytes() == old
    assert left_in(tmp_path) == {"a.mp4.partial", "a.mp4.partial.manifest.json"}
    more = Continued(sink())
    await more.identify(KNOWN)
    await more.open(describe(pictures))
    for chunk in cut(pictures[:52]):
        await more.write(chunk)
    await more.abort()
    assert len(read_mp4(sink().partial)) == 52
    assert await go_on(sink(), pictures) == 0
    assert left_in(tmp_path) == {"a.mp4"}
    assert len(read_mp4(tmp_path / "a.mp4")) == 60


async def test_a_kill_while_a_video_is_made_anew(tmp_path: Path) -> None:
    """Of what was put aside and what came after it the longer one counts as the old one."""
    pictures = smooth(40, 48, 64)
    sink = VideoFile(tmp_path / "a.mp4", gop=4)
    await begin(sink, pictures)
    long = sink.partial.read_bytes()
    sink.partial.with_name("a.mp4.partial.before").write_bytes(long)
    sink.partial.write_bytes(long[: len(long) // 2])
    again = Continued(VideoFile(tmp_path / "a.mp4", gop=4))
    await again.identify(KNOWN)
    await again.open(describe(pictures))
    await again.write(next(iter(cut(pictures))))
    await again.abort()
    assert sink.partial.read_bytes() == long


async def test_without_resume_all_is_replaced(tmp_path: Path, frames: Pictures) -> None:
    """A stream that does not go on replaces the file, and says what the new one is."""
    sink = NpyFile(tmp_path / "a.npy")
    await begin(sink, frames[:9])
    other = Identity({"mode": "fast"}, {"weights": "v", "latents": "y"})
    await begin(NpyFile(tmp_path / "a.npy"), frames[:2], other)
    assert len(np.load(sink.partial)) == 2
    assert await go_on(NpyFile(tmp_path / "a.npy"), frames, other) == 2


async def test_nobody_s_stream_has_no_manifest(tmp_path: Path, frames: Pictures) -> None:
    """A sink that is not told what it keeps says nothing, nor lets an earlier one's word stand."""
    await begin(NpyFile(tmp_path / "a.npy"), frames[:9])
    sink = NpyFile(tmp_path / "a.npy")
    await sink.open(describe(frames))
    await sink.write(next(iter(cut(frames))))
    await sink.abort()
    assert left_in(tmp_path) == {"a.npy.partial"}


async def test_nothing_kept_leaves_no_manifest(tmp_path: Path, frames: Pictures) -> None:
    """A stream that ends before its first frame leaves nothing."""
    for kind in ("npy", "raw", "png"):
        sink = MAKERS[kind](tmp_path)
        await sink.identify(KNOWN)
        await sink.open(describe(frames))
        await sink.abort()
    assert files(tmp_path) == {}


def test_a_pipe_cannot_go_on(tmp_path: Path) -> None:
    """What cannot be read again is refused."""
    with (
        (tmp_path / "a").open("wb") as file,
        pytest.raises(UsageError, match="got -, which cannot"),
    ):
        Continued(Y4MPipe(file))


async def test_a_manifest_that_cannot_be_written(
    tmp_path: Path, frames: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream goes on without; a warning says that nothing will resume it."""
    (tmp_path / "a.npy.partial.manifest.json").mkdir()
    assert await begin(NpyFile(tmp_path / "a.npy"), frames) == 13
    assert "could not be written, so nothing resumes it" in caplog.text
    assert len(np.load(tmp_path / "a.npy.partial")) == 13
    assert left_in(tmp_path) == {"a.npy.partial", "a.npy.partial.manifest.json"}


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("damage", ["appended", "cut", "flipped", "emptied", "zeros", "doubled"])
@pytest.mark.parametrize("seed", range(4))
async def test_a_damaged_picture(
    kind: str, damage: str, seed: int, tmp_path: Path, frames: Pictures
) -> None:
    """A picture's file that is not what was written is written again, whatever is wrong with it."""
    rng = random.Random(seed)
    sink = MAKERS[kind](tmp_path)
    await begin(sink, frames[:5])
    before = files(tmp_path)
    path = tmp_path / "a" / f"3.{kind}"
    data = bytearray(path.read_bytes())
    at = rng.randrange(1, len(data) - 8)
    flipped = data.copy()
    flipped[at] ^= 1 << rng.randrange(8)
    path.write_bytes(
        {
            "appended": data + rng.randbytes(rng.choice([1, 12, 1000])),
            "cut": data[:at],
            "flipped": flipped,
            "emptied": b"",
            "zeros": data[:at] + bytes(8) + data[at + 8 :],
            "doubled": data + data,
        }[damage]
    )
    assert await go_on(MAKERS[kind](tmp_path), frames[:5]) == 5
    pictures = {name: data for name, data in before.items() if name.endswith(kind)}
    assert files(tmp_path) == pictures


async def test_pngs_of_another_level_are_the_same(tmp_path: Path, frames: Pictures) -> None:
    """What another level (or release of zlib) has written stays: the pixels are the same."""
    sink = Stills(tmp_path / "%d.png", level=9)
    await begin(sink, frames[:5])
    before = files(tmp_path)
    assert await go_on(Stills(tmp_path / "%d.png", level=0), frames) == 5
    after = files(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name.endswith("png"))
