"""What is known of a stream, as it becomes known: the making of `StreamInfo`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from . import stages
from ._bands import bands_of
from ._chunks import LatentChunk, StreamInfo
from ._options import Options
from ._plan import Plan
from ._recipe import Preparation
from ._rehearsal import planned
from .abc import Backend, ChunkPlan, Codec, Sink
from .codecs import ModuleCodec

logger = logging.getLogger("streamvae")


def described(
    codec: Codec,
    plan: ChunkPlan,
    options: Options,
    *,
    step: str,
    device: torch.device,
    latents_shape: tuple[int, ...] | None,
) -> StreamInfo:
    """What is known once weights are loaded, before any latents are read."""
    return StreamInfo(
        family=codec.family,
        kind=codec.kind,
        output="float32" if codec.kind == "sound" and options.output == "uint8" else options.output,
        mode=options.mode,
        step=step,
        device=str(device),
        latents_shape=latents_shape,
        latents_per_chunk=plan.rest,
        fps=options.fps,
        sample_rate=codec.sample_rate,
        exactness=codec.exactness,
    )


def shaped(
    info: StreamInfo,
    codec: Codec,
    first: LatentChunk,
    options: Options,
    preparation: Preparation,
) -> StreamInfo:
    """``info`` with what the first latents tell."""
    shape = tuple(first.pieces[0].shape)
    picture = None if options.transform is not None else preparation.picture or codec.picture(shape)
    whole = options.transform is not None or preparation.finish is not None
    bands = 0 if whole else len(bands_of(codec, shape, options.mode))
    known = info.latents_shape
    return replace(
        info,
        batch=None if codec.kind == "image" else (1 if codec.axis == 0 else shape[0]),
        frames=None if known is None else codec.frames(known[codec.axis]),
        height=None if picture is None else picture[0],
        width=None if picture is None else picture[1],
        bands=(bands or 1) if all(map(stages.takes_bands, options.sinks)) else 1,
        plan=None if known is None else _planned(info, codec, known, options, whole=whole),
    )


def noted(info: StreamInfo, codec: Codec, first: LatentChunk, notes: tuple[str, ...]) -> StreamInfo:
    """``info`` with what the user should know, which the log gets too; ``notes`` come first."""
    shape = info.latents_shape or tuple(first.pieces[0].shape)
    info = replace(info, notes=(*notes, *codec.notes(shape)))
    for note in info.notes:
        logger.warning("%s", note)
    return info


def planar(info: StreamInfo, sinks: Sequence[Sink], backend: Backend) -> bool:
    """Whether frames that only ``sinks`` get are to be planes of 4:2:0."""
    if info.kind != "video" or info.output != "uint8" or not sinks:
        return False
    wanted = all("yuv420p" in getattr(sink, "takes", ()) for sink in sinks)
    return wanted and bool(getattr(backend, "makes_planes", False))


def _planned(
    info: StreamInfo, codec: Codec, shape: tuple[int, ...], options: Options, *, whole: bool
) -> Plan:
    """The plan of a stream. It keeps no weights, since ``info`` may be kept."""
    return planned(
        codec,
        shape,
        options.latents_per_chunk,
        options.mode,
        output=options.output,
        queue_size=options.queue_size,
        device=info.device,
        again=codec.renewal() if isinstance(codec, ModuleCodec) else lambda: codec,
        alone=options.transform is None,
        whole=whole,
    )
