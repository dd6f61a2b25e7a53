"""Streams to keep, the way a stage drives a sink, and how to read back what it kept."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._pixels import Kind
from streamvae.abc import Sink

Pictures = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


def describe(rows: Rows, kind: Kind = "video", **known: object) -> StreamInfo:
    """What a stream of ``rows`` would say of itself."""
    values: dict[str, object] = {
        "family": "AutoencoderKLWan",
        "mode": "exact",
        "step": "eager",
        "device": "cpu",
        "batch": 1,
        "output": "uint8" if rows.dtype == np.uint8 else "float32",
    }
    if kind == "video":
        values["fps"] = 16.0
    return StreamInfo(kind=kind, **(values | known))  # type: ignore[arg-type]


def cut(rows: Rows, kind: Kind = "video", sizes: Sequence[int] = (1, 4)) -> Iterator[HostChunk]:
    """Chunks of ``sizes`` rows, the last size again and again, read-only as the pipeline's are."""
    start = index = 0
    while start < len(rows):
        size = sizes[min(index, len(sizes) - 1)]
        part = rows[start : start + size].copy()
        data = part[:, None] if kind == "image" else part[None]
        data.flags.writeable = False
        yield HostChunk(index, start, kind, data)
        start, index = start + len(part), index + 1


def left_in(directory: Path) -> set[str]:
    """The names of the files there."""
    return {path.name for path in directory.iterdir()}


async def keep(sink: Sink, rows: Rows, kind: Kind = "video", **known: object) -> None:
    """Drive ``sink`` through a whole stream."""
    await sink.open(describe(rows, kind, **known))
    for chunk in cut(rows, kind):
        await sink.write(chunk)
    await sink.close()


def read_raw(path: Path) -> Rows:
    """Read a raw file as its sidecar says."""
    about = json.loads(path.with_name(path.name + ".json").read_text())
    rows: Rows = np.fromfile(path, about["dtype"]).reshape(about["shape"])
    return rows


def read_mp4(path: Path) -> Pictures:
    """All frames (T, H, W, 3), converted back from BT.709 limited range."""
    with av.open(path) as container:
        return np.stack([
            frame.to_ndarray(
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            )
            for frame in container.decode(video=0)
        ])


def smooth(count: int, height: int, width: int) -> Pictures:
    """Slow waves of colour, (count, height, width, 3)."""
    t, y, x = np.mgrid[0:count, 0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / 40 + t / 9), np.cos(y / 30 - t / 11), np.sin((x + y) / 50 + t / 7)]
    pictures: Pictures = np.rint(np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    return pictures


def psnr(a: Pictures, b: Pictures) -> float:
    """In decibels."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))
