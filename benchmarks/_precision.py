"""How far fast mode is from float32: decoders of the same weights in lockstep, chunk by chunk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import cast

import torch
from _measure import Json
from torch import nn

from streamvae._pixels import channels_last, quantise
from streamvae.abc import Codec, Decoder
from streamvae.codecs import ModuleCodec, codec_for
from streamvae.fast import FusedWan, Stepped, fastest
from streamvae.fast._fastvae import fused
from streamvae.report import Precision
from streamvae.report._precision import DeviationSum, compare
from streamvae.report._steps import kind_of
from streamvae.report._wider import WIDER, full_precision, widened


def steps(codec: Codec) -> dict[str, Stepped]:
    """The decoders to be held against float32: diffusers' own, fast mode's, and fastvae's."""
    found = {
        "own": Stepped(codec, lambda: "eager"),
        "fast": fastest(codec, codec.device),
    }
    theirs = fused(codec, codec.device)
    if isinstance(theirs, FusedWan) and kind_of(found["fast"].step()) != theirs.step_name:
        name = theirs.step_name
        found["fastvae"] = Stepped(theirs, lambda: name)
    return found


@torch.no_grad()
def measure(vae: nn.Module, z: torch.Tensor, reference: torch.device | None = None) -> Json:
    """Errors of each decoder against an exact walk of a wider copy of the weights: in float32.

    No more than a chunk of each is held, whatever the clip's length.

    Args:
        vae: In the dtype that is measured; if that is float32, it is held against float64.
        z: Its latents, on its device, in its dtype.
        reference: Where the copy decodes; None for where ``vae`` is.

    Returns:
        By decoder: its step, errors, and for all but the own one the ratio, chunk by chunk too.
    """
    codec = codec_for(vae)
    place, wider = reference or codec.device, WIDER[codec.dtype]
    ways = steps(codec)
    sums = {way: DeviationSum(codec.kind) for way in ways}
    with contextlib.ExitStack() as stack:
        right = _Walk(widened(cast("ModuleCodec", codec), place, wider), z, stack)
        walks = {way: _Walk(stepped.codec, z, stack) for way, stepped in ways.items()}
        for number in range(len(right)):
            with full_precision(place):
                true = right.chunk(number)
            for way, walk in walks.items():
                _add(sums[way], walk.chunk(number), true, codec)
    found: Json = {}
    for way, stepped in ways.items():
        precision = compare(f"{wider} on {place}", sums[way], sums["own"])
        found[way] = {"step": stepped.step(), **asdict(precision.streamed)}
        if found[way]["psnr"] == math.inf:  # which JSON does not know
            found[way]["psnr"] = None
        if way != "own":
            found[way] |= _compared(precision)
    return found


def _compared(precision: Precision) -> Json:
    half = len(precision.drift) // 2
    early, late = precision.drift[:half], precision.drift[half:]
    return {
        "ratio": precision.ratio,
        "ratio, worst chunk": max(precision.drift),
        "ratio, later half / earlier": _mean(late) / _mean(early) if early else 1.0,
        "ratio of each chunk": precision.drift,
        "accepted": precision.accepted,
    }


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _add(
    total: DeviationSum, frames: torch.Tensor | None, true: torch.Tensor | None, codec: Codec
) -> None:
    if frames is None or true is None:
        if frames is not true:
            raise ValueError("expected chunks from all decoders at the same time, got some")
        return
    values = channels_last(frames, codec.kind)
    right = channels_last(true, codec.kind).to(values.device)
    total.add(values, right)
    if codec.kind != "sound":
        total.add_bytes(quantise(values), quantise(right))


class _Walk:
    """One decoder on its way through latents, chunk by chunk."""

    def __init__(self, codec: Codec, z: torch.Tensor, stack: contextlib.ExitStack) -> None:
        self._z = z.to(codec.device, codec.dtype)
        self._decoder: Decoder = codec.decoder()
        stack.callback(self._decoder.close)
        if codec.wants_all:
            self._decoder.begin(self._z)
        self._pieces = list(_pieces(codec, self._z))
        self._drains = codec.drains(z.shape[codec.axis])

    def __len__(self) -> int:
        return len(self._pieces) + self._drains

    def chunk(self, number: int) -> torch.Tensor | None:
        """The next chunk: ``number`` of them were given before."""
        if number < len(self._pieces):
            return self._decoder.decode(self._pieces[number])
        return self._decoder.drain()


def _pieces(codec: Codec, z: torch.Tensor) -> Iterator[torch.Tensor]:
    begin, length = 0, z.shape[codec.axis]
    for size in codec.cut(length, None, "exact").sizes():
        if begin >= length:
            return
        yield z.narrow(codec.axis, begin, min(size, length - begin))
        begin += size
