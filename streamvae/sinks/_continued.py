"""A sink that goes on with what it has: what is decoded again is compared, not written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamvae._chunks import Array, HostChunk, StreamInfo
from streamvae._errors import UsageError
from streamvae._identity import Identity
from streamvae.abc import Resumable, Sink


class Continued:
    """Any resumable sink, opened to go on; it is given every chunk of the stream, from the first.

    Args:
        sink: The sink.

    Raises:
        UsageError: It cannot go on.
    """

    def __init__(self, sink: Sink) -> None:
        if not isinstance(sink, Resumable):
            raise UsageError(
                f"expected sinks that can go on with what is there, got {sink.name}, which cannot"
            )
        self._sink: Resumable = sink
        self._kept = 0

    @property
    def name(self) -> str:
        """The sink's."""
        return self._sink.name

    @property
    def committed(self) -> int:
        """The sink's: what was there is counted."""
        return self._sink.committed

    @property
    def takes_bands(self) -> bool:
        """The sink's."""
        return bool(getattr(self._sink, "takes_bands", False))

    @property
    def takes(self) -> tuple[str, ...]:
        """The sink's; none if it does not say so."""
        return tuple(getattr(self._sink, "takes", ()))

    async def identify(self, identity: Identity) -> None:
        """Tell the sink."""
        await self._sink.identify(identity)

    async def open(self, info: StreamInfo) -> None:
        """Find what is there."""
        self._kept = await self._sink.resume(info)

    async def write(self, chunk: HostChunk) -> None:
        """Compare what is there of a chunk, write what is not."""
        if chunk.start < self._kept:
            there, missing = _split(chunk, self._kept - chunk.start)
            if not await self._sink.recheck(there):
                self._kept = 0
            elif missing is None:
                return
            else:
                chunk = missing
            del there, missing
        await self._sink.write(chunk)

    async def close(self) -> None:
        """Complete."""
        await self._sink.close()

    async def abort(self) -> None:
        """Stop early."""
        await self._sink.abort()


def _split(chunk: HostChunk, count: int) -> tuple[HostChunk, HostChunk | None]:
    """The first ``count`` frames of a chunk and the others; bands of a picture stay whole."""
    if len(chunk) <= count or chunk.band is not None:
        return chunk, None
    items = (slice(None),) if chunk.kind == "image" else (slice(None), slice(None))
    first, rest = (*items[:-1], slice(count)), (*items[:-1], slice(count, None))
    return (
        replace(chunk, data=_whole(chunk.data[first])),
        replace(chunk, start=chunk.start + count, data=_whole(chunk.data[rest])),
    )


def _whole(data: Array) -> Array:
    part: Array = np.ascontiguousarray(data)  # type: ignore[assignment]  # numpy forgets the dtype
    part.flags.writeable = False
    return part
