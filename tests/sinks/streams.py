"""Streams to keep: what is known of them, their chunks, and the way a stage drives a sink."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._pixels import Kind
from streamvae.abc import Sink

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


async def keep(sink: Sink, rows: Rows, kind: Kind = "video", **known: object) -> None:
    """Drive ``sink`` through a whole stream."""
    await sink.open(describe(rows, kind, **known))
    for chunk in cut(rows, kind):
        await sink.write(chunk)
    await sink.close()
