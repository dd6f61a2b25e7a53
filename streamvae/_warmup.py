"""What the first stream of a size pays for, paid before."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ._chunks import StreamInfo
from ._errors import LatentsError
from ._options import Mode
from ._recipe import Transform
from ._stream import stream_decode
from .abc import Backend

#: Chunks until all is there: one of its own kind, one to learn from, one as all that follow.
CHUNKS = 3


async def warmup(
    source: object,
    shape: tuple[int, ...],
    *,
    mode: Mode = "exact",
    latents_per_chunk: int | None = None,
    transform: Transform | None = None,
    device: str | int | torch.device | None = None,
    call: Mapping[str, object] | None = None,
    backend: Backend | None = None,
) -> StreamInfo:
    """Decode the first chunks of random latents, so that the next stream of their size starts warm.

    Threads, CUDA streams, cuDNN's choices and, for cached video decoders, the graph of a steady
    chunk are there afterwards, for as long as ``source`` lives (see `release`). Pass the object
    that streams will be made of: weights loaded from a path are loaded anew by each stream.

    Args:
        source: As for `stream_decode`.
        shape: Of latents to come, such as (1, 16, 21, 90, 160); their number hardly matters.
        mode: As there.
        latents_per_chunk: As there.
        transform: As there.
        device: As there.
        call: As there.
        backend: As there.

    Returns:
        What is known of that stream; ``info.step`` says how chunks will be launched.

    Raises:
        LatentsError: ``shape`` is not one of latents for ``source``.
        UsageError: Options contradict each other.
    """
    if not shape or min(shape) < 1:
        raise LatentsError(f"expected the shape of latents, all dimensions >= 1, got {shape}")
    stream = stream_decode(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)),
        source,
        mode=mode,
        latents_per_chunk=latents_per_chunk,
        output="device",
        transform=transform,
        device=device,
        call=call,
        backend=backend,
        nonfinite="warn",
    )
    count = 0
    async with stream:
        async for chunk in stream.chunks():
            del chunk
            count += 1
            if count == CHUNKS:
                break
        return stream.info
