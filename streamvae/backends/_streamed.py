"""A device with streams: what is in flight, who holds its memory, and when it may be reused.

The device itself is behind `Driver`, so that the same code runs over CUDA and over the fake device
of ``streamvae.testing``, where reading early or reusing early shows as wrong bytes.

Note [Memory in flight]
-----------------------
The device reads and writes memory long after the call that asked for it has returned, and whoever
awaited that call may be gone: cancelled, timed out, its loop closed. So nothing here depends on
anybody still waiting. Events decide, and the device's own two threads hold what is in flight:

- *Latents* are read by the launch's kernels. The compute stream waits, on the device, for the event
  of their giver's stream; the launch thread keeps them (`_Held`) until the event behind the launch.
  A launch that raises has launched something before: it is fenced in the same way.
- *Latents in host memory* go through a slot of page-locked memory of their own kind, in a stream of
  their own (`Uploads` in ``_uploads``): behind a download they would wait for the launch before
  them. The copy thread keeps slot, or page-locked latents themselves, until the event behind the
  copy; the compute stream waits for that event, and what was made on the device is held by the
  launch as given latents are. Dropped sooner, it goes back to the upload stream's memory, which the
  next copy writes in that stream's order.
- *Pixels* are made on the compute stream and read by the copy stream, which waits for ``ready``.
  The copy thread keeps them, with the slot they go to, as a flight until the event behind the copy.
  Let go only then, they return to the compute stream's memory and need no ``record_stream``.
- *A slot* is free again once its bytes were copied out. A flight that nobody collects (its `_Copy`
  was dropped) is reaped by the next call on the copy thread after its event.
- *An event that fails* says nothing about memory: what it fences stays in quarantine for the life
  of the process, and fresh memory takes its place.

What is allocated *and* used on the compute stream only (decoder state, results nobody copied) needs
no care: the caching allocator reuses it in the stream's order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from streamvae._events import Event, Timed
from streamvae._graphs import Graphs
from streamvae._pace import Pace
from streamvae._threads import Worker
from streamvae._turns import Ticket, Turnstile, current_line
from streamvae.abc import Copy, Downloaded, Rendered

from ._driver import Driver, Stream
from ._slots import MAX_PINNED_BYTES, Slots
from ._uploads import Uploads

__all__ = ["MAX_PINNED_BYTES", "Driver", "Stream", "StreamedBackend"]

T = TypeVar("T")

#: Chunks launched and unfinished at once: one running, one behind it.
LAUNCHES = 2
#: Copies under way at once, each with a slot of host memory.
SLOTS = 2
#: Events that wait to be measured at most: of copies that nobody collected.
UNMEASURED = 16
#: Bytes that a chunk's memory begins at a multiple of.
PAGE = 4096


@dataclass(slots=True)
class _Made:
    """What a launch made: the handle that stages carry."""

    rendered: Rendered | None
    ready: Event
    label: str


@dataclass(slots=True, eq=False)
class _Flight:
    """A copy under way. See Note [Memory in flight]."""

    source: Rendered | None
    buffer: torch.Tensor
    done: Event
    ticket: Ticket
    label: str = ""
    collected: bool = False
    abandoned: bool = False

    def abandon(self) -> None:
        """Have its place and its memory come back after its event. A finalizer may do it."""
        if not self.collected:
            self.abandoned = True
            self.ticket.leave(after=self.done)


class _Copy:
    """The caller's end of a flight; dropping it without collecting abandons the flight."""

    def __init__(self, flight: _Flight) -> None:
        self.flight = flight
        self.done = flight.done

    def __del__(self) -> None:
        self.flight.abandon()


@dataclass(slots=True, eq=False)
class _Hold:
    """Things kept alive until an event; for good, if recording it failed."""

    things: tuple[object, ...]
    event: Event | None = None


@dataclass(slots=True)
class _Held:
    """What launches may still read; used on the launch thread only."""

    holds: list[_Hold] = field(default_factory=list)

    def keep(self, things: tuple[object, ...]) -> _Hold:
        hold = _Hold(things)
        if things:
            self.holds.append(hold)
        return hold

    def reap(self) -> None:
        self.holds = [hold for hold in self.holds if not _happened(hold.event)]


def _happened(event: Event | None) -> bool:
    """Whether it has; an event that failed, or was never recorded, never will."""
    try:
        return event is not None and event.query()
    except Exception:  # noqa: BLE001  # reported to the one who waits for it, not to us
        return False


