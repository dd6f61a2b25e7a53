"""stream_decode and what it returns."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio

from ._bands import Joiner
from ._caller import ThreadState
from ._chunks import Array, Frame, StreamInfo
from ._collect import Collector
from ._errors import ClosedError, ConcurrentUseError, SinkTimeout, UsageError, clear_frames
from ._identified import Identification
from ._options import Mode, Options, Progress, SinkLike, device_of, resumed, sinks_of
from ._pixels import Output
from ._stats import StreamStats
from ._supervisor import Chunk, Supervisor
from ._tee import OnSinkError
from ._transforms import Transform
from .abc import Backend
from .backends import mark, mark_weights
from .latents import LatentsLike, open_latents
from .stages import NonFinite

if TYPE_CHECKING:
    from types import TracebackType

    import torch

T = TypeVar("T")


def stream_decode(
    latents: LatentsLike,
    source: object = None,
    *,
    sinks: SinkLike | Iterable[SinkLike] = (),
    fps: float | None = None,
    normalized: bool = False,
    mode: Mode = "exact",
    latents_per_chunk: int | None = None,
    output: Output = "uint8",
    transform: Transform | None = None,
    device: str | int | torch.device | None = None,
    queue_size: int = 2,
    progress: Progress = False,
    timeout: float | None = None,
    sink_timeout: float = 10.0,
    write_timeout: float | None = None,
    on_sink_error: OnSinkError = "stop",
    resume: bool = False,
    nonfinite: NonFinite = "raise",
    call: Mapping[str, object] | None = None,
    backend: Backend | None = None,
) -> FrameStream:
    """Decode ``latents`` and stream the frames as they get ready, in constant memory.

    The frames are those of ``vae.decode(latents)``, bit for bit in exact mode. Nothing is loaded,
    opened or started before ``async with`` is entered or the first frame is asked for.

    What is yours and runs on threads of ours (iterables of latents, transforms, sinks, your
    autoencoder) runs as if called from here: with the autocast, torch's modes, CUDA device and
    current stream of this call, and in a copy of the context (``contextvars``) of whoever starts
    the stream. So under ``torch.autocast`` frames are what ``vae.decode`` gives under it.

    Args:
        latents: A tensor or numpy array (video (B, C, T, h, w), image (B, C, h, w), sound
            (B, C, T)), a path (.safetensors, .npy, .pt), or an iterable or async iterable of
            such tensors along time (image: along the batch). Floating; cast to the weights' dtype.
        source: A diffusers autoencoder (also compiled, offloaded or hooked), a diffusers pipeline
            (then latents are what its ``output_type="latent"`` returned), a path or hub id, a
            `Codec`, an autoencoder of mel spectrograms and its vocoder as a pair, or None for the
            embedded VAE.
        sinks: One path or sink, or several; each accepts every frame before you see it.
        fps: Frames a second, for ``Frame.time`` and for sinks that need it.
        normalized: For a bare autoencoder: the latents are in the diffusion model's space.
        mode: ``"exact"``: bit-equal to the autoencoder's own decode. ``"fast"``: also plans that
            differ from it by rounding.
        latents_per_chunk: Latents decoded at once after the first; None for the family's own.
        output: ``"uint8"`` RGB by diffusers' PIL rule, ``"float32"`` (the decoder's values, pixels
            in [-1, 1]), or ``"device"`` (tensors in the weights' dtype, nothing is downloaded).
        transform: Called on the device with each chunk's float pixels in [-1, 1], channels
            first, pictures whole; gives float pixels in [-1, 1] on the same device, and may change
            height, width and channels, for all chunks alike. What it gives is copied.
        device: Where weights loaded here go. The user's own weights are never moved.
        queue_size: Chunks that fit between two stages.
        progress: True for a tqdm bar, a bar, or a callable of (frames done, frames in all).
        timeout: Seconds to wait at most for the device, each time.
        sink_timeout: Seconds a sink may take to end when the stream stops early.
        write_timeout: Seconds a sink may take to open, to accept a chunk, to complete; one that
            takes longer has failed. None: as long as it likes.
        on_sink_error: ``"stop"``: a sink's error ends the stream. ``"continue"``: that sink is
            aborted, the others and the frames go on, and the first such error is raised at the end,
            when all frames have come and the other sinks are complete; ``stats.failures`` has them.
        resume: Go on with what an interrupted stream left under ``.partial``. It is decoded again
            from the beginning, compared with what is there, and written from where that ends. The
            manifest beside it must be of the same weights, latents and options.
        nonfinite: What to do about NaN and infinity: ``"raise"`` or ``"warn"``.
        call: Keyword arguments that decoding depends on: of the pipeline's call (``height`` and
            ``width`` where its latents are packed, ``decode_timestep``, ``generator``, ...), or of
            a bare autoencoder's ``decode`` (``temb``, ``num_frames``).
            A ``generator`` is read as it stands when the first chunk is decoded. When the stream
            has drawn from it for the last time, it stands where ``decode`` would have left it, so
            that streams one after another get the noise of calls one after another (unless somebody
            else drew from it meanwhile: then it is left alone).
        backend: The device's backend; None for the real one. For tests.

    Raises:
        UsageError: Options contradict each other.
        LatentsError: ``latents`` is nothing that holds latents.
    """
    options = Options(
        sinks=resumed(sinks_of(sinks)) if resume else sinks_of(sinks),
        fps=fps,
        normalized=normalized,
        mode=mode,
        latents_per_chunk=latents_per_chunk,
        output=output,
        transform=transform,
        device=device_of(device),
        queue_size=queue_size,
        progress=progress,
        timeout=timeout,
        sink_timeout=sink_timeout,
        write_timeout=write_timeout,
        on_sink_error=on_sink_error,
        nonfinite=nonfinite,
        call=call or {},
        backend=backend,
    )
    caller = ThreadState.capture()
    opened = open_latents(latents, mark=mark if backend is None else backend.mark)
    weights = mark_weights(source)
    identified = Identification(latents, source, options, weights)
    return FrameStream(
        lambda: Supervisor(
            opened, source, options, weights, identification=identified, caller=caller
        ),
        caller,
    )


class FrameStream:
    """Frames as they get ready. Iterate it once; leave it early inside ``async with``.

    ``async for`` gives `Frame` objects, `chunks` gives whole chunks, `finish` runs to the end for
    the sinks' sake, `collect` gives one array. A stream that is dropped or left launches
    nothing more; the device still finishes what it was given, two chunks at most. Inside ``async
    with``, tasks, files and the decoder's state are given back before the block is left.
    """

    def __init__(self, supervise: Callable[[], Supervisor], caller: ThreadState) -> None:
        self._supervise = supervise
        self._caller = caller
        self._run: _Run | None = None
        self._unwatched = False
        self._dropped: weakref.finalize[[], FrameStream]  # made with _run
        self._iterated = False
        self._joiner = Joiner(bands=True)
        self._closed = False
        self._reason: Exception | None = None

    @property
    def info(self) -> StreamInfo:
        """What is known of the stream; there once it is entered or the first frame has come.

        Raises:
            ClosedError: The stream has not been opened.
        """
        if self._run is None or self._run.supervisor.info is None:
            raise ClosedError("expected an opened stream: info is there inside 'async with'")
        return self._run.supervisor.info

    @property
    def stats(self) -> StreamStats:
        """What each stage did so far."""
        return StreamStats() if self._run is None else self._run.supervisor.stats()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException as error:
            await left(self.aclose(), error)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await left(self.aclose(), error)

    def __aiter__(self) -> AsyncIterator[Frame]:
        self._claim(bands=False)
        return _Iteration(self, lambda chunk: chunk.frames(self.info.rate))

    def chunks(self, *, bands: bool = True) -> AsyncIterator[Chunk]:
        """Iterate over whole chunks: `HostChunk`, or `DeviceFrames` for ``output="device"``.

        Args:
            bands: Whether a picture that is decoded in bands of rows (``info.bands`` of them:
                autoencoders with ``enable_tiling()``) comes as these, each as soon as it is there;
                ``chunk.band`` tells its rows. Otherwise they are put together first. They are,
                too, where a sink takes nothing but whole pictures (``info.bands`` is 1 then).
        """
        self._claim(bands=bands)
        return _Iteration(self, lambda chunk: iter((chunk,)))

    async def finish(self) -> StreamStats:
        """Run a fresh stream to its end, for the sinks' sake, and return its stats.

        On a CUDA device video goes over the bus as planes of 4:2:0, half the bytes, if all sinks
        take these (``info.pixel_format``), unless the stream was entered before this call: then
        it cannot know yet that nobody will look at the frames.

        Raises:
            Exception: What ended it; where ``on_sink_error="continue"``, also the first error of a
                sink, once the others are complete, or as soon as none is left.
        """
        chunks = self.chunks()
        self._unwatch()
        self._start().supervisor.tee.alone = True
        async for chunk in chunks:
            del chunk
        return self.stats

    async def collect(self) -> Array | torch.Tensor:
        """All frames in one array, allocated once where their number is known beforehand.

        Returns:
            Video (B, T, H, W, C), images (N, H, W, C), sound (B, S, C).
        """
        collector = Collector()
        try:
            async for chunk in self.chunks():
                await collector.add(chunk, self.info.frames)
                del chunk
            return await collector.result()
        finally:
            collector.close()

    async def aclose(self) -> None:
        """Stop, and return when everything is given back. Idempotent.

        Raises:
            SinkTimeout: A sink did not end within ``sink_timeout``; its thread ends by itself.
            ConcurrentUseError: It runs on another loop.
        """
        self._check_loop()
        self._halt()
        if self._run is None:
            return
        if not self._run.task.done():
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._run.task])
        self._over(self._run)
        stuck, self._run.supervisor.stuck = self._run.supervisor.stuck, []
        for other in stuck[1:]:
            stuck[0].add_note(str(other))
        if stuck:
            raise stuck[0]

    def _unwatch(self) -> None:
        """Let only the sinks get the frames, in what format suits them; without effect later on."""
        self._unwatched = True

    def _halt(self) -> None:
        """Be closed, and stop without waiting for it."""
        self._closed = True
        if self._run is not None:
            self._run.task.cancel()

    def _fail(self, reason: Exception) -> None:
        """Stop without waiting for it; whoever asks for frames from now on gets ``reason``."""
        self._reason = self._reason or reason
        self._halt()

    def _claim(self, *, bands: bool) -> None:
        if self._iterated:
            raise ClosedError("expected a fresh stream, got one that was iterated before")
        self._iterated = True
        self._joiner = Joiner(bands=bands)

    def _check_open(self) -> None:
        if self._closed:
            raise self._reason or ClosedError(
                "expected an open stream, got one that has ended or was closed"
            )

    def _check_loop(self) -> None:
        if self._run is not None:
            self._run.check_loop()

    def _start(self) -> _Run:
        self._check_open()
        if self._run is None:
            loop = _running_loop()
            supervisor = self._supervise()
            supervisor.unwatched = self._unwatched
            task = loop.create_task(supervisor.run(), name="streamvae")
            task.add_done_callback(supervisor.task_done)
            self._run = _Run(supervisor, task)
            # The task does not end with whoever drops the stream unless it is told to.
            self._dropped = weakref.finalize(self, self._run.abandon)
            self._dropped.atexit = False
        self._check_loop()
        return self._run

    async def _open(self) -> None:
        """Start if need be; return when info is there (latents of known size: sinks open too)."""
        run = self._start()
        await run.supervisor.loaded.wait()
        if run.supervisor.sized:
            await run.supervisor.opened.wait()
        if run.task.done() and run.supervisor.outlet is None:
            await self._end(run)

    async def _next(self) -> Chunk:
        """The next chunk.

        Raises:
            StopAsyncIteration: That was all, and the sinks are complete.
        """
        run = self._start()
        try:
            await run.supervisor.opened.wait()
            if run.supervisor.outlet is not None:
                with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError):
                    while True:
                        part = await run.supervisor.outlet.receive()
                        chunk = await self._joiner.add(part)
                        del part
                        if chunk is not None:
                            return chunk
            await self._end(run)
        except BaseException as error:
            # A chunk handed over just as the wait is broken off is lost, and nobody would notice:
            # so a broken step is the last one, as it is in an async generator. Nor may that chunk
            # live on in the traceback, which a cancelled task keeps.
            clear_frames(error)
            self._halt()
            raise
        raise StopAsyncIteration

    async def _end(self, run: _Run) -> None:
        """Wait for the task and raise what ended it, if that was not the end of its work."""
        if not run.task.done():
            await asyncio.wait([run.task])
        self._closed = True
        self._over(run)
        if run.task.cancelled():
            raise self._reason or ClosedError("expected an open stream, got one that was closed")
        run.task.result()

    def _over(self, run: _Run) -> None:
        """Let go of what the task, which has ended, has left."""
        run.supervisor.pipeline.close()
        self._joiner.close()
        # It would keep the task, so its error, so that one's traceback, so this stream alive.
        self._dropped.detach()


async def left(closing: Awaitable[None], error: BaseException | None) -> None:
    """Leave a block that ``error`` has ended, or nothing: a sink that is stuck does not hide it.

    Raises:
        SinkTimeout: A sink did not end in time, and nothing else went wrong.
    """
    try:
        await closing
    except (SinkTimeout, ConcurrentUseError) as later:
        if error is None:
            raise
        # Whatever ends the block goes on, a cancellation above all.
        if str(later) not in (str(error), *getattr(error, "__notes__", ())):
            error.add_note(str(later))


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "expected a running asyncio loop (uvloop's will do, trio's will not), got none; "
            "without a loop use save, iter_decode or collect"
        ) from None


@dataclass(frozen=True, slots=True)
class _Run:
    """A stream's task and what it works on."""

    supervisor: Supervisor
    task: asyncio.Task[None]

    def check_loop(self) -> None:
        """Refuse another loop than the task's, where nobody would ever be woken.

        A task that is over has been waited for already.
        """
        if asyncio.get_running_loop() is not self.task.get_loop() and not self.task.done():
            raise ConcurrentUseError(
                "expected the event loop that the stream began on, got another one: open, iterate "
                "and close a stream on one loop"
            )

    def abandon(self) -> None:
        """Stop, from wherever a collection happens to run, even after the loop."""
        loop = self.task.get_loop()
        with contextlib.suppress(RuntimeError):  # closed just now, or without ending its tasks
            if loop.is_closed():
                self.supervisor.pipeline.close()
            else:
                loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if not self.task.cancel():
            self.supervisor.pipeline.close()


class Steps:
    """The steps of one pass, one at a time, as a generator's."""

    def __init__(self) -> None:
        self._inside = False

    def __enter__(self) -> None:
        if self._inside:
            raise ConcurrentUseError(
                "expected one task at a time to iterate a stream, got a second one meanwhile"
            )
        self._inside = True

    def __exit__(self, *_: object) -> None:
        self._inside = False


class _Iteration(Generic[T]):
    """One pass over a stream; dropping it early stops the stream."""

    def __init__(self, stream: FrameStream, split: Callable[[Chunk], Iterator[T]]) -> None:
        self._stream = stream
        self._split = split
        self._items: Iterator[T] = iter(())
        self._steps = Steps()
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        with self._steps:
            while True:
                if self._over:
                    raise StopAsyncIteration
                self._stream._check_open()
                for item in self._items:
                    return item
                try:
                    chunk = await self._stream._next()
                except StopAsyncIteration:
                    self._over = True
                    raise
                self._items = self._split(chunk)
                del chunk

    def __del__(self) -> None:
        run = self._stream._run
        # One that is closed was told to stop; it must not be kept by the loop, which would be told.
        if not (self._over or run is None or self._stream._closed):
            run.abandon()
