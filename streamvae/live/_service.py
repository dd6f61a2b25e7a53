"""Service: one autoencoder for many requests, which take turns by chunk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Literal, Self, TypedDict, Unpack, cast

import torch

from .._caller import CallerContext, ThreadState
from .._errors import ClosedError, UsageError
from .._events import wait
from .._options import device_of
from .._source import resolve
from .._stream import stream_decode
from .._threads import Worker, outcome
from .._turns import Priority
from .._warmup import warmup as warm_up
from ..abc import Backend, Codec
from ..backends import free_bytes, mark_weights
from ..codecs import ModuleCodec, codec_for
from ..latents import LatentsLike, is_pipeline
from ._admission import Admission
from ._books import Books
from ._desk import Desk
from ._metrics import Metrics
from ._needs import Needs
from ._request import Request, RequestOptions

if TYPE_CHECKING:
    from types import TracebackType

    from prometheus_client import CollectorRegistry

#: Of the memory that is free when the weights are there; the rest is for what no plan counts
#: (workspaces of libraries, rounding of allocations).
_SHARE_OF_FREE = 0.9

#: ``"failed"``: the device reports an error that only a new process gets rid of.
State = Literal["new", "ok", "draining", "closed", "failed"]


class Health(TypedDict):
    """What `Service.health` tells; JSON as it is. Memory in bytes, times in seconds.

    ``retry_after`` is what a request that came now would be told if it were refused.
    """

    status: State
    family: str | None
    device: str | None
    active: int
    waiting: int
    max_streams: int
    max_waiting: int
    memory: int | None
    memory_reserved: int
    uptime: float
    retry_after: float


class Service:
    """One autoencoder, loaded once, for as many streams as fit; each is what it would be alone.

    Streams share the weights and never state. On the device they take turns by chunk: a new
    stream's first chunk goes first, previews go behind the others without ever being starved. A
    request waits until there is a place (``max_streams``) and memory for it (by the plan of its
    stream); if too many wait already it is refused with `Busy`, which says when to come again.

    Inside ``async with`` the weights are loaded; leaving it drains. It belongs to one event loop.

    Args:
        source: As in `streamvae.stream_decode`. Your own weights stay where they are.
        max_streams: Streams at once.
        max_waiting: Requests that may wait for a place.
        memory: Bytes that all streams may take together on the device, the weights not counted.
            None: on a CUDA device 0.9 of what is free once the weights are loaded, elsewhere any.
        timeout: Seconds that a request may take, waiting included; None for as long as it likes.
        device: As in `streamvae.stream_decode`.
        warmup: Shape of latents, as the autoencoder takes them, that is decoded once before the
            first request, so that this one does not pay for what a first launch pays for; graphs
            are recorded for ``max_streams`` streams, as far as memory goes (see
            `streamvae.warmup`: nobody else may use the device meanwhile).
        grace: Seconds that streams still have to end when the block is left in good order.
        backend: The device's backend; None for the real one. For tests.

    Raises:
        UsageError: A limit is no number that it can be.
    """

    def __init__(
        self,
        source: object = None,
        *,
        max_streams: int = 4,
        max_waiting: int = 32,
        memory: int | None = None,
        timeout: float | None = None,
        device: str | int | torch.device | None = None,
        warmup: Sequence[int] | None = None,
        grace: float = 10.0,
        backend: Backend | None = None,
    ) -> None:
        _at_least("max_streams", max_streams, 1)
        _at_least("max_waiting", max_waiting, 0)
        _at_least("memory", memory, 1)
        _positive("timeout", timeout)
        self._given = source
        self._device = device_of(device)
        self._timeout = timeout
        self._warmup = None if warmup is None else tuple(warmup)
        self._grace = grace
        self._backend = backend
        self._admission = Admission(max_streams, max_waiting, memory)
        self._state: State = "new"
        self._source: object = None
        self._codec: Codec | None = None
        self._needs: Needs | None = None
        self._desk: Desk | None = None
        self._books = Books()
        self._metrics = Metrics(self._books, self._admission)
        self._began = 0.0

    async def __aenter__(self) -> Self:
        """Load the weights, and warm them up if told to.

        Raises:
            UnknownSourceError: Nobody knows how to decode with the source.
            ClosedError: It was entered before.
        """
        if self._state != "new":
            raise ClosedError("expected a fresh service, got one that was entered before")
        self._books.clock = asyncio.get_running_loop().time
        self._began = self._books.clock()
        weights = mark_weights(self._given)
        worker = Worker("streamvae load")
        here = CallerContext(ThreadState.capture().for_loading())
        loading = worker.submit(here.run, _loaded, self._given, self._device)
        worker.close()
        self._source, codec = await outcome(loading)
        for event in weights:
            await wait(event, codec.device, stage="load", chunk=0)
        if self._warmup is not None:
            streams = self._admission.places
            await warm_up(codec, self._warmup, streams=streams, backend=self._backend)
        admission = self._admission
        if admission.memory is None:
            free = free_bytes(codec.device)
            admission.memory = None if free is None else int(_SHARE_OF_FREE * free)
        self._needs = Needs(self._source, (admission.memory or 0) // admission.places)
        self._desk = Desk(admission, self._books, self._needs)
        self._codec, self._state = codec, "ok"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.drain(self._grace if error is None else 0.0)
        finally:
            self._state = "closed"
            if self._needs is not None:
                self._needs.close()
            self._source = self._codec = self._given = None

    @property
    def codec(self) -> Codec:
        """The autoencoder's rules and weights.

        Raises:
            ClosedError: The service is not entered.
        """
        if self._codec is None:
            raise ClosedError("expected a service inside 'async with', got one that is not")
        return self._codec

    @property
    def active(self) -> int:
        """Requests that have a place."""
        return self._admission.active

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return self._admission.waiting

    def stream(
        self,
        latents: LatentsLike,
        *,
        priority: Priority = "final",
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Request:
        """Ask for a stream: ``async with service.stream(latents) as stream``.

        Entering waits for a place; see `Request`. Latents and options are checked here.

        Args:
            latents: As in `streamvae.stream_decode`.
            priority: ``"preview"``: somebody may look at it meanwhile; others go first.
            timeout: Seconds that it may take, waiting included, in place of the service's own.
            **options: As in `streamvae.stream_decode`.

        Raises:
            ClosedError: The service is not entered.
            UsageError: Options contradict each other.
            LatentsError: ``latents`` is nothing that holds latents.
        """
        codec, source, desk = self.codec, self._source, cast("Desk", self._desk)
        _positive("timeout", timeout)
        if priority not in {"final", "preview"}:
            raise UsageError(f"expected priority 'final' or 'preview', got {priority!r}")
        # One codec for all, but where it takes arguments of the call.
        shared = isinstance(source, torch.nn.Module) and not options.get("call")
        stream = stream_decode(
            latents, codec if shared else source, backend=self._backend, **options
        )
        return Request(
            stream,
            desk.enter,
            lambda place: desk.settle(place, latents, options),
            self._books,
            priority=priority,
            timeout=self._timeout if timeout is None else timeout,
        )

    def health(self) -> Health:
        """What an orchestrator asks: ``status`` is ``"ok"`` while requests are taken."""
        admission, codec = self._admission, self._codec
        desk = self._desk
        return {
            "status": "failed" if self._books.broken else self._state,
            "family": None if codec is None else codec.family,
            "device": None if codec is None else str(codec.device),
            "active": admission.active,
            "waiting": admission.waiting,
            "max_streams": admission.places,
            "max_waiting": admission.most_waiting,
            "memory": admission.memory,
            "memory_reserved": admission.reserved,
            "uptime": 0.0 if desk is None else self._books.clock() - self._began,
            "retry_after": 0.0 if desk is None else desk.retry_after(),
        }

    def metrics_text(self) -> bytes:
        """All metrics in Prometheus's text format; serve it as ``CONTENT_TYPE_LATEST``.

        Raises:
            MissingDependencyError: prometheus_client is not installed.
        """
        return self._metrics.text()

    @property
    def registry(self) -> CollectorRegistry:
        """Prometheus's registry of this service and nothing else.

        Raises:
            MissingDependencyError: prometheus_client is not installed.
        """
        return self._metrics.registry

    async def drain(self, grace: float) -> None:
        """Take no more requests, send those away that wait, and let streams end.

        Those that have not ended ``grace`` seconds later are ended: whoever asks for their frames
        gets a `ClosedError`. Returns when all have given everything back. Idempotent.

        Args:
            grace: Seconds.
        """
        if self._state == "ok":
            self._state = "draining"
        if self._desk is not None:
            await self._desk.drain(grace)


def _loaded(source: object, device: torch.device | None) -> tuple[object, Codec]:
    """What streams are made of, its weights there, and its codec. Runs off the loop."""
    if is_pipeline(source):
        return source, codec_for(getattr(source, "vae", None))
    codec, _ = resolve(source, normalized=False, device=device, call={})
    if isinstance(codec, ModuleCodec) and isinstance(source, (str, os.PathLike, NoneType)):
        return codec.module, codec
    return source, codec


def _at_least(name: str, value: object, least: int) -> None:
    if value is not None and not (isinstance(value, int) and value >= least):
        raise UsageError(f"expected {name} to be a whole number from {least}, got {value!r}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"expected {name} to be positive, got {value!r}")
