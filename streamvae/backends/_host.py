"""The host's own processor, and every accelerator whose asynchronous copies are not trusted."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from streamvae._events import Event, Happened
from streamvae._threads import Worker, parked
from streamvae._turns import Ticket, Turnstile, current_line
from streamvae.abc import Copy, Downloaded, Rendered

from ._cuda import mark
from ._streamed import LAUNCHES, SLOTS

T = TypeVar("T")

#: Seconds between two looks at the event of latents that another device is still writing.
_LOOK = 0.0002


class HostCopy:
    """Pixels that are in host memory already."""

    def __init__(self, downloaded: Downloaded, slot: Ticket) -> None:
        self._downloaded = downloaded
        self._slot = slot  # one that is dropped gives its place back by itself
        self._done = Happened()

    @property
    def done(self) -> Event:
        """It is."""
        return self._done

    def collect(self) -> Downloaded:
        """Give the pixels out and the place back."""
        self._slot.leave()
        return self._downloaded


class HostBackend:
    """Everything is finished when its future is: launches and copies are synchronous."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._launching = Worker(f"streamvae launch {device}")
        self._copying = Worker(f"streamvae copy {device}")
        self._turns = Turnstile(LAUNCHES)
        self._slots = Turnstile(SLOTS)

    @property
    def device(self) -> torch.device:
        """The device."""
        return self._device

    def mark(self, latents: torch.Tensor) -> Event | None:
        """As in `Backend`; latents may be on a CUDA device though decoding is not."""
        return mark(latents)

    def turn(self) -> Ticket:
        """As in `Backend`."""
        return self._turns.take(current_line())

    def slot(self) -> Ticket:
        """As in `Backend`."""
        return self._slots.take()

    def launch(
        self,
        work: Callable[[], Rendered | None],
        turn: Ticket,
        *,
        after: tuple[Event, ...] = (),
        hold: tuple[object, ...] = (),
    ) -> Future[tuple[object, Event]]:
        """As in `Backend`; ``ready`` has happened when the future is done."""
        # torch counts its threads by thread, and picks algorithms by their number: the launch
        # thread, which may be older than the caller's choice, has to decode as the caller would.
        threads = torch.get_num_threads()
        return self._launching.submit(self._launch, work, turn, after, hold, threads)

    def _launch(
        self,
        work: Callable[[], Rendered | None],
        turn: Ticket,
        after: tuple[Event, ...],
        hold: tuple[object, ...],  # noqa: ARG002  # alive as long as this call, which is enough
        threads: int,
    ) -> tuple[object, Event]:
        try:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for event in after:
                _wait(event)
            began = time.monotonic()
            with torch.no_grad():
                rendered = work()
            finished = self._finish()
        finally:
            turn.leave()
        return rendered, _Done(began, time.monotonic()) if finished else Happened()

    def download(self, handle: object, ready: Event, slot: Ticket) -> Future[Copy | None]:
        """As in `Backend`; host memory is not copied, the tensor's becomes the chunk's own."""
        return self._copying.submit(self._download, handle, ready, slot)

    def _download(self, handle: object, ready: Event, slot: Ticket) -> Copy | None:
        if not isinstance(handle, Rendered):
            slot.leave()
            return None
        try:
            _wait(ready)
            pixels = handle.pixels.cpu().numpy()
            pixels.flags.writeable = False
            latents_finite, pixels_finite = handle.finite.tolist()
        except BaseException:
            slot.leave()  # not with the error, which somebody may keep
            raise
        return HostCopy(Downloaded(pixels, latents_finite, pixels_finite, handle.picture), slot)

    def collect(self, copy: Copy) -> Future[Downloaded]:
        """As in `Backend`."""
        if not isinstance(copy, HostCopy):
            raise TypeError(f"expected a copy of this backend, got {type(copy).__name__}")
        return self._copying.submit(copy.collect)

    def settle(self, handle: object) -> Future[Rendered | None]:
        """As in `Backend`; the flags come to the host."""
        return self._copying.submit(_settle, handle)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """As in `Backend`."""
        return self._launching.submit(self._run, work)

    def _run(self, work: Callable[[], T]) -> T:
        with torch.no_grad():
            return work()

    def _finish(self) -> bool:
        """Make "finished when the future is" true of accelerators that launch ahead.

        False where it was true already, so that the work took what its call took.
        """
        if self._device.type == "cpu":
            return False
        torch.accelerator.synchronize(self._device)
        return True


class _Done(Happened):
    """The event of work of which the host has seen the beginning and the end."""

    def __init__(self, began: float, ended: float) -> None:
        self._span = (began, ended)

    def span(self) -> tuple[float, float]:
        """See `streamvae._events.Timed.span`."""
        return self._span


def _settle(handle: object) -> Rendered | None:
    if not isinstance(handle, Rendered):
        return None
    return Rendered(handle.pixels, handle.finite.cpu())


def _wait(event: Event) -> None:
    """Block this device's thread until another device has written what it is to read."""
    while not event.query():
        with parked():
            time.sleep(_LOOK)
