"""The same pipeline for people without a loop: scripts, notebooks, workers.

Each call runs its stream on an event loop in a thread of its own, so it also works where a loop
is running already, as in Jupyter.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from ._chunks import Array, Frame
from ._errors import UsageError
from ._options import SinkLike, sinks_of
from ._stats import StreamStats
from ._stream import FrameStream, stream_decode
from .latents import LatentsLike

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def save(
    latents: LatentsLike,
    source: object = None,
    sinks: SinkLike | Iterable[SinkLike] = (),
    **options: Any,
) -> StreamStats:
    """Decode into one or several files (or sinks) and return what each stage did.

    Args:
        latents: See `stream_decode`.
        source: See `stream_decode`.
        sinks: At least one path or sink.
        **options: Every other option of `stream_decode`.

    Raises:
        UsageError: There is nowhere to save to.
        Exception: As `stream_decode`; what was accepted before it stays readable as ``.partial``.
    """
    with _running(latents, source, _somewhere(sinks), options) as (portal, stream):
        return portal.call(stream.finish)


async def asave(
    latents: LatentsLike,
    source: object = None,
    sinks: SinkLike | Iterable[SinkLike] = (),
    **options: Any,
) -> StreamStats:
    """As `save`, on the loop that is running."""
    async with stream_decode(latents, source, sinks=_somewhere(sinks), **options) as stream:
        return await stream.finish()


def iter_decode(latents: LatentsLike, source: object = None, **options: Any) -> Iterator[Frame]:
    """Iterate over frames as they get ready, without a loop. Options as for `stream_decode`."""
    sinks = sinks_of(options.pop("sinks", ()))
    with _running(latents, source, sinks, options) as (portal, stream):
        chunks = stream.chunks()
        while (chunk := portal.call(_next, chunks)) is not None:
            yield from chunk.frames(stream.info.rate)


def collect(
    latents: LatentsLike, source: object = None, **options: Any
) -> Array | torch.Tensor:
    """Decode into one array: video (B, T, H, W, C), images (N, H, W, C), sound (B, S, C)."""
    sinks = sinks_of(options.pop("sinks", ()))
    with _running(latents, source, sinks, options) as (portal, stream):
        return portal.call(stream.collect)


@contextlib.contextmanager
def _running(
    latents: LatentsLike,
    source: object,
    sinks: SinkLike | Iterable[SinkLike],
    options: dict[str, Any],
) -> Iterator[tuple[BlockingPortal, FrameStream]]:
    """A stream entered on a loop of its own, in a thread of its own, and left again."""
    # Made here: bad options raise before there is a thread, and the latents' stream is the caller's.
    stream = stream_decode(latents, source, sinks=sinks, **options)
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(stream):
        yield portal, stream


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


def _somewhere(sinks: SinkLike | Iterable[SinkLike]) -> SinkLike | Iterable[SinkLike]:
    found = sinks_of(sinks)
    if not found:
        raise UsageError("expected at least one path or sink to save to, got none")
    return found
