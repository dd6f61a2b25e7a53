"""The one task behind a stream: open, run, close; and what is given back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial

import anyio
import torch
from anyio.streams.memory import MemoryObjectReceiveStream

from . import stages
from ._about import described, noted, planar, shaped
from ._caller import CallerContext, ThreadState, set_caller
from ._chunks import DeviceFrames, HostChunk, LatentChunk, StreamInfo
from ._errors import FrameCountError
from ._events import Event
from ._graphs import Graphs
from ._identified import Identification
from ._log import Log, clock_of
from ._options import Options
from ._pipeline import Pipeline
from ._progress import Reporter
from ._recipe import Preparation, Recipe, decoder_for
from ._source import resolve
from ._stats import Book, StreamStats
from ._tee import Tee
from ._threads import Worker, outcome
from .abc import Backend, ChunkPlan, Codec
from .backends import for_device
from .fast import Stepped, check_only_stream, fastest, launched
from .latents import LatentSource, TensorSource, cut, gathered, viewed, whole

Chunk = HostChunk | DeviceFrames

#: Device and dtype of the weights.
Place = tuple[torch.device, torch.dtype]

#: Chunks until all is warm: one of its own kind, one that follows it, one as all others.
WARM_CHUNKS = 3

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
        tee: The sinks.
        unwatched: Whether nobody but the sinks gets the frames.
        warm_streams: Of `streamvae.warmup`: how many streams graphs are recorded for, after
            `WARM_CHUNKS` chunks, none of which counts.
    """

    def __init__(
        self,
        latents: LatentSource,
        source: object,
        options: Options,
        weights: tuple[Event, ...] = (),
        *,
        identification: Identification | None = None,
        caller: ThreadState | None = None,
    ) -> None:
        self._latents = latents
        self._weights = weights
        self._source = source
        self._options = options
        self._identification = identification
        self._caller = caller or ThreadState.capture()
        self.tee = Tee(
            options.sinks,
            on_error=options.on_sink_error,
            write_timeout=options.write_timeout,
            abort_timeout=options.sink_timeout,
        )
        self._reporter = Reporter(options.progress)
        self._clock = clock_of(asyncio.get_running_loop())
        began = self._clock()
        self._log = Log(self._clock, began)
        self.pipeline = Pipeline(options.queue_size, self._clock, self._log.visit)
        self.book = Book(began=began, log=self._log)
        self._info: StreamInfo | None = None
        self.outlet: MemoryObjectReceiveStream[Chunk] | None = None
        self.loaded = asyncio.Event()
        self.opened = asyncio.Event()
        self.stuck = self.tee.stuck
        self.unwatched = False
        self.warm_streams: int | None = None
        self._notes: tuple[str, ...] = ()
        self._stepped: Stepped | None = None

    @property
    def info(self) -> StreamInfo | None:
        """What is known; how chunks are decoded may turn out other than it was said."""
        if self._info is None or self._stepped is None:
            return self._info
        step, notes = self._stepped.step(), self._stepped.notes
        if self._info.step != step:
            self._info = replace(self._info, step=step)
        if not set(notes) <= set(self._info.notes):
            self._info = replace(self._info, notes=(*self._info.notes, *notes))
        return self._info

    @property
    def sized(self) -> bool:
        """Whether the latents' shape is known without reading them."""
        return self._latents.shape is not None

    def stats(self) -> StreamStats:
        """What each stage did so far."""
        return replace(self.book.snapshot(self._clock()), failures=self.tee.failures)

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
        set_caller(self._caller)
        try:
            async with self._decoding() as (chunks, recipe, backend):
                self._connect(chunks, recipe, backend)
                self.book.opened = self._clock()
                self.opened.set()
                await self.pipeline.run()
                self.book.flowed = self._clock()
                if self.warm_streams is None:
                    self._check_count(recipe)
                elif self._stepped is not None and self._stepped.launcher is not None:
                    record = partial(self._stepped.launcher.record, self.warm_streams)
                    # As its chunks were launched: a graph is of one state of autocast.
                    as_launched = CallerContext(self._caller.for_launches())
                    await outcome(backend.run(partial(as_launched.run, record)))
            await self.tee.close()
        except BaseException as error:
            await self.tee.abort()
            for note in self.tee.notes(error):
                error.add_note(note)
            raise
        finally:
            self._log.close()
            self.book.ended = self._clock()
            self._reporter.close()

    @contextlib.asynccontextmanager
    async def _decoding(
        self,
    ) -> AsyncGenerator[tuple[AsyncIterator[LatentChunk], Recipe, Backend], None]:
        """Everything opened for decoding, and given back."""
        graphs: Graphs | None = None
        try:
            codec, preparation, place, backend = await self._load()
            graphs = getattr(backend, "graphs", None)
            if graphs is not None:
                graphs.streams.add(self)
            if self.warm_streams is not None:
                check_only_stream(graphs)
            self._latents = viewed(self._latents, preparation.view)
            await self._latents.open()
            if codec.needs_length and self._latents.shape is None:
                self._latents = await gathered(self._latents, codec)
                self._notes = (_GATHERED.format(codec.family),)
            plan = self._cut(codec)
            info = described(
                codec,
                plan,
                self._options,
                step="" if self._stepped is None else self._stepped.step(),
                device=place[0],
                latents_shape=self._latents.shape,
            )
            self._info = info
            self.loaded.set()
            latents, everything = await self._known(codec)
            async with contextlib.aclosing(cut(latents, plan, codec)) as chunks:
                del latents
                first = await anext(chunks)
                info = shaped(info, codec, first, self._options, preparation)
                planes = await self._announce(
                    noted(info, codec, first, self._notes), codec, backend
                )
                recipe = Recipe(
                    codec,
                    decoder_for(codec, self._options.output, preparation, self._options.transform),
                    self._options.output,
                    preparation,
                    self._options.transform,
                    everything=everything,
                    mode=self._options.mode,
                    planes=planes,
                    place=place,
                    caller=CallerContext(self._caller.for_launches()),
                )
                del everything
                # The first launch waits for the weights too; the others come after it.
                first = replace(first, arrived=(*first.arrived, *self._weights))
                most = None if self.warm_streams is None else WARM_CHUNKS
                source = _chain(first, chunks, most)
                del first  # else this frame keeps it for as long as the stream runs
                try:
                    async with contextlib.aclosing(source):
                        yield source, recipe, backend
                finally:
                    # Submitted before anything is awaited: no cancel can keep it from happening.
                    closing = backend.run(recipe.close)
                    with anyio.move_on_after(self._options.timeout):
                        await outcome(closing, keep=True)
        finally:
            try:
                if self._identification is not None:
                    await self._identification.aclose()
            finally:
                if graphs is not None:
                    graphs.streams.discard(self)
                await self._latents.aclose()

    async def _announce(self, info: StreamInfo, codec: Codec, backend: Backend) -> bool:
        """Tell sinks of the stream, before anything is decoded; whether they get planes."""
        planes = self.unwatched and planar(info, self._options.sinks, backend)
        if planes:
            info = replace(info, pixel_format="yuv420p")
        self._info = info
        if self._identification is not None:
            await self._identification.begin(codec, info)
        await self.tee.open(info)
        return planes

    async def _known(self, codec: Codec) -> tuple[LatentSource, tuple[torch.Tensor, ...]]:
        """Where to read latents from; all of them, if they are known and the codec wants them."""
        piece = await whole(self._latents, codec) if codec.wants_all else None
        if piece is None:
            return self._latents, ()
        return TensorSource.of(piece), (piece.tensor,)

    def _cut(self, codec: Codec) -> ChunkPlan:
        shape = self._latents.shape
        length = None if shape is None or len(shape) <= codec.axis else shape[codec.axis]
        return codec.cut(length, self._options.latents_per_chunk, self._options.mode)

    async def _load(self) -> tuple[Codec, Preparation, Place, Backend]:
        """Load weights on a thread of their own, which ends with it."""

        def load() -> tuple[Codec, Preparation, Place, Backend]:
            options = self._options
            codec, preparation = resolve(
                self._source,
                normalized=options.normalized,
                device=options.device,
                call=options.call,
            )
            place = (codec.device, codec.dtype)
            backend = options.backend or for_device(place[0])
            graphs = getattr(backend, "graphs", None)
            self._stepped = (
                fastest(codec, place[0], graphs)
                if options.mode == "fast"
                else launched(codec, graphs)
            )
            return self._stepped.codec, preparation, place, backend

        worker = Worker("streamvae load")
        future = worker.submit(CallerContext(self._caller.for_loading()).run, load)
        worker.close()
        return await outcome(future)

    def _connect(
        self, chunks: AsyncIterator[LatentChunk], recipe: Recipe, backend: Backend
    ) -> None:
        """Wire the stages; what the last one gives is counted."""
        options, connect, log = self._options, self.pipeline.connect, self._log
        decode = partial(
            stages.decode, recipe=recipe, backend=backend, timeout=options.timeout, log=log
        )
        on_device = connect("decode", decode, chunks)
        if options.output == "device":
            settle = partial(
                stages.settle,
                backend=backend,
                kind=recipe.codec.kind,
                nonfinite=options.nonfinite,
                timeout=options.timeout,
                log=log,
            )
            self.outlet = connect("settle", settle, on_device, self._passed)
        else:
            download = partial(
                stages.download,
                backend=backend,
                kind=recipe.codec.kind,
                nonfinite=options.nonfinite,
                timeout=options.timeout,
                log=log,
            )
            on_host = connect("download", download, on_device)
            persist = partial(stages.persist, tee=self.tee, log=log)
            self.outlet = connect("persist", persist, on_host, self._passed)
        self.book.stages = self.pipeline.times

    def _passed(self, chunk: Chunk) -> None:
        self.book.passed(len(chunk), self._clock())
        if len(chunk):  # but for bands of a picture that is not complete
            self._reporter.advance(len(chunk), self.info)

    def _check_count(self, recipe: Recipe) -> None:
        expected = recipe.codec.frames(recipe.latents)
        if expected is not None and expected != self.book.frames:
            raise FrameCountError(
                f"expected {expected} frames from {recipe.latents} latents of "
                f"{recipe.codec.family}, got {self.book.frames}"
            )


async def _chain(
    first: LatentChunk, rest: AsyncGenerator[LatentChunk, None], most: int | None
) -> AsyncGenerator[LatentChunk, None]:
    count = 1
    yield first
    del first
    while count != most:
        chunk = await anext(rest, None)
        if chunk is None:
            return
        count += 1
        yield chunk
        del chunk
