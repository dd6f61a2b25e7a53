"""The one task behind a stream: open, run, close; and what is given back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial

import anyio
import torch
from anyio.streams.memory import MemoryObjectReceiveStream

from . import stages
from ._chunks import DeviceFrames, HostChunk, LatentChunk, StreamInfo
from ._errors import FrameCountError, SinkTimeout
from ._events import Event
from ._options import Options
from ._pipeline import Pipeline
from ._plan import Plan
from ._progress import Reporter
from ._recipe import Preparation, Recipe
from ._rehearsal import planned
from ._source import resolve
from ._stats import Book, StreamStats
from ._threads import Worker, outcome
from .abc import Backend, ChunkPlan, Codec, Sink
from .backends import for_device
from .codecs import ModuleCodec
from .latents import LatentSource, TensorSource, cut, gathered, viewed, whole

logger = logging.getLogger("streamvae")

Chunk = HostChunk | DeviceFrames

#: Device and dtype of the weights.
Place = tuple[torch.device, torch.dtype]

_GATHERED = (
    "{} cuts its first chunk by the number of latents: latents that came one by one were gathered, "
    "and decoding began when all had come"
)


class Supervisor:
    """Runs one stream. `run` is the body of its task; everybody else only looks.

    Attributes:
        info: What is known; grows when the first latents have come.
        outlet: The last queue, once ``opened`` is set.
        loaded: Set when weights are loaded and ``info`` is there, or the task has ended.
        opened: Set when the sinks are open and stages run, or the task has ended.
        stuck: Sinks that did not end in time.
    """

    def __init__(
        self,
        latents: LatentSource,
        source: object,
        options: Options,
        weights: tuple[Event, ...] = (),
    ) -> None:
        self._latents = latents
        self._weights = weights
        self._source = source
        self._options = options
        self._opened_sinks: list[Sink] = []
        self._reporter = Reporter(options.progress)
        self._clock = asyncio.get_running_loop().time
        self.pipeline = Pipeline(options.queue_size, self._clock)
        self.book = Book(began=self._clock())
        self.info: StreamInfo | None = None
        self.outlet: MemoryObjectReceiveStream[Chunk] | None = None
        self.loaded = asyncio.Event()
        self.opened = asyncio.Event()
        self.stuck: list[SinkTimeout] = []
        self._notes: tuple[str, ...] = ()

    @property
    def sized(self) -> bool:
        """Whether the latents' shape is known without reading them."""
        return self._latents.shape is not None

    def stats(self) -> StreamStats:
        """What each stage did so far."""
        return self.book.snapshot(self._clock())

    def task_done(self, task: asyncio.Task[None]) -> None:
        """Wake whoever waits, also when the task was cancelled before its first step."""
        self.loaded.set()
        self.opened.set()
        if task.cancelled():
            self.pipeline.close()
        else:
            task.exception()  # whoever iterates gets it; nobody may be iterating

    async def run(self) -> None:
        """Run the stream to its end, and give everything back on every way out.

        Raises:
            Exception: Whatever went wrong first, as it was raised.
        """
        try:
            async with self._decoding() as (chunks, recipe, backend):
                self._connect(chunks, recipe, backend)
                self.book.opened = self._clock()
                self.opened.set()
                await self.pipeline.run()
                self._check_count(recipe)
            await self._close_sinks()
        except BaseException as error:
            await self._abort_sinks()
            for timeout in self.stuck:
                error.add_note(str(timeout))
            for sink in self._opened_sinks:
                if sink.committed:
                    error.add_note(f"Sink {sink.name} keeps the {sink.committed} before it.")
            raise
        finally:
            self.book.ended = self._clock()
            self._reporter.close()

    @contextlib.asynccontextmanager
    async def _decoding(
        self,
    ) -> AsyncGenerator[tuple[AsyncIterator[LatentChunk], Recipe, Backend], None]:
        """Everything opened for decoding, and given back."""
        try:
            codec, preparation, place = await self._load()
            device, _ = place
            self._latents = viewed(self._latents, preparation.view)
            await self._latents.open()
            if codec.needs_length and self._latents.shape is None:
                self._latents = await gathered(self._latents, codec)
                self._notes = (_GATHERED.format(codec.family),)
            plan = self._cut(codec)
            self.info = self._describe(codec, plan, device)
            backend = self._options.backend or for_device(device)
            self.loaded.set()
            latents, everything = await self._known(codec)
            async with contextlib.aclosing(cut(latents, plan, codec)) as chunks:
                del latents
                first = await anext(chunks)
                self.info = _shaped(self.info, codec, first, self._options, preparation.picture)
                self._noted(codec, first)
                await self._open_sinks(self.info)
                recipe = Recipe(
                    codec,
                    codec.decoder(),
                    self._options.output,
                    preparation,
                    self._options.transform,
                    everything,
                    place=place,
                )
                del everything
                # The first launch waits for the weights too; the others come after it.
                first = replace(first, arrived=(*first.arrived, *self._weights))
                source = _chain(first, chunks)
                del first  # else this frame keeps it for as long as the stream runs
                try:
                    async with contextlib.aclosing(source):
                        yield source, recipe, backend
                finally:
                    # Submitted before anything is awaited: no cancel can keep it from happening.
                    closing = backend.run(recipe.decoder.close)
                    with anyio.move_on_after(self._options.timeout):
                        await outcome(closing, keep=True)
        finally:
            await self._latents.aclose()

    def _noted(self, codec: Codec, first: LatentChunk) -> None:
        """Put what the user should know into ``info``, and into the log."""
        info = self.info
        assert info is not None  # noqa: S101  # described before the first chunk
        shape = info.latents_shape or tuple(first.pieces[0].shape)
        self.info = replace(info, notes=(*self._notes, *codec.notes(shape)))
        for note in self.info.notes:
            logger.warning("%s", note)

    async def _known(self, codec: Codec) -> tuple[LatentSource, torch.Tensor | None]:
        """Where to read latents from; all of them, if they are known and the codec wants them."""
        piece = await whole(self._latents, codec) if codec.wants_all else None
        if piece is None:
            return self._latents, None
        return TensorSource.of(piece), piece.tensor

    def _cut(self, codec: Codec) -> ChunkPlan:
        shape = self._latents.shape
        length = None if shape is None or len(shape) <= codec.axis else shape[codec.axis]
        return codec.cut(length, self._options.latents_per_chunk, self._options.mode)

    async def _load(self) -> tuple[Codec, Preparation, Place]:
        """Load weights on a thread of their own, which ends with it."""

        def load() -> tuple[Codec, Preparation, Place]:
            options = self._options
            codec, preparation = resolve(
                self._source,
                normalized=options.normalized,
                device=options.device,
                call=options.call,
            )
            return codec, preparation, (codec.device, codec.dtype)

        worker = Worker("streamvae load")
        future = worker.submit(load)
        worker.close()
        return await outcome(future)

    def _describe(self, codec: Codec, plan: ChunkPlan, device: torch.device) -> StreamInfo:
        return StreamInfo(
            family=codec.family,
            kind=codec.kind,
            output="float32"
            if codec.kind == "sound" and self._options.output == "uint8"
            else self._options.output,
            mode=self._options.mode,
            step="eager",
            device=str(device),
            latents_shape=self._latents.shape,
            latents_per_chunk=plan.rest,
            fps=self._options.fps,
            sample_rate=codec.sample_rate,
            exactness=codec.exactness,
        )

    async def _open_sinks(self, info: StreamInfo) -> None:
        for sink in self._options.sinks:
            self._opened_sinks.append(sink)
            try:
                await sink.open(info)
            except Exception as error:
                error.add_note(f"While sink {sink.name} was opened; nothing was decoded.")
                raise

    def _connect(
        self, chunks: AsyncIterator[LatentChunk], recipe: Recipe, backend: Backend
    ) -> None:
        """Wire the stages; what the last one gives is counted."""
        options, connect = self._options, self.pipeline.connect
        decode = partial(stages.decode, recipe=recipe, backend=backend, timeout=options.timeout)
        on_device = connect("decode", decode, chunks)
        if options.output == "device":
            settle = partial(
                stages.settle,
                backend=backend,
                kind=recipe.codec.kind,
                nonfinite=options.nonfinite,
                timeout=options.timeout,
            )
            self.outlet = connect("settle", settle, on_device, self._passed)
        else:
            download = partial(
                stages.download,
                backend=backend,
                kind=recipe.codec.kind,
                nonfinite=options.nonfinite,
                timeout=options.timeout,
            )
            on_host = connect("download", download, on_device)
            persist = partial(stages.persist, sinks=options.sinks)
            self.outlet = connect("persist", persist, on_host, self._passed)
        self.book.stages = self.pipeline.times

    def _passed(self, chunk: Chunk) -> None:
        self.book.passed(len(chunk), self._clock())
        self._reporter.advance(len(chunk), self.info)

    def _check_count(self, recipe: Recipe) -> None:
        expected = recipe.codec.frames(recipe.latents)
        if expected is not None and expected != self.book.frames:
            raise FrameCountError(
                f"expected {expected} frames from {recipe.latents} latents of "
                f"{recipe.codec.family}, got {self.book.frames}"
            )

    async def _close_sinks(self) -> None:
        for sink in self._opened_sinks:
            try:
                await sink.close()
            except Exception as error:
                error.add_note(f"While sink {sink.name} was closed; it has every frame.")
                raise

    async def _abort_sinks(self) -> None:
        """Have every opened sink keep what it accepted, each within the time it is given."""
        seconds = self._options.sink_timeout

        async def abort(sink: Sink) -> None:
            try:
                with anyio.move_on_after(seconds, shield=True) as scope:
                    await sink.abort()
            except Exception:
                logger.exception("sink %s failed while it was aborted", sink.name)
            if scope.cancelled_caught:
                self.stuck.append(SinkTimeout(sink.name, seconds))

        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for sink in self._opened_sinks:
                    group.start_soon(abort, sink)


def _shaped(
    info: StreamInfo,
    codec: Codec,
    first: LatentChunk,
    options: Options,
    finished: tuple[int, int] | None,
) -> StreamInfo:
    """``info`` with what the first latents tell; ``finished`` is a size that a pipeline gives."""
    shape = tuple(first.pieces[0].shape)
    picture = None if options.transform is not None else finished or codec.picture(shape)
    known = info.latents_shape
    return replace(
        info,
        batch=None if codec.kind == "image" else (1 if codec.axis == 0 else shape[0]),
        frames=None if known is None else codec.frames(known[codec.axis]),
        height=None if picture is None else picture[0],
        width=None if picture is None else picture[1],
        plan=None if known is None else _planned(info, codec, known, options),
    )


def _planned(info: StreamInfo, codec: Codec, shape: tuple[int, ...], options: Options) -> Plan:
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
    )


async def _chain(
    first: LatentChunk, rest: AsyncGenerator[LatentChunk, None]
) -> AsyncGenerator[LatentChunk, None]:
    yield first
    del first
    async for chunk in rest:
        yield chunk
        del chunk
