"""Latents from host memory to the device: through page-locked slots, ahead of their launch.

Which memory is in flight, and who holds it, is said in Note [Memory in flight] in ``_streamed``.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import torch

from streamvae._events import Event
from streamvae._threads import Worker
from streamvae._turns import Ticket, Turnstile
from streamvae.abc import Uploaded

from ._driver import Driver
from ._slots import Slots

#: Uploads under way at once, each with a slot of host memory.
SLOTS = 2


@dataclass(slots=True, eq=False)
class _Flight:
    """Memory of the host that the device reads, until an event; for good, if that never happens."""

    buffer: torch.Tensor | None = None
    sources: tuple[torch.Tensor, ...] = ()
    done: Event | None = None


class Uploads:
    """See `streamvae.abc.Uploads`. Memory is copied, allocated and let go on the copy thread.

    Args:
        driver: The device.
        worker: The copy thread.
        pool: Its slots.
    """

    def __init__(self, driver: Driver, worker: Worker, pool: Slots) -> None:
        self._driver = driver
        self._worker = worker
        self._pool = pool
        self._slots = Turnstile(SLOTS)
        self._flights: list[_Flight] = []

    def wanted(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """See `streamvae.abc.Uploads.wanted`."""
        return any(self._driver.on_host(tensor) for tensor in tensors)

    def slot(self) -> Ticket:
        """See `streamvae.abc.Uploads.slot`."""
        return self._slots.take()

    def start(self, tensors: tuple[torch.Tensor, ...], slot: Ticket) -> Future[Uploaded]:
        """See `streamvae.abc.Uploads.start`."""
        return self._worker.submit(self._start, tensors, slot)

    # On the copy thread.

    def _start(self, tensors: tuple[torch.Tensor, ...], slot: Ticket) -> Uploaded:
        flight = _Flight()
        try:
            brought = [self._driver.on_host(tensor) for tensor in tensors]
            given = [one for one, host in zip(tensors, brought, strict=True) if host]
            with self._driver.on("upload"), self._driver.named("upload of latents"):
                self._reap()
                self._stage(given, flight)
                made = tuple(map(self._copy, flight.sources))
                flight.done = self._driver.record("upload", made=made, read=flight.sources)
        except BaseException:
            self._flights.append(flight)  # a copy may have begun, and no event will end it
            slot.leave()
            raise
        self._flights.append(flight)
        slot.leave(after=flight.done)
        there = iter(made)
        return Uploaded(
            tuple(next(there) if host else one for one, host in zip(tensors, brought, strict=True)),
            (flight.done,),
        )

    def _stage(self, tensors: list[torch.Tensor], flight: _Flight) -> None:
        """Have all that the device is to copy dense and, if that can be, in page-locked memory."""
        layouts = [self._layout(tensor) for tensor in tensors]
        total = sum(_room(layout) for layout in layouts if layout is not None)
        buffer = flight.buffer = self._pool.take(total) if total else None
        begin, sources = 0, list(tensors)
        for at, layout in enumerate(layouts):
            if layout is not None and buffer is not None:
                sources[at] = _view(buffer, begin, layout).copy_(tensors[at])
                begin += _room(layout)
        flight.sources = tuple(sources)

    def _layout(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Shape and strides that ``tensor.to(device)`` has; None if it can be copied as it is."""
        layout = tensor.to("meta")
        as_it_is = tensor.stride() == layout.stride() and self._driver.is_pinned(tensor)
        return None if as_it_is else layout

    def _copy(self, source: torch.Tensor) -> torch.Tensor:
        made = torch.empty_strided(
            source.shape, source.stride(), dtype=source.dtype, device=self._driver.device
        )
        self._driver.copy(source, made)
        return made

    def _reap(self) -> None:
        """Take back the slots whose copies are over."""
        over = [flight for flight in self._flights if _happened(flight.done)]
        self._flights = [flight for flight in self._flights if flight not in over]
        for flight in over:
            if flight.buffer is not None:
                self._give_back(flight.buffer)

    def _give_back(self, buffer: torch.Tensor) -> None:
        self._pool.give_back(buffer)


#: Parts of a slot begin at multiples of so many bytes.
_ALIGNED = 64


def _room(layout: torch.Tensor) -> int:
    return -(-layout.nbytes // _ALIGNED) * _ALIGNED


def _view(buffer: torch.Tensor, begin: int, layout: torch.Tensor) -> torch.Tensor:
    """The part of a slot that a tensor of ``layout``, which is dense, goes to."""
    flat = buffer[begin : begin + layout.nbytes].view(layout.dtype)
    return flat.as_strided(layout.shape, layout.stride())


def _happened(event: Event | None) -> bool:
    """Whether it has; an event that failed, or was never recorded, never will."""
    try:
        return event is not None and event.query()
    except Exception:  # noqa: BLE001  # reported to the one who waits for it, not to us
        return False
