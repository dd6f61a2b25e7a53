"""CUDA graphs, as a backend may offer them: kernels recorded once and launched again as one.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Graph(Protocol):
    """Recorded kernels, over the memory that they were recorded with."""

    def replay(self) -> torch.Tensor:
        """Launch them in the current stream.

        Returns:
            The recorded result, at the same place every time: the next replay, also of another
            graph of the device, overwrites it. Read it in the same stream before that.

        Raises:
            RuntimeError: They could not be launched; nothing ran.
        """
        ...


class Graphs(Protocol):
    """A device's recorder of graphs; used on its launch thread, while nobody else uses the device.

    Recording reaches into other threads of the process, and they into it, so only
    `streamvae.warmup` records.
    """

    def capture(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Run ``work`` once, for whatever is made lazily, then record what it launches.

        Whatever it raises, the device, its generators and its allocators are as before, and so is
        all memory made outside ``work``.

        Raises:
            RuntimeError: It cannot be recorded: no memory, or something in it waits for the device.
        """
        ...
