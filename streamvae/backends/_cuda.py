"""CUDA, the one room that names it: streams, events and pinned memory behind `Driver`.

Which memory is in flight and when it may be used again is not decided here: see
Note [Memory in flight] in ``_streamed``. What a caller's thread knows of CUDA is captured in
``streamvae._caller``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from streamvae._errors import DeviceError
from streamvae._events import Event
from streamvae._pace import Pace
from streamvae.abc import Backend

from . import _libcuda
from ._driver import Stream
from ._graphs import CudaGraphs
from ._ruler import CudaEvent, Ruler
from ._slots import max_pinned_bytes
from ._streamed import StreamedBackend

#: Priorities that torch keeps streams of: 0 and three higher ones.
PRIORITIES = 4
#: How often one is asked for at most, to know them all; they are 32 of each priority.
DRAWS = 1024


def cuda_backend(where: torch.device) -> Backend | None:
    """Make the backend of a CUDA device; None for a device that is none.

    ROCm's devices borrow CUDA's name. Nobody has tried their asynchronous copies here, so they
    are not trusted.
    """
    if where.type != "cuda" or torch.version.hip is not None:
        return None
    return StreamedBackend(CudaDriver(where), max_pinned_bytes(), Pace())


def mark(tensor: torch.Tensor) -> Event | None:
    """Record where the calling thread's current stream stands on the device of ``tensor``.

    What that stream was given before, and so ``tensor`` if it was written there, is finished when
    the event has happened. None for a tensor that is not on a CUDA device.
    """
    return _recorded(torch.cuda.current_stream(tensor.device)) if tensor.is_cuda else None


def free_bytes(device: torch.device) -> int | None:
    """Memory of ``device`` that torch could still give out; None where that is not CUDA's."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    kept: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


def _recorded(stream: torch.cuda.Stream) -> Event:
    # An event that was never recorded counts as happened: none leaves this function unrecorded.
    event = CudaEvent()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


class CudaDriver:
    """One CUDA device, as `Driver` wants it.

    Its streams live as long as the process: the caching allocator keeps freed memory by
    stream, so streams that come and go would strand it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ruler = Ruler(device)
        self._begun: dict[Stream, torch.cuda.Event] = {}

    @property
    def device(self) -> torch.device:
        """The device, with its index."""
        return self._device

    @functools.cached_property
    def graphs(self) -> CudaGraphs:
        """As in `streamvae.abc.Backend`."""
        return CudaGraphs(self._device)

    @functools.cached_property
    def _compute(self) -> torch.cuda.Stream:
        return _libcuda.own_stream(self._device, "compute")

    @functools.cached_property
    def _copy(self) -> torch.cuda.Stream:
        return _libcuda.own_stream(self._device, "copy")

    @functools.cached_property
    def _upload(self) -> torch.cuda.Stream:
        return _libcuda.own_stream(self._device, "upload")

    def _stream(self, name: Stream) -> torch.cuda.Stream:
        if name == "upload":
            return self._upload
        return self._compute if name == "compute" else self._copy

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """As in `Driver`. Device, stream, grad and capture mode are the thread's: entered here."""
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream(stream)),
            torch.no_grad(),
        ):
            mode = _libcuda.exchange_capture_mode(_libcuda.RELAXED)
            try:
                yield
            finally:
                _libcuda.exchange_capture_mode(mode)

    def wait(self, stream: Stream, event: Event) -> None:
        """As in `Driver`; the event may be another CUDA device's.

        Raises:
            DeviceError: It is not an event that a CUDA stream can wait for.
        """
        if not isinstance(event, torch.cuda.Event):
            raise DeviceError(f"expected the event of a CUDA stream, got {type(event).__name__}")
        self._stream(stream).wait_event(event)

    def record(
        self,
        stream: Stream,
        *,
        made: tuple[torch.Tensor, ...] = (),  # noqa: ARG002  # the device knows
        read: tuple[object, ...] = (),  # noqa: ARG002
    ) -> Event:
        """As in `Driver`."""
        begun = self._begun.pop(stream, None)
        if begun is None:
            return _recorded(self._stream(stream))
        return self._ruler.end(begun, self._stream(stream))

    def begin(self, stream: Stream) -> None:
        """As in `Driver`. Each stream has one thread that gives it work."""
        self._begun[stream] = self._ruler.begin(self._stream(stream))

    @functools.cached_property
    def _nvtx(self) -> bool:
        """Whether torch was built with it."""
        try:
            torch.cuda.nvtx.mark("streamvae")  # type: ignore[no-untyped-call]
        except RuntimeError:
            return False
        return True

    def named(self, label: str) -> AbstractContextManager[None]:
        """As in `Driver`: an NVTX range, which costs a microsecond when nobody looks."""
        return torch.cuda.nvtx.range(label) if self._nvtx else contextlib.nullcontext()

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """As in `Driver`. Into pinned memory it returns at once, otherwise when it is done."""
        into.copy_(source, non_blocking=True)

    def mark(self, latents: torch.Tensor) -> Event | None:
        """As in `Driver`."""
        return mark(latents)

    def on_host(self, tensor: torch.Tensor) -> bool:
        """As in `Driver`."""
        return tensor.device.type == "cpu"

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """As in `Driver`."""
        return tensor.is_pinned()

    def pinned(self, nbytes: int) -> torch.Tensor:
        """As in `Driver`."""
        with torch.cuda.device(self._device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def give_out(self, tensor: torch.Tensor) -> None:
        """As in `Driver`: safe on the default stream and on every stream that torch hands out.

        Its memory is the compute stream's: one that is dropped while it is still being read would
        be written by the next chunk. Nobody can know which stream reads it, but all of
        ``torch.cuda.Stream()`` are known, so that the allocator waits for all that was in them when
        it was dropped. Who reads it on a stream of somebody else's tells the allocator
        (``tensor.record_stream(stream)``), or keeps it until that is done.
        """
        tensor.record_stream(torch.cuda.default_stream(self._device))
        for stream in self._readers:
            tensor.record_stream(stream)

    @functools.cached_property
    def _readers(self) -> tuple[torch.cuda.Stream, ...]:
        """Every stream that torch hands out on this device, but for our own."""
        own = {stream.stream_id for stream in (self._compute, self._copy, self._upload)}
        pooled = (one for priority in range(PRIORITIES) for one in _pool(self._device, -priority))
        return tuple({one.stream_id: one for one in pooled if one.stream_id not in own}.values())


def _pool(device: torch.device, priority: int) -> Iterator[torch.cuda.Stream]:
    """The streams of a priority: torch hands them out in turn, again and again.

    Another thread may take one meanwhile: so until no new one has come in twice as many.
    """
    known: set[int] = set()
    old = 0
    for _ in range(DRAWS):
        stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
        old += 1
        if stream.stream_id not in known:
            known.add(stream.stream_id)
            old = 0
            yield stream
        if old > 2 * len(known):
            return
