"""Decoder slots: the state of one walk at fixed addresses, with the graph recorded over it.

A slot belongs to one walk at a time. Those of walks that are over stay with their autoencoder for
the next one, within bounds.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from streamvae._graphs import Graph, Graphs
from streamvae._locks import fork_safe_lock

#: What a graph is recorded for: shape of a picture's latents, dtype, device, and torch's switches.
Key = tuple[object, ...]


class State(Protocol):
    """What one walk keeps, at fixed addresses."""

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        ...

    def rewind(self) -> None:
        """Be ready for a first chunk."""
        ...


@dataclass(slots=True, eq=False)
class Slot:
    """State and graph of one walk.

    Attributes:
        key: What it is for.
        state: What the walk keeps.
        latents: What the graph reads, (B, C, t, h, w).
        graph: One steady chunk.
        first: The first chunk, if that could be recorded too.
        weights: Where each of the decoder's weights was when it was recorded.
        nbytes: Of device memory, the graph's own included.
    """

    key: Key
    state: State
    latents: torch.Tensor
    graph: Graph
    weights: tuple[tuple[torch.Tensor, int], ...]
    nbytes: int
    first: Graph | None = None

    @property
    def current(self) -> bool:
        """Whether the weights are still where the graph reads them."""
        return all(weight.data_ptr() == place for weight, place in self.weights)


class Slots:
    """The idle slots of one autoencoder."""

    def __init__(self) -> None:
        self._lock = fork_safe_lock()
        self._idle: list[tuple[Slot, Graphs]] = []

    def take(self, key: Key, weights: tuple[int, ...]) -> Slot | None:
        """One for ``key``; those of other weights are dropped."""
        with self._lock:
            stale = [(slot, graphs) for slot, graphs in self._idle if _places(slot) != weights]
            self._drop(stale)
            for entry in reversed(self._idle):
                if entry[0].key == key:
                    self._idle.remove(entry)
                    return entry[0]
        return None

    def give_back(self, slot: Slot, graphs: Graphs) -> None:
        """Keep it for the next walk, if there is room; on the launch thread."""
        with self._lock:
            self._idle.append((slot, graphs))
            kept, over = 0, []
            for entry in reversed(self._idle):  # the longest idle go first
                kept += entry[0].nbytes
                if kept > graphs.idle_bytes:
                    over.append(entry)
            self._drop(over)

    def release(self) -> int:
        """Drop them all; gives their bytes."""
        with self._lock:
            freed = sum(slot.nbytes for slot, _ in self._idle)
            # Idle: the last that was launched over them came before their stream had ended.
            self._idle.clear()
        return freed

    def _drop(self, entries: list[tuple[Slot, Graphs]]) -> None:
        for slot, graphs in entries:
            self._idle.remove((slot, graphs))
            graphs.retire(slot)

    @property
    def nbytes(self) -> int:
        """What they hold."""
        with self._lock:
            return sum(slot.nbytes for slot, _ in self._idle)


def _places(slot: Slot) -> tuple[int, ...]:
    return tuple(place for _, place in slot.weights) if slot.current else ()


_SLOTS: weakref.WeakKeyDictionary[nn.Module, Slots] = weakref.WeakKeyDictionary()
_LOCK = fork_safe_lock()


def slots_of(module: nn.Module) -> Slots:
    """The slots of an autoencoder; they go when it goes."""
    with _LOCK:
        return _SLOTS.setdefault(module, Slots())


def release() -> int:
    """Give back the device memory that idle decoder slots keep for the next stream.

    After a stream over a CUDA device its decoder's state and its graph are kept, up to an eighth of
    the device's memory (environment variable ``STREAMVAE_IDLE_GRAPH_BYTES``), so that the next one
    need not record it again. They also go with their autoencoder. Streams that run are not touched.

    Returns:
        Bytes that torch's allocator has again; ``torch.cuda.empty_cache()`` gives them to others.
    """
    with _LOCK:
        every = list(_SLOTS.values())
    return sum(slots.release() for slots in every)
