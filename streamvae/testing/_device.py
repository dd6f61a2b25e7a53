"""A fake device with two streams over CPU memory, behind the driver that CUDA is behind.

Work is computed when it is launched, with the values it *would* see on a device that keeps its
streams in order, and its results stay hidden until their event has happened. Whoever reads too
early, reuses a buffer too early or lets go of a source too early gets `POISON`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from streamvae._events import Event
from streamvae._locks import fork_safe_lock
from streamvae.backends._streamed import Stream

#: Calls of a driver that a `FakeDevice` can be told to fail.
DriverCall = Literal["wait", "begin", "copy", "record"]

#: What hidden and released memory is filled with, each byte.
POISON = 0xDB


class ManualEvent:
    """An event that happens when you say so."""

    def __init__(self) -> None:
        self._happened = False
        self._error: Exception | None = None

    def query(self) -> bool:
        """Whether `set` was called. Raises what `fail` was given."""
        if self._error is not None:
            raise self._error
        return self._happened

    def set(self) -> None:
        """Let it happen."""
        self._happened = True

    def fail(self, error: Exception) -> None:
        """Let the device report ``error`` from now on."""
        self._error = error


@dataclass(eq=False)
class FakeEvent:
    """An event recorded on a stream of a `FakeDevice`: the end of one piece of work.

    The work begins when everything in ``after`` has happened; from then on what it makes is
    undefined, whatever it was before. If something it read was gone, or written over, it has made
    `POISON`, and so has whatever read that.
    """

    device: FakeDevice
    after: tuple[Event, ...] = field(repr=False)
    inputs: tuple[Event, ...] = field(repr=False)
    seconds: float
    submitted: float
    gate: ManualEvent | None
    hidden: list[_Hidden] = field(default_factory=list, repr=False)
    sources: tuple[weakref.ref[object], ...] = ()
    unchanged: tuple[tuple[torch.Tensor, torch.Tensor], ...] = field(default=(), repr=False)
    began: float | None = None
    finished: float | None = None
    lost: bool = False
    begun: bool = False
    next: FakeEvent | None = field(default=None, repr=False)

    def query(self) -> bool:
        """Whether the stream has come this far."""
        with self.device.lock:
            return self._advance()

    def span(self) -> tuple[float, float] | None:
        """When the device began and ended it, in its own clock; None before it has happened."""
        if not self.query() or self.began is None or self.finished is None:
            return None
        return self.began, self.finished

    def _advance(self) -> bool:
        if self.finished is not None:
            return True
        if not self._begin():
            return False
        if self.gate is not None and not self.gate.query():
            return False
        began = max(
            [self.submitted]
            + [event.finished or 0.0 for event in self.after if isinstance(event, FakeEvent)]
        )
        if self.device.clock() < began + self.seconds:
            return False
        self.began, self.finished = began, began + self.seconds
        self.lost = (
            any(source() is None for source in self.sources)
            or any(isinstance(event, FakeEvent) and event.lost for event in self.inputs)
            or any(_differ(*both) for both in self.unchanged)
        )
        for hidden in self.hidden:
            hidden.show(poisoned=self.lost)
        following, self.next = self.next, None
        if following is not None:
            following._begin()
        self.after, self.inputs, self.unchanged = (), (), ()
        return True

    def _begin(self) -> bool:
        if not self.begun and all(event.query() for event in self.after):
            self.begun = True
            for hidden in self.hidden:
                if not hidden.revealed:  # else poisoned once it is hidden again
                    poison(hidden.tensor)
        return self.begun


@dataclass(eq=False)
class _Hidden:
    """Memory whose content is not there yet.

    ``tensor`` is an alias: it keeps the memory, and nobody's tensor alive, so that a source that
    was let go too early is noticed.
    """

    tensor: torch.Tensor
    content: torch.Tensor
    revealed: int = 0

    def show(self, *, poisoned: bool) -> None:
        if poisoned:
            poison(self.tensor)
        else:
            self.tensor.copy_(self.content)


def poison(tensor: torch.Tensor) -> None:
    """Fill ``tensor`` with `POISON` bytes (bools with false)."""
    if tensor.dtype is torch.bool:
        tensor.fill_(0)
    else:
        dense = tensor.ndim == 0 or tensor.stride(-1) != 1  # as what goes to a device is
        flat = tensor.as_strided((tensor.numel(),), (1,)) if dense else tensor
        flat.view(torch.uint8).fill_(POISON)


def _differ(now: torch.Tensor, then: torch.Tensor) -> bool:
    return not torch.equal(now.contiguous().view(torch.uint8), then.contiguous().view(torch.uint8))


class FakeDevice:
    """A driver (`streamvae.backends`) that simulates a device in order, in time and in memory.

    Args:
        compute: Seconds that a launch takes on the device.
        copy: Seconds that a copy takes on the device.
        upload: Seconds that latents take to it; None: they are there already.
        manual: Give every piece of work a `ManualEvent` of its own, in ``launches`` and
            ``copies`` or ``uploads``, and let it end only when that is set.
        clock: Seconds.
        pinned: Whether page-locked memory is to be had.
    """

    def __init__(
        self,
        *,
        compute: float,
        copy: float,
        manual: bool,
        clock: Callable[[], float],
        pinned: bool,
        upload: float | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self.clock = clock
        self.lock = fork_safe_lock()
        self.launches: list[ManualEvent] = []
        self.copies: list[ManualEvent] = []
        self.uploads: list[ManualEvent] = []
        #: What a profiler would have shown, by and by.
        self.labels: deque[str] = deque(maxlen=100)
        self._manual = manual
        self._pinned = pinned
        self._uploads = upload is not None
        self._seconds: dict[Stream, float] = {
            "compute": compute,
            "copy": copy,
            "upload": upload or 0.0,
        }
        self._gates = {"compute": self.launches, "copy": self.copies, "upload": self.uploads}
        self._last: dict[Stream, FakeEvent | None] = dict.fromkeys(self._seconds)
        self._waits: dict[Stream, list[Event]] = {stream: [] for stream in self._seconds}
        self._revealed: dict[int, list[tuple[Event, _Hidden]]] = {}
        self._given: dict[int, tuple[weakref.ref[torch.Tensor], _Given]] = {}
        self._failures: list[tuple[DriverCall, Stream | None, Exception]] = []

    def fail_next(
        self, call: DriverCall, error: Exception, *, stream: Stream | None = None
    ) -> None:
        """Have the driver's next ``call`` raise ``error`` before it does anything.

        Args:
            call: Which call of the driver.
            error: What it raises.
            stream: The stream that the call must be for; None: any.
        """
        self._failures.append((call, stream, error))

    def _enter(self, call: DriverCall, stream: Stream) -> None:
        for number, (failing, where, _) in enumerate(self._failures):
            if failing == call and where in {None, stream}:
                raise self._failures.pop(number)[2]

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """See the driver. What the stream waits for is visible inside, and only there."""
        del stream
        try:
            with torch.no_grad():
                yield
        finally:
            with self.lock:
                for event, hidden in self._revealed.pop(threading.get_ident(), []):
                    hidden.revealed -= 1
                    if not (hidden.revealed or event.query()):
                        poison(hidden.tensor)

    def wait(self, stream: Stream, event: Event) -> None:
        """See the driver."""
        self._enter("wait", stream)
        with self.lock:
            self._waits[stream].append(event)
            if not event.query():
                revealed = self._revealed.setdefault(threading.get_ident(), [])
                for hidden in getattr(event, "hidden", []):
                    hidden.show(poisoned=False)
                    hidden.revealed += 1
                    revealed.append((event, hidden))

    def record(
        self,
        stream: Stream,
        *,
        made: tuple[torch.Tensor, ...] = (),
        read: tuple[object, ...] = (),
    ) -> Event:
        """See the driver. Hides ``made`` until the event; ``read`` must live until then."""
        self._enter("record", stream)
        gate = None
        if self._manual:
            gate = ManualEvent()
            self._gates[stream].append(gate)
        with self.lock:
            last = self._last[stream]
            waits, self._waits[stream] = tuple(self._waits[stream]), []
            event = FakeEvent(
                self,
                waits if last is None else (*waits, last),
                waits,
                self._seconds[stream],
                self.clock(),
                gate,
                *self._watch(made, read),
                unchanged=tuple(
                    (thing.detach(), thing.clone())
                    for thing in read
                    if stream == "upload" and isinstance(thing, torch.Tensor)
                ),
            )
            if last is not None and last.finished is None:
                last.next = event
            self._last[stream] = event
            event.query()
        return event

    def _watch(
        self, made: tuple[torch.Tensor, ...], read: tuple[object, ...]
    ) -> tuple[list[_Hidden], tuple[weakref.ref[object], ...]]:
        hidden = [_Hidden(tensor.detach(), tensor.clone()) for tensor in made]
        for tensor in made:
            poison(tensor)
        return hidden, tuple(weakref.ref(thing) for thing in read)

    def begin(self, stream: Stream) -> None:
        """See the driver. This device knows by itself."""
        self._enter("begin", stream)

    @contextlib.contextmanager
    def named(self, label: str) -> Iterator[None]:
        """See the driver. Labels are kept in ``labels``."""
        self.labels.append(label)
        yield

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """See the driver."""
        self._enter("copy", "copy")
        into.copy_(source)

    def mark(self, latents: torch.Tensor) -> Event | None:
        """The event of latents that were given with `give`."""
        entry = self._given.get(latents.data_ptr())
        return None if entry is None or entry[0]() is None else entry[1]

    def on_host(self, tensor: torch.Tensor) -> bool:
        """See the driver. Latents that were given with `give` are not, nor their parts."""
        given = (latents() for latents, _ in self._given.values())
        memory = tensor.untyped_storage().data_ptr()
        return self._uploads and not any(
            one is not None and one.untyped_storage().data_ptr() == memory for one in given
        )

    def is_pinned(self, tensor: torch.Tensor) -> bool:  # noqa: ARG002
        """See the driver."""
        return False

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See the driver."""
        if not self._pinned:
            raise RuntimeError("out of pinned memory (the fake device was told so)")
        return torch.empty(nbytes, dtype=torch.uint8)

    def give_out(self, tensor: torch.Tensor) -> None:
        """See the driver."""

    def give(self, latents: torch.Tensor) -> ManualEvent:
        """Make ``latents`` memory that the giver's device still writes, until the event is set."""
        event = _Given(self.lock, [_Hidden(latents.detach(), latents.clone())])
        poison(latents)
        self._given[latents.data_ptr()] = (weakref.ref(latents), event)
        return event


class _Given(ManualEvent):
    def __init__(self, lock: threading.RLock, hidden: list[_Hidden]) -> None:
        super().__init__()
        self.hidden = hidden
        self._lock = lock

    def set(self) -> None:
        with self._lock:
            for hidden in self.hidden:
                hidden.show(poisoned=False)
            super().set()
