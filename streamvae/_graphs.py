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
        """Launch them in the current stream; RuntimeError if nothing could be launched.

        Returns:
            The result, at the same place every time: the next replay of any graph of the device
            overwrites it. Read it in the same stream before that.
        """
        ...


class Graphs(Protocol):
    """A device's recorder of graphs, on its launch thread; only `streamvae.warmup` records.

    Attributes:
        streams: Who decodes on the device now.
    """

    streams: set[object]

    def capture(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Run ``work`` once, for whatever is made lazily, then record what it launches.

        Raises:
            RuntimeError: It cannot be recorded: no memory, or something in it waits for the device.
                The device, its generators and its allocators are as before.
        """
        ...
