"""What the first stream of a size pays for, paid before; and the graphs of those that follow."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ._chunks import StreamInfo
from ._errors import LatentsError, UsageError
from ._options import Mode
from ._stream import stream_decode
from ._transforms import Transform
from .abc import Backend


async def warmup(
    source: object,
    shape: tuple[int, ...],
    *,
    streams: int = 1,
    mode: Mode = "exact",
    latents_per_chunk: int | None = None,
    transform: Transform | None = None,
    device: str | int | torch.device | None = None,
    call: Mapping[str, object] | None = None,
    backend: Backend | None = None,
) -> StreamInfo:
    """Decode the first chunks of random latents, and record graphs for streams of their size.

    Threads, CUDA streams and cuDNN's choices are there afterwards, and, for autoencoders whose
    chunks hand their state on (Wan, QwenImage, CogVideoX, Magvit, KVAE, Kandinsky 6 SR, Mochi) on a
    CUDA device, the graph of a steady chunk with a state of its own for each of ``streams``
    streams at once. They live as long as the autoencoder, and until its weights move (see
    `release`). Pass the object that streams will be made of: weights loaded from a path are loaded
    anew by each stream.

    Recording reaches into the whole process: call this while nobody else uses the device, neither
    a stream nor a model on another thread (``torch.cuda.synchronize()`` there would raise, and
    break the recording). What torch has cached is given back to the device.

    Args:
        source: As for `stream_decode`.
        shape: Of latents to come, such as (1, 16, 21, 90, 160). Graphs want at least three chunks
            of them; more make no difference.
        streams: How many streams at once graphs are recorded for; others of that size, and those
            of another, are launched kernel by kernel.
        mode: As there.
        latents_per_chunk: As there.
        transform: As there.
        device: As there.
        call: As there.
        backend: As there.

    Returns:
        What is known of that stream; ``info.step`` says how chunks will be launched, ``"graph"``
        or ``"eager"`` and why.

    Raises:
        LatentsError: ``shape`` is not one of latents for ``source``.
        UsageError: Options contradict each other, or streams of ours use the device.
    """
    if streams < 1:
        raise UsageError(f"expected streams of at least 1, got {streams}")
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
    stream._start().supervisor.warm_streams = streams
    async with stream:
        async for chunk in stream.chunks():
            del chunk
        return stream.info
