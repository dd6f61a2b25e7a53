"""Measuring errors: a reference in a wider dtype is streamed, and compared with as it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from anyio.from_thread import start_blocking_portal

from .._chunks import DeviceFrames
from .._pixels import quantise
from .._stream import FrameStream, stream_decode
from ..abc import Codec
from ..codecs import ModuleCodec
from ._precision import DeviationSum, Precision, compare
from ._wider import WIDER, full_precision, obstacle, widened

#: A decode whose relative error is more than this differs by more than rounding.
_COMPARABLE = 0.25


@dataclass(frozen=True, slots=True)
class Frames:
    """What came one way, on the host, (B, T, ...).

    Attributes:
        values: As the decoder gives them, float32.
        bytes: uint8 pixels; of sound the values again.
    """

    values: torch.Tensor
    bytes: torch.Tensor


def measure_errors(
    codec: Codec,
    latents: torch.Tensor,
    ways: tuple[Frames, Frames],
    *,
    device: torch.device | None,
    begin: Callable[[], None],
    values: int,
) -> Precision | str:
    """Decode latents in a wider dtype, as an exact stream, and compare both ways with that.

    Nothing of the reference is kept but for the chunk that is compared.

    Args:
        codec: What decoded.
        latents: As its decoder got them: in its space, in the dtype of its weights.
        ways: A stream's frames, and those of the autoencoder's own decode: as many.
        device: Where to decode; None for where the weights are.
        begin: Called before: brings generators to where the other ways began.
        values: In float64 no more values than that are decoded.

    Returns:
        The errors, or why there are none.
    """
    wider, reason = WIDER.get(codec.dtype), obstacle(codec)
    if wider is None or reason:
        return reason or f"there is no wider dtype than {_named(codec.dtype)}"
    if wider == torch.float64 and ways[0].values.numel() > values:
        return "too much to decode in float64"
    place = device or codec.device
    sums = (DeviationSum(codec.kind), DeviationSum(codec.kind))
    axis = 0 if codec.kind == "image" else 1
    try:
        with full_precision(place):
            right = widened(cast("ModuleCodec", codec), place, wider)
            begin()
            stream = stream_decode(latents.to(place, wider), right, output="device")
            with start_blocking_portal("asyncio") as portal:
                portal.call(_compare, stream, ways, sums, axis)
    except torch.OutOfMemoryError:
        return f"there is not enough memory for a copy in {_named(wider)} on {place}"
    found = compare(f"{_named(wider)} on {place}", *sums)
    if not found.whole.error <= _COMPARABLE:
        return (
            f"decode itself is {found.whole.error:.2g} away from {found.reference}, which is no "
            "rounding (noise drawn in another dtype, perhaps)"
        )
    return found


async def _compare(
    stream: FrameStream,
    ways: tuple[Frames, Frames],
    sums: tuple[DeviationSum, DeviationSum],
    axis: int,
) -> None:
    async with stream:
        async for chunk in stream.chunks(bands=False):
            right = torch.as_tensor(cast("DeviceFrames", chunk).data).cpu()
            length = right.shape[axis]
            pixels = None if stream.info.kind == "sound" else quantise(right)
            for frames, total in zip(ways, sums, strict=True):
                total.add(frames.values.narrow(axis, chunk.start, length), right)
                if pixels is not None:
                    total.add_bytes(frames.bytes.narrow(axis, chunk.start, length), pixels)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
