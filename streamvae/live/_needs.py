"""What memory a request will take, told by the plan of its stream before it is let in."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import torch

from .._options import Mode
from .._pixels import Output
from .._source import resolve
from .._threads import Worker, outcome
from ..codecs import ModuleCodec
from ..latents import LatentsLike, open_latents
from ._admission import Need

#: Plans that are remembered.
_REMEMBERED = 64


class Planned(TypedDict, total=False):
    """Those options of a stream that its memory depends on; see `streamvae.stream_decode`."""

    normalized: bool
    mode: Mode
    latents_per_chunk: int | None
    output: Output
    queue_size: int
    call: Mapping[str, object] | None


class Needs:
    """Finds out what streams over one autoencoder take, one at a time, on a thread of its own.

    A rehearsal takes a second or two for a large model, so what was found is remembered by shape
    and options (and the autoencoder's tiling is taken to stay as it is).

    Args:
        source: What decodes them, as `streamvae.stream_decode` takes it; loaded.
        share: Taken for streams of which it cannot be told: latents of unknown shape, a codec or a
            transform of one's own.
    """

    def __init__(self, source: object, share: int) -> None:
        self._source = source
        self._share = Need(share)
        self._worker = Worker("streamvae plan")
        self._found: OrderedDict[tuple[object, ...], Need] = OrderedDict()
        self._closed = False

    async def of(self, latents: LatentsLike, options: Planned, *, alone: bool = True) -> Need:
        """What a stream of ``latents`` with these options takes.

        Args:
            latents: As `streamvae.stream_decode` takes them.
            options: The stream's.
            alone: Whether memory is taken by nobody but the codec.

        Raises:
            LatentsError: They are no latents that can be decoded here.
            UsageError: The options do not fit the codec.
        """
        shape = await shape_of(latents)
        if shape is None or not alone or self._closed:
            return self._share
        return await outcome(self._worker.submit(self._need, shape, options))

    def close(self) -> None:
        """Let the thread end, and the source go; who still asks is told the share."""
        self._closed = True
        self._source = None
        self._worker.close()

    def _need(self, shape: tuple[int, ...], options: Planned) -> Need:
        codec, preparation = resolve(
            self._source,
            normalized=options.get("normalized", False),
            device=None,
            call=options.get("call") or {},
        )
        if preparation.view is not None:
            shape = tuple(preparation.view(torch.empty(shape, device="meta")).shape)
        if not isinstance(codec, ModuleCodec):
            codec.check(shape)
            return self._share
        asked = (
            options.get("latents_per_chunk"),
            options.get("mode", "exact"),
            options.get("output", "uint8"),
            options.get("queue_size", 2),
        )
        key = (type(codec), codec.dtype, shape, *asked)
        if key not in self._found:
            self._found[key] = Need.of(codec.plan(shape, *asked)) or self._share
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]


async def shape_of(latents: LatentsLike) -> tuple[int, ...] | None:
    """The shape of ``latents``, which for a file is read there; None if nobody knows it yet.

    Raises:
        LatentsError: The file holds no latents.
    """
    if isinstance(latents, (torch.Tensor, np.ndarray)):
        return tuple(latents.shape)
    if not isinstance(latents, (str, os.PathLike)):
        return None
    source = open_latents(latents, lambda _: None)
    try:
        await source.open()
        return source.shape
    finally:
        await source.aclose()