class StreamedBackend:
    """A `streamvae.abc.Backend` over a driver. One for each device and process."""

    #: See `streamvae.abc.Backend`.
    makes_planes = True

    def __init__(
        self,
        driver: Driver,
        max_pinned_bytes: int = MAX_PINNED_BYTES,
        pace: Pace | None = None,
    ) -> None:
        self._driver = driver
        self._turns = Turnstile(LAUNCHES, pace)
        self._slots = Turnstile(SLOTS)
        self._launcher = Worker(f"streamvae launch {driver.device}")
        self._copier = Worker(f"streamvae copy {driver.device}")
        self._held = _Held()
        self._unmeasured: list[Event] = []  # used on the copy thread only
        self._flights: list[_Flight] = []
        self._pool = Slots(driver.pinned, max_pinned_bytes, driver.device)
        #: See `streamvae.abc.Backend`.
        self.uploads = Uploads(driver, self._copier, self._pool.beside())

    @property
    def device(self) -> torch.device:
        """The device."""
        return self._driver.device

    @property
    def graphs(self) -> Graphs | None:
        """See `streamvae.abc.Backend`."""
        return getattr(self._driver, "graphs", None)

    @property
    def pinned_bytes(self) -> int:
        """Page-locked host memory of its slots, those of uploads included."""
        return self._pool.pinned_bytes

    def mark(self, latents: torch.Tensor) -> Event | None:
        """See `streamvae.abc.Backend.mark`."""
        return self._driver.mark(latents)

    def turn(self) -> Ticket:
        """See `streamvae.abc.Backend.turn`."""
        return self._turns.take(current_line())

    def slot(self) -> Ticket:
        """See `streamvae.abc.Backend.slot`."""
        return self._slots.take()

    def launch(
        self,
        work: Callable[[], Rendered | None],
        turn: Ticket,
        *,
        after: tuple[Event, ...] = (),
        hold: tuple[object, ...] = (),
    ) -> Future[tuple[object, Event]]:
        """See `streamvae.abc.Backend.launch`."""
        return self._launcher.submit(self._launch, work, turn, after, hold)

    def download(self, handle: object, ready: Event, slot: Ticket) -> Future[Copy | None]:
        """See `streamvae.abc.Backend.download`."""
        return self._copier.submit(self._download, handle, ready, slot)

    def collect(self, copy: Copy) -> Future[Downloaded]:
        """See `streamvae.abc.Backend.collect`."""
        return self._copier.submit(self._collect, copy)

    def settle(self, handle: object) -> Future[Rendered | None]:
        """See `streamvae.abc.Backend.settle`. The flags come to the host."""
        return self._copier.submit(self._settle, handle)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """See `streamvae.abc.Backend.run`."""
        return self._launcher.submit(self._run, work)

    # On the launch thread.

    def _launch(
        self,
        work: Callable[[], Rendered | None],
        turn: Ticket,
        after: tuple[Event, ...],
        hold: tuple[object, ...],
    ) -> tuple[object, Event]:
        held = self._held.keep(hold)
        made: tuple[torch.Tensor, ...] = ()
        label = _label(work)
        try:
            with self._driver.on("compute"), self._driver.named(label):
                self._held.reap()  # here: asking an event elsewhere may wake another device
                for event in after:
                    self._driver.wait("compute", event)
                self._driver.begin("compute")
                rendered = work()
                made = () if rendered is None else (rendered.pixels, rendered.finite)
        finally:
            # Also when work() raised: kernels it had launched still read the latents.
            ready = self._fence(turn, held, made, read=hold)
        return _Made(rendered, ready, label), ready

    def _fence(
        self,
        turn: Ticket,
        held: _Hold,
        made: tuple[torch.Tensor, ...],
        read: tuple[object, ...],
    ) -> Event:
        """Keep what a launch reads until its event, and the turn too: that goes on in any case."""
        try:
            held.event = ready = self._driver.record("compute", made=made, read=read)
        except BaseException:
            turn.leave()  # not with the error, which somebody may keep
            raise
        turn.leave(after=ready)
        return ready

    def _run(self, work: Callable[[], T]) -> T:
        with self._driver.on("compute"):
            self._held.reap()
            return work()

    # On the copy thread.

    def _download(self, handle: object, ready: Event, slot: Ticket) -> Copy | None:
        made = _made(handle)
        rendered = made.rendered
        self._unmeasured.append(made.ready)
        if rendered is None:
            slot.leave()
            return None
        buffer: torch.Tensor | None = None
        try:
            buffer = self._buffer(rendered.pixels.nbytes + rendered.finite.nbytes)
            pixels, finite = _views(buffer, rendered)
            with self._driver.on("copy"), self._driver.named(f"copy of {made.label}"):
                self._driver.wait("copy", ready)
                self._driver.begin("copy")
                self._driver.copy(rendered.pixels, pixels)
                self._driver.copy(rendered.finite, finite)
                done = self._driver.record("copy", made=(buffer,), read=(rendered.pixels,))
        except BaseException:
            # A copy may have begun and nothing will say when it ends: keep both for good.
            if buffer is not None:
                self._flights.append(_Flight(rendered, buffer, _Never(), slot))
            slot.leave()
            raise
        flight = _Flight(rendered, buffer, done, slot)
        flight.label = made.label
        self._flights.append(flight)
        return _Copy(flight)

    def _collect(self, copy: Copy) -> Downloaded:
        flight = _flight(copy)
        # The thread keeps the flight until its next call; the pixels go now.
        source, flight.source = flight.source, None
        if source is None:
            raise ValueError("expected a copy that is not collected yet, got one that is")
        try:
            return self._copy_out(flight, source)
        except BaseException:
            flight.abandon()  # not with the error, which somebody may keep
            raise

    def _copy_out(self, flight: _Flight, source: Rendered) -> Downloaded:
        self._unmeasured.append(flight.done)
        self._measure()
        pixels, finite = _views(flight.buffer, source)
        target = _on_pages(pixels.nbytes).view(pixels.dtype).view(pixels.shape)
        with self._driver.named(f"copy-out of {flight.label}"):
            target.copy_(pixels)  # outside the GIL, and the page faults of fresh memory with it
        latents_finite, pixels_finite = (bool(flag) for flag in finite.tolist())
        flight.collected = True
        self._flights.remove(flight)
        self._pool.give_back(flight.buffer)
        flight.ticket.leave()
        array = target.numpy()
        array.flags.writeable = False
        return Downloaded(array, latents_finite, pixels_finite, source.picture)

    def _settle(self, handle: object) -> Rendered | None:
        made = _made(handle)
        rendered = made.rendered
        self._unmeasured.append(made.ready)
        self._measure()
        if rendered is None:
            return None
        with self._driver.on("copy"), self._driver.named(f"flags of {made.label}"):
            flags = rendered.finite.cpu()
        self._driver.give_out(rendered.pixels)
        return Rendered(rendered.pixels, flags)

    def _measure(self) -> None:
        """Have events that have happened say when, here: asking them is a call of the device."""
        left: list[Event] = []
        with self._driver.on("copy"):
            for event in self._unmeasured:
                if not _happened(event):
                    left.append(event)
                elif isinstance(event, Timed):
                    with contextlib.suppress(Exception):  # it costs nobody more than a time
                        event.span()
        self._unmeasured = left[-UNMEASURED:]

    def _buffer(self, nbytes: int) -> torch.Tensor:
        """Take a slot's memory, after those of abandoned flights that are over came back."""
        with self._driver.on("copy"):
            over = [one for one in self._flights if one.abandoned and _happened(one.done)]
        for flight in over:
            self._flights.remove(flight)
            self._pool.give_back(flight.buffer)
        return self._pool.take(nbytes)


class _Never:
    """The event that never happens."""

    def query(self) -> bool:
        return False


def _made(handle: object) -> _Made:
    if not isinstance(handle, _Made):
        raise TypeError(f"expected what launch() gave, got {type(handle).__name__}")
    return handle


def _label(work: object) -> str:
    """What a profiler calls it."""
    return str(getattr(work, "label", "launch"))


def _flight(copy: Copy) -> _Flight:
    if not isinstance(copy, _Copy):
        raise TypeError(f"expected what download() gave, got {type(copy).__name__}")
    return copy.flight


def _on_pages(nbytes: int) -> torch.Tensor:
    """Host memory that begins on a page: a sink may write it past the system's cache, uncopied."""
    memory = torch.empty(nbytes + PAGE - 1, dtype=torch.uint8)
    begin = -memory.data_ptr() % PAGE
    return memory[begin : begin + nbytes]


def _views(buffer: torch.Tensor, rendered: Rendered) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts of a slot that pixels and flags go to."""
    pixels, finite = rendered.pixels, rendered.finite
    size = pixels.nbytes
    flags = buffer[size : size + finite.nbytes].view(finite.dtype).view(finite.shape)
    return buffer[:size].view(pixels.dtype).view(pixels.shape), flags
