"""Kill writers at random moments, and count what is left of what they had called committed.

For each kind of file a process writes a clip, a chunk of four pictures (1000 samples) at a time,
and keeps telling `sink.committed` through memory that outlives it. It gets SIGKILL at a moment that
is uniform over the time such a clip takes, closing included. Then the file, or ``.partial``, is
read by somebody else's reader: it must hold every frame that was counted, and a file that has its
name must be complete. At last the clip is resumed, where its kind can be: the result must be that
of a run without a kill.

    python benchmarks/kills.py
    python benchmarks/kills.py --runs 3 --only npy raw
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from _measure import Json, facts, filesystem, write
from PIL import Image

from streamvae import HostChunk, NpyFile, RawFile, StreamInfo, VideoFile
from streamvae._identity import Identity
from streamvae.abc import Resumable, Sink
from streamvae.sinks import AudioFile, Continued, FlacFile, Stills, WavFile, Y4MFile, ZarrArray

RESULTS = Path(__file__).parent / "results"
RATE = 48000

#: What the sinks are told of the clip, so that they may go on with it.
CLIP = Identity({"clip": "waves"}, {"weights": "none", "latents": "waves"})

Rows = np.ndarray[Any, Any]


def pictures(count: int) -> Rows:
    """Slow waves of colour, each picture another; (count, 48, 64, 3) uint8."""
    t, y, x = np.mgrid[0:count, 0:48, 0:64].astype(np.float32)
    waves = [np.sin(x / 40 + t / 9), np.cos(y / 30 - t / 11), np.sin((x + y) / 50 + t / 7)]
    rows: Rows = np.rint(np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    return rows


def sound(count: int) -> Rows:
    """Samples that tell their number, of 24 bits; (1000 * count, 1) float32."""
    rows: Rows = (np.arange(1000 * count, dtype=np.float32)[:, None] % 2**23) / 2**23
    return rows


def read_video(path: Path) -> Rows:
    """All pictures that FFmpeg finds, as RGB of the matrix that the sink was told."""
    matrix = av.video.reformatter.Colorspace.ITU709
    with av.open(path) as container:
        frames = [
            frame.to_ndarray(format="rgb24", src_colorspace=matrix)
            for frame in container.decode(video=0)
        ]
    return np.stack(frames) if frames else pictures(0)


def read_sound(path: Path) -> Rows:
    """All samples that FFmpeg finds; 24 bits stand at the upper end of 32."""
    parts = []
    with av.open(path) as container:
        try:
            for frame in container.decode(audio=0):
                part = frame.to_ndarray().reshape(-1, 1)
                parts.append(part if part.dtype == np.float32 else (part / 2**31).astype("f4"))
        except av.InvalidDataError:  # a last frame that is not whole
            pass
    return np.concatenate(parts) if parts else sound(0)


def read_raw(path: Path) -> Rows:
    """As the sidecar says; it may have died in the middle of a frame."""
    about = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    each = math.prod(about["shape"][1:])
    data: Rows = np.fromfile(path, about["dtype"])
    return data[: len(data) // each * each].reshape(-1, *about["shape"][1:])


def read_zarr(path: Path) -> Rows:
    """By zarr-python."""
    import zarr

    rows: Rows = np.asarray(zarr.open_array(path, mode="r")[:])
    return rows


def read_stills(template: Path) -> Rows:
    """All that are there, up to the first that is not."""
    found = []
    while (path := template.with_name(template.name % len(found))).exists():
        with Image.open(path) as still:
            found.append(np.asarray(still))
    return np.stack(found) if found else pictures(0)


@dataclass(frozen=True)
class Kind:
    """One way to keep frames, and how to read them back.

    Attributes:
        name: Of the file; with a place for a number, of many.
        make: A sink for this path.
        read: What is in a file of this kind.
        made: What is kept.
        exact: Equal to what was given; else 38 dB from it; None: counted only.
    """

    name: str
    make: Callable[[Path], Sink]
    read: Callable[[Path], Rows]
    made: Callable[[int], Rows] = pictures
    exact: bool | None = True


KINDS = {
    "mp4": Kind("a.mp4", lambda at: VideoFile(at, gop=8), read_video, exact=False),
    "mkv": Kind("a.mkv", lambda at: VideoFile(at, gop=8), read_video, exact=False),
    "webm": Kind("a.webm", lambda at: VideoFile(at, gop=8), read_video, exact=False),
    "npy": Kind("a.npy", NpyFile, np.load),
    "raw": Kind("a.raw", RawFile, read_raw),
    "zarr": Kind("a.zarr", lambda at: ZarrArray(at, length=8), read_zarr),
    "png": Kind("%05d.png", Stills, read_stills),
    "y4m": Kind("a.y4m", lambda at: Y4MFile(at, matrix="bt709"), read_video, exact=False),
    "wav": Kind("a.wav", WavFile, read_sound, sound),
    "m4a": Kind("a.m4a", AudioFile, read_sound, sound, exact=None),
    "opus": Kind("a.opus", AudioFile, read_sound, sound, exact=None),
    "flac": Kind("a.flac", FlacFile, read_sound, sound),
}


def chunks(rows: Rows, step: int) -> Iterator[HostChunk]:
    """``rows`` as a stream gives them."""
    for index, start in enumerate(range(0, len(rows), step)):
        data = rows[None, start : start + step].copy()
        yield HostChunk(index, start, "sound" if data.ndim == 3 else "video", data)


def about(rows: Rows) -> StreamInfo:
    """What a stream of ``rows`` would say of itself."""
    heard = rows.ndim == 2
    return StreamInfo(
        "clip",
        "sound" if heard else "video",
        "float32" if heard else "uint8",
        "exact",
        "none",
        "cpu",
        batch=1,
        fps=None if heard else 16.0,
        sample_rate=RATE if heard else None,
    )


def write_clip(kind: Kind, at: Path, count: int, told: mmap.mmap, begun: int) -> None:
    """Write a clip to its end, telling what is committed all the time."""
    rows = kind.made(count)
    heard = rows.ndim == 2
    sink = kind.make(at)

    def tell() -> None:
        told[:8] = sink.committed.to_bytes(8, "little")

    def keep_telling() -> None:
        while True:
            tell()
            time.sleep(1e-4)

    async def main() -> None:
        if isinstance(sink, Resumable):
            await sink.identify(CLIP)
        await sink.open(about(rows))
        threading.Thread(target=keep_telling, daemon=True).start()
        os.write(begun, b".")
        for chunk in chunks(rows, 1000 if heard else 4):
            await sink.write(chunk)
            tell()
        await sink.close()
        tell()

    asyncio.run(main())


def in_child(work: Callable[[], object]) -> int:
    """Fork, run ``work`` there, and give the child's number. Nothing here has threads yet."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001  # nothing of the parent may run here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(kind: Kind, place: Path, count: int, until: float | None) -> tuple[int, float]:
    """Have a clip written, and its writer killed ``until`` seconds after it began, if at all.

    Returns:
        What it had told as committed, and how long it took.
    """
    told, (ready, begun) = mmap.mmap(-1, 8), os.pipe()
    child = in_child(lambda: write_clip(kind, place / kind.name, count, told, begun))
    os.close(begun)
    os.read(ready, 1)
    os.close(ready)
    began = time.perf_counter()
    if until is not None:
        time.sleep(until)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if until is None and status:
        raise SystemExit(f"the writer of {kind.name} failed")
    return int.from_bytes(told[:], "little"), time.perf_counter() - began


