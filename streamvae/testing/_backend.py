"""FakeBackend: the real bookkeeping of a device with streams, over a fake device."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable

import torch

from streamvae._events import Event
from streamvae._locks import fork_safe_lock
from streamvae._turns import Ticket
from streamvae.abc import Copy, Downloaded, Rendered
from streamvae.backends._streamed import MAX_PINNED_BYTES, Stream, StreamedBackend, _Copy
from streamvae.backends._uploads import Uploads

from ._device import DriverCall, FakeDevice, ManualEvent, poison
from ._graphs import FakeGraphs


class FakeBackend(StreamedBackend):
    """A backend whose device you command: how long it takes, or when exactly it is done.

    It runs the code that CUDA runs, so breaking that code shows here: memory is poisoned until its
    event has happened and after it was given back, and everything alive is counted.

    Args:
        decode: Seconds that a chunk takes on the device, in the clock of the running loop.
        download: Seconds that a copy takes.
        upload: Seconds that a chunk's latents take to the device; None: they are there already.
        manual: Let each launch and copy end only when you set its event: ``launches[i]``,
            ``copies[i]``, ``arrivals[i]``.
        pinned: Whether page-locked memory is to be had.
        max_pinned_bytes: As for any backend.
        makes_planes: Whether pixels become planes of 4:2:0 for sinks that take them, as on a card.
        graphs: What records chunks; None: nothing does.
    """

    def __init__(
        self,
        *,
        decode: float = 0.0,
        download: float = 0.0,
        upload: float | None = None,
        manual: bool = False,
        pinned: bool = True,
        max_pinned_bytes: int = MAX_PINNED_BYTES,
        makes_planes: bool = False,
        graphs: FakeGraphs | None = None,
    ) -> None:
        self.fake = FakeDevice(
            compute=decode,
            copy=download,
            upload=upload,
            manual=manual,
            clock=_clock(),
            pinned=pinned,
        )
        super().__init__(self.fake, max_pinned_bytes)
        self.uploads = _WatchedUploads(self.fake, self._copier, self._pool.beside())
        self.makes_planes = makes_planes
        self._graphs = graphs
        # Real devices live as long as the process; of these there is one in every test.
        for worker in (self._launcher, self._copier):
            weakref.finalize(self, worker.close).atexit = False
        self.device_chunks = Census()
        self.host_chunks = Census()

    @property
    def graphs(self) -> FakeGraphs | None:
        """See `streamvae.abc.Backend`."""
        return self._graphs

    @property
    def launches(self) -> list[ManualEvent]:
        """One event for each launch so far (``manual=True``)."""
        return self.fake.launches

    @property
    def copies(self) -> list[ManualEvent]:
        """One event for each copy so far (``manual=True``)."""
        return self.fake.copies

    @property
    def arrivals(self) -> list[ManualEvent]:
        """One event for each upload so far (``manual=True``)."""
        return self.fake.uploads

    @property
    def unfinished(self) -> int:
        """Chunks launched and not finished."""
        return self._turns.inside

    @property
    def copying(self) -> int:
        """Slots in use."""
        return self._slots.inside

    @property
    def arriving(self) -> int:
        """Uploads that are not finished."""
        return self.uploads._slots.inside

    def fail_next(
        self, call: DriverCall, error: Exception, *, stream: Stream | None = None
    ) -> None:
        """See `FakeDevice.fail_next`."""
        self.fake.fail_next(call, error, stream=stream)

    def give(self, latents: object) -> ManualEvent:
        """See `FakeDevice.give`."""
        if not isinstance(latents, torch.Tensor):
            raise TypeError(f"expected a tensor, got {type(latents).__name__}")
        return self.fake.give(latents)

    def _launch(
        self,
        work: Callable[[], Rendered | None],
        turn: Ticket,
        after: tuple[Event, ...],
        hold: tuple[object, ...],
    ) -> tuple[object, Event]:
        return super()._launch(_Watched(work, self.device_chunks), turn, after, hold)

    def _collect(self, copy: Copy) -> Downloaded:
        downloaded = super()._collect(copy)
        if isinstance(copy, _Copy):
            poison(copy.flight.buffer)  # given back: whoever still looks must notice
        self.host_chunks.add(downloaded.pixels)
        return downloaded


class _WatchedUploads(Uploads):
    """Uploads whose slots are poisoned when they are given back: whoever still reads notices."""

    def _give_back(self, buffer: torch.Tensor) -> None:
        poison(buffer)
        super()._give_back(buffer)


class _Watched:
    """Work of which what it makes is counted."""

    def __init__(self, work: Callable[[], Rendered | None], census: Census) -> None:
        self.label = getattr(work, "label", "launch")
        self._work = work
        self._census = census

    def __call__(self) -> Rendered | None:
        rendered = self._work()
        if rendered is not None:
            self._census.add(rendered.pixels)
        return rendered


class Census:
    """Counts objects that are alive, and the most there ever were."""

    def __init__(self) -> None:
        self.peak = 0
        self.total = 0
        self._lock = fork_safe_lock()
        self._ended: deque[None] = deque()

    def add(self, thing: object) -> None:
        """Count ``thing`` until it is collected."""
        with self._lock:
            self.total += 1
            self.peak = max(self.peak, self.alive)
        weakref.finalize(thing, self._ended.append, None)

    @property
    def alive(self) -> int:
        """How many there are now."""
        return self.total - len(self._ended)


def _clock() -> Callable[[], float]:
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic
