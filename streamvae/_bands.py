"""Bands of pictures: which there are, and how they become whole pictures again."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from ._chunks import Band, DeviceFrames, HostChunk
from ._threads import Worker, outcome
from .abc import Banded, Codec

C = TypeVar("C", bound=HostChunk | DeviceFrames)


def bands_of(codec: Codec, shape: tuple[int, ...], mode: str) -> tuple[Band, ...]:
    """The bands that ``codec`` gives a chunk of latents of ``shape`` in; empty if in one piece."""
    if codec.kind != "image" or shape[codec.axis] != 1 or not isinstance(codec, Banded):
        return ()
    rows = codec.bands(shape, mode)
    return tuple(Band(one, rows[-1].stop) for one in rows) if len(rows) > 1 else ()


class Canvas:
    """One picture at a time: allocated with its first band, given with its last. Blocks."""

    def __init__(self) -> None:
        self._picture: Any = None
        self._index = 0

    def add(self, chunk: C) -> C | None:
        """Take a chunk; give a whole picture, or None while there are rows to come."""
        band = chunk.band
        if band is None:
            return chunk
        data: Any = chunk.data
        if band.rows.start == 0:
            shape = (*data.shape[:2], band.height, *data.shape[3:])
            on_device = isinstance(data, torch.Tensor)
            self._picture = data.new_empty(shape) if on_device else np.empty(shape, data.dtype)
            self._index = chunk.index
        self._picture[:, :, band.rows.start : band.rows.stop] = data
        if isinstance(data, torch.Tensor) and data.is_cuda:
            # Whoever gets it may read it in any stream, and the band's memory is about to go.
            torch.cuda.current_stream(data.device).synchronize()
        if not band.last:
            return None
        picture, self._picture = self._picture, None
        if isinstance(picture, np.ndarray):
            picture.flags.writeable = False
        return replace(chunk, index=self._index, data=picture, band=None)


class Joiner:
    """A canvas on a thread of its own, which starts with the first band.

    Args:
        bands: Whether bands may pass as they are.
    """

    def __init__(self, *, bands: bool) -> None:
        self._bands = bands
        self._canvas = Canvas()
        self._worker = Worker("streamvae join")
        # One that nobody closed (its loop died) must not leave its thread waiting for ever.
        weakref.finalize(self, self._worker.close).atexit = False

    async def add(self, chunk: C) -> C | None:
        """Take a chunk; give what is to be passed on now, if there is anything."""
        if self._bands or chunk.band is None:
            return chunk
        return await outcome(self._worker.submit(self._canvas.add, chunk))

    def close(self) -> None:
        """Let the thread go, and what is not complete."""
        self._canvas = Canvas()
        self._worker.close()