def look(kind: Kind, place: Path, count: int, committed: int) -> Json:
    """What is left, and whether it is what was promised."""
    at, many = place / kind.name, "%" in kind.name
    complete = at.exists() or (many and committed == len(kind.made(count)))
    if not committed and not complete:
        return {"left": "nothing committed", "committed": 0, "found": 0, "lost": 0}
    path = at if many or complete else at.with_name(at.name + ".partial")
    found, expected = kind.read(path), kind.made(count)
    owed = len(expected) if complete else committed
    got, want = found[:owed], expected[:owed]
    if len(got) < owed:
        lost = owed - len(got)
    elif kind.exact is None:
        lost = 0
    elif kind.exact:
        lost = int((got != want).reshape(owed, -1).any(1).sum())
    else:
        errors = ((got.astype(float) - want.astype(float)) ** 2).reshape(owed, -1).mean(1)
        lost = int((10 * np.log10(255**2 / np.maximum(errors, 1e-9)) < 38).sum())
    left = "complete" if complete else "partial"
    return {"left": left, "committed": committed, "found": len(found), "lost": lost}


def looked(kind: Kind, place: Path, count: int, committed: int) -> Json:
    """`look`, in a process of its own: readers start threads, and threads do not fork."""
    out = place / "looked.json"
    child = in_child(
        lambda: out.write_text(json.dumps(look(kind, place, count, committed)), encoding="utf-8")
    )
    if os.waitpid(child, 0)[1]:
        return {"left": "unreadable", "committed": committed, "found": 0, "lost": committed}
    seen: Json = json.loads(out.read_text(encoding="utf-8"))
    return seen


