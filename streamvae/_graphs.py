"""A chunk's kernels recorded once and launched again as one: what a backend may offer for it.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Graph(Protocol):
    """Recorded kernels, over the memory that they were recorded with."""

    def replay(self) -> torch.Tensor:
        """Launch them in the stream one is on.

        Returns:
            What was recorded as the result, at the same place every time: the next replay, also of
            another graph of the same device, overwrites it. Read it in the same stream before that.
        """
        ...


class Graphs(Protocol):
    """How a device records graphs; used on its launch thread only."""

    @property
    def idle_bytes(self) -> int:
        """How much memory recorded graphs and their state may keep while no stream uses them."""
        ...

    def room(self) -> int:
        """Bytes of device memory that could still be had."""
        ...

    def reserved(self) -> int:
        """Bytes of device memory that this process holds, in use or not."""
        ...

    def rehearse(self, work: Callable[[], T]) -> T:
        """Run what is about to be recorded, in the memory that its graph will have.

        Without it the memory between kernels is held twice: once for graphs, once for others.
        What ``work`` gives lies in that memory: copy it in the same stream, and let go of it. The
        memory is held until `settle`.
        """
        ...

    def settle(self) -> None:
        """Leave what was rehearsed to the graphs that were recorded since, if there are any."""
        ...

    def capture(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Record what ``work`` launches, without running it.

        Whatever it raises, the device is as before, and so is all memory made outside ``work``.

        Raises:
            RuntimeError: It cannot be recorded: no memory, or something in it waits for the device.
        """
        ...

    def retire(self, thing: object) -> None:
        """Keep ``thing`` until all that was launched so far is over."""
        ...
