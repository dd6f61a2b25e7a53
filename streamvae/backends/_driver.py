"""What a device with streams must be able to do, so that `StreamedBackend` can run over it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch

from streamvae._events import Event

#: Where kernels run, where pixels go to the host, where latents come from it.
Stream = Literal["compute", "copy", "upload"]


class Driver(Protocol):
    """What a device with streams must be able to do; called on its own two threads."""

    @property
    def device(self) -> torch.device:
        """The device."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Everything launched inside goes to ``stream``, without gradients."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Have ``stream`` wait for ``event`` on the device. The host does not wait."""
        ...

    def begin(self, stream: Stream) -> None:
        """Note, for the event that `record` gives next, that its work begins here."""
        ...

    def named(self, label: str) -> AbstractContextManager[object]:
        """Have a profiler of the device show the thread under ``label`` inside."""
        ...

    def record(
        self,
        stream: Stream,
        *,
        made: tuple[torch.Tensor, ...] = (),
        read: tuple[object, ...] = (),
    ) -> Event:
        """An event that happens when ``stream`` has come this far; a `Timed` one, if it can.

        ``made`` and ``read`` say whose content depends on it; a real device need not be told.
        """
        ...

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Start an asynchronous copy in the stream one is on."""
        ...

    def mark(self, latents: torch.Tensor) -> Event | None:
        """Record where the calling thread's stream stands, on the device of ``latents``."""
        ...

    def on_host(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is in memory that this device copies from. Asks no device."""
        ...

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether the host memory of ``tensor`` is page-locked."""
        ...

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Page-locked uint8 memory. Raises RuntimeError when it is refused."""
        ...

    def give_out(self, tensor: torch.Tensor) -> None:
        """Make ``tensor``, which is finished, safe to use and free outside the compute stream."""
        ...
