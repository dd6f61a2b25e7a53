"""The same pipeline for people without a loop: scripts, notebooks, workers.

Each call runs its stream on an event loop in a thread of its own, so it also works where a loop
is running already, as in Jupyter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from typing import TYPE_CHECKING, TypeVar, Unpack

from ._av import AVOptions, stream_decode_av
from ._chunks import Array, Frame
from ._errors import UsageError
from ._frame_iterator import FrameIterator
from ._loop_thread import LoopThread
from ._merged import AVStats, AVStream
from ._options import SinkLike, StreamOptions, sinks_of
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
    **options: Unpack[StreamOptions],
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
    stream = stream_decode(latents, source, sinks=_somewhere(sinks), **options)
    stream._unwatch()
    return _run(stream, stream.finish)


async def asave(
    latents: LatentsLike,
    source: object = None,
    sinks: SinkLike | Iterable[SinkLike] = (),
    **options: Unpack[StreamOptions],
) -> StreamStats:
    """As `save`, on the loop that is running."""
    stream = stream_decode(latents, source, sinks=_somewhere(sinks), **options)
    stream._unwatch()
    async with stream:
        return await stream.finish()


def iter_decode(
    latents: LatentsLike,
    source: object = None,
    *,
    sinks: SinkLike | Iterable[SinkLike] = (),
    **options: Unpack[StreamOptions],
) -> Generator[Frame, None, None]:
    """Iterate over frames as they get ready, without a loop. Options as for `stream_decode`.

    Nothing starts before the first frame is asked for; leaving the iteration early stops the
    stream as soon as the generator is closed (then this returns when everything is given back) or
    collected (then it ends by itself).
    """
    return FrameIterator(stream_decode(latents, source, sinks=sinks, **options), _frames)


def collect(
    latents: LatentsLike,
    source: object = None,
    *,
    sinks: SinkLike | Iterable[SinkLike] = (),
    **options: Unpack[StreamOptions],
) -> Array | torch.Tensor:
    """Decode into one array: video (B, T, H, W, C), images (N, H, W, C), sound (B, S, C)."""
    stream = stream_decode(latents, source, sinks=sinks, **options)
    return _run(stream, stream.collect)


def save_av(
    video_latents: LatentsLike,
    audio_latents: LatentsLike,
    source: object,
    **options: Unpack[AVOptions],
) -> AVStats:
    """Decode a video and its sound into files, and return what each stage of both did.

    ``save_av(video, audio, pipe, sinks="clip.mp4", fps=24.0)`` makes one file of both.

    Args:
        video_latents: See `stream_decode_av`.
        audio_latents: See `stream_decode_av`.
        source: See `stream_decode_av`.
        **options: Every other option of `stream_decode_av`: at least one of ``sinks``,
            ``video_sinks`` and ``audio_sinks``.

    Raises:
        UsageError: There is nowhere to save to.
        Exception: As `stream_decode_av`; what was accepted before it stays readable as
            ``.partial``.
    """
    if all(options.get(one, ()) == () for one in ("sinks", "video_sinks", "audio_sinks")):
        raise UsageError("expected at least one path or sink to save to, got none")
    stream = stream_decode_av(video_latents, audio_latents, source, **options)
    stream._unwatch()
    return _run(stream, stream.finish)


def iter_decode_av(
    video_latents: LatentsLike,
    audio_latents: LatentsLike,
    source: object,
    **options: Unpack[AVOptions],
) -> Generator[Frame, None, None]:
    """As `iter_decode`, over pictures and blocks of sound. Options as for `stream_decode_av`."""
    return FrameIterator(stream_decode_av(video_latents, audio_latents, source, **options), _both)


def collect_av(
    video_latents: LatentsLike,
    audio_latents: LatentsLike,
    source: object,
    **options: Unpack[AVOptions],
) -> tuple[Array | torch.Tensor, Array | torch.Tensor]:
    """Decode into two arrays, video (B, T, H, W, C) and sound (B, S, C)."""
    stream = stream_decode_av(video_latents, audio_latents, source, **options)
    return _run(stream, stream.collect)


def _frames(stream: FrameStream, thread: LoopThread) -> Generator[Frame, None, None]:
    chunks = stream.chunks(bands=False)
    while (chunk := thread.call(_next, chunks)) is not None:
        yield from chunk.frames(stream.info.rate)
        del chunk


def _both(stream: AVStream, thread: LoopThread) -> Generator[Frame, None, None]:
    frames = aiter(stream)
    while (frame := thread.call(_next, frames)) is not None:
        yield frame
        del frame


def _run(stream: FrameStream | AVStream, to_the_end: Callable[[], Awaitable[T]]) -> T:
    """Enter ``stream`` on a loop of its own, in a thread of its own, and run it to the end."""

    async def run() -> T:
        async with stream:
            return await to_the_end()

    # Async iterables of latents and async sinks run there: they are the caller's.
    thread = LoopThread(stream._caller.enter)
    try:
        return thread.call(run)
    finally:
        thread.close()


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


def _somewhere(sinks: SinkLike | Iterable[SinkLike]) -> SinkLike | Iterable[SinkLike]:
    found = sinks_of(sinks)
    if not found:
        raise UsageError("expected at least one path or sink to save to, got none")
    return found