def resume(kind: Kind, at: Path, count: int) -> None:
    """Go on with a clip whose writer was killed, to its end, if there is anything to do."""
    rows = kind.made(count)

    async def main() -> None:
        sink = Continued(kind.make(at))
        await sink.identify(CLIP)
        await sink.open(about(rows))
        for chunk in chunks(rows, 1000 if rows.ndim == 2 else 4):
            await sink.write(chunk)
        await sink.close()

    asyncio.run(main())


def resumed(kind: Kind, place: Path, count: int) -> bool | None:
    """Whether going on gives what a run without a kill gives; None where this kind cannot."""
    at = place / kind.name
    if kind.exact is None or not isinstance(kind.make(at), Resumable):
        return None
    last = place / (kind.name % (len(kind.made(count)) - 1)) if "%" in kind.name else at
    if not last.exists():
        child = in_child(lambda: resume(kind, at, count))
        if os.waitpid(child, 0)[1]:
            return False
    seen = looked(kind, place, count, len(kind.made(count)))
    return seen["lost"] == 0 and seen["found"] == len(kind.made(count))


def trial(kind: Kind, at: Path, count: int, until: float | None) -> tuple[Json, float]:
    """One clip written, killed or not, and looked at."""
    place = Path(tempfile.mkdtemp(dir=at))
    try:
        committed, took = run(kind, place, count, until)
        seen = looked(kind, place, count, committed)
        return seen | {"resumed": resumed(kind, place, count)}, took
    finally:
        shutil.rmtree(place)


def tried(kind: Kind, at: Path, said: argparse.Namespace, chance: random.Random) -> Json:
    """All runs of a kind: how long a whole clip takes first, then kills within that time."""
    whole, took = trial(kind, at, said.chunks * 4, None)
    if whole["left"] != "complete" or whole["lost"]:
        raise SystemExit(f"{kind.name} is not right without a kill: {whole}")
    kills = []
    for _ in range(said.runs):
        after = chance.uniform(0, took)
        kills.append({"after": after, **trial(kind, at, said.chunks * 4, after)[0]})
    return {"seconds": took, "of": whole["found"], "kills": kills}


def show(name: str, row: Json) -> None:
    """Print a line of the table."""
    kills, states = row["kills"], ("partial", "complete", "nothing committed", "unreadable")
    counts = [sum(kill["left"] == state for kill in kills) for state in states]
    committed = sorted(kill["committed"] for kill in kills)
    more = sum(kill["found"] > kill["committed"] for kill in kills)
    lost = sum(kill["lost"] for kill in kills)
    tried = [kill["resumed"] for kill in kills if kill["resumed"] is not None]
    went_on = f"{sum(tried)}/{len(tried)}" if tried else "-"
    print(
        f"{name:6s} {len(kills):5d} {counts[0]:8d} {counts[1]:9d} {counts[2]:8d} {counts[3]:11d}"
        f"   {committed[0]:6d} to {committed[-1]:6d} of {row['of']:6d} "
        f"{more:6d} {lost:6d} {went_on:>8s}",
        flush=True,
    )


def main() -> None:
    """Try all kinds, print a table, write the runs down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=30, help="kills of each kind")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--chunks", type=int, default=150, help="of a clip")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--at", type=Path, default=Path(tempfile.gettempdir()), help="where to")
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json", help="the JSON")
    said = parser.parse_args()
    chance = random.Random(said.seed)  # noqa: S311  # moments, no secrets
    print(
        "kind    runs  partial  complete  nothing  unreadable   committed                 "
        "more   lost  resumed"
    )
    kinds = {}
    for name in said.only:
        kinds[name] = tried(KINDS[name], said.at, said, chance)
        show(name, kinds[name])
    kind = filesystem(said.at)
    write(facts(torch.device("cpu")) | {"filesystem": kind, "kinds": kinds}, said.out)
    lost = sum(kill["lost"] for row in kinds.values() for kill in row["kills"])
    wrong = sum(kill["resumed"] is False for row in kinds.values() for kill in row["kills"])
    if lost or wrong:
        sys.exit(f"{lost} frames or samples lost that were called committed, {wrong} not resumed")


if __name__ == "__main__":
    main()
