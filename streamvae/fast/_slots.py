"""Decoder slots: the state of one walk at fixed addresses, with the graph recorded over it.

`streamvae.warmup` makes them. A slot belongs to one walk at a time; those of walks that are over
stay with their autoencoder for the next one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from streamvae._graphs import Graph
from streamvae.codecs import State

from ._fingerprint import Fingerprint

#: The form of a state: containers, keys, and of each tensor what a kernel sees of it.
Form = object


class StaticState:
    """A state whose tensors stay where they are.

    Args:
        state: Whose tensors they are from now on.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.form = form_of(state)
        self._leaves = tuple(leaves(state))
        self.nbytes = sum(leaf.nbytes for leaf in self._leaves)

    def take(self, state: State) -> None:
        """Hold the values of a state of the same form.

        Raises:
            RuntimeError: It is of another form.
        """
        if form_of(state) != self.form:
            raise RuntimeError("what it remembers changes its form")
        for own, new in zip(self._leaves, leaves(state), strict=True):
            if new is not own:
                own.copy_(new)

    def lend(self) -> State:
        """The state in containers that may be changed."""
        return cast("State", copied(self._state, clone=False))


@dataclass(slots=True, eq=False)
class Slot:
    """State and graph of one walk.

    Attributes:
        fingerprint: Of what was recorded.
        state: What the walk keeps.
        latents: What the graph reads, (B, C, t, h, w).
        graph: One steady chunk.
        places: Each weight: the module's table, its name there, itself, and where it is.
    """

    fingerprint: Fingerprint
    state: StaticState
    latents: torch.Tensor
    graph: Graph
    places: tuple[tuple[dict[str, torch.Tensor | None], str, torch.Tensor, int], ...]

    @property
    def current(self) -> bool:
        """Whether the weights are still the same, and where the graph reads them; cheap."""
        return all(
            table.get(name) is tensor and tensor.data_ptr() == place
            for table, name, tensor, place in self.places
        )

    def replay(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a chunk over the state; frames are the caller's own.

        Raises:
            RuntimeError: It could not be launched; the state is as it was.
        """
        self.latents.copy_(latents)
        return self.graph.replay().clone()


class Slots:
    """The slots of one autoencoder that no walk has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Slot] = []

    def take(self, fingerprint: Fingerprint, form: Form) -> Slot | None:
        """One that was recorded for the same; those of other weights are dropped."""
        found = None
        with self._lock:
            dropped, self._idle = self._idle, []  # destroyed after the lock is free
            for slot in dropped:
                if slot.fingerprint.weights != fingerprint.weights:
                    continue
                if found is None and slot.fingerprint == fingerprint and slot.state.form == form:
                    found = slot
                else:
                    self._idle.append(slot)
        return found

    def count(self, fingerprint: Fingerprint, form: Form) -> int:
        """How many there are for the same."""
        with self._lock:
            return sum(
                slot.fingerprint == fingerprint and slot.state.form == form for slot in self._idle
            )

    def give_back(self, slot: Slot) -> None:
        """Keep it for the next walk."""
        with self._lock:
            self._idle.append(slot)

    def release(self) -> int:
        """Drop them all; gives the bytes of their state."""
        with self._lock:
            dropped, self._idle = self._idle, []
        return sum(slot.state.nbytes for slot in dropped)

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._idle)

    @property
    def nbytes(self) -> int:
        """What their state takes."""
        with self._lock:
            return sum(slot.state.nbytes for slot in self._idle)


def places_in(
    module: nn.Module,
) -> Iterator[tuple[dict[str, torch.Tensor | None], str, torch.Tensor, int]]:
    """Its parameters and buffers, as `Slot.places` has them; they keep no module alive."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield (
                        cast("dict[str, torch.Tensor | None]", table),
                        name,
                        tensor,
                        tensor.data_ptr(),
                    )


def leaves(state: object) -> Iterator[torch.Tensor]:
    """Its tensors, in order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for kept in state.values() if isinstance(state, dict) else state:
            yield from leaves(kept)


def form_of(state: object) -> Form:
    """See `Form`."""
    if isinstance(state, torch.Tensor):
        return (tuple(state.shape), state.dtype, state.device, state.stride())
    if isinstance(state, dict):
        return tuple((_name(key), form_of(kept)) for key, kept in state.items())
    if isinstance(state, list | tuple):
        return tuple(form_of(kept) for kept in state)
    return state


def _name(key: object) -> object:
    """Modules by identity: the form must not keep them."""
    return id(key) if isinstance(key, nn.Module) else key


def copied(state: object, *, clone: bool) -> object:
    """The state in containers of its own, its tensors too if ``clone`` is set."""
    if isinstance(state, torch.Tensor):
        return state.clone() if clone else state
    if isinstance(state, dict):
        return {key: copied(kept, clone=clone) for key, kept in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(kept, clone=clone) for kept in state)
    return state


_SLOTS: weakref.WeakKeyDictionary[nn.Module, Slots] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def slots_of(module: nn.Module) -> Slots:
    """The slots of an autoencoder; they go when it goes."""
    with _LOCK:
        return _SLOTS.setdefault(module, Slots())


def release() -> int:
    """Give back the device memory of the graphs that `warmup` has recorded.

    Each graph keeps a decoder's state, at addresses of its own, until its autoencoder goes or its
    weights move. Streams that run keep theirs.

    Returns:
        Bytes of state that torch's allocator has again; with the last graph of a device the memory
        between their kernels comes back too. ``torch.cuda.empty_cache()`` gives it to others.
    """
    with _LOCK:
        every = list(_SLOTS.values())
    return sum(slots.release() for slots in every)
