"""Decoder slots: the state of one walk at fixed addresses, with the graph recorded over it.

`streamvae.warmup` makes them. A slot belongs to one walk at a time; those of walks that are over
stay with their autoencoder for the next one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from streamvae._graphs import Graph
from streamvae._locks import fork_safe_lock
from streamvae.codecs import State

from ._fingerprint import Fingerprint


class Key(NamedTuple):
    """What a graph is recorded for: the same code over the same weights, chunk and form of state.

    The form: containers, keys, and of each tensor what a kernel sees of it.
    """

    fingerprint: Fingerprint
    containers: pytree.TreeSpec
    tensors: tuple[object, ...]

    @classmethod
    def of(cls, fingerprint: Fingerprint, state: State) -> Key:
        """The key of a chunk that reads ``state``."""
        leaves, containers = pytree.tree_flatten(state)
        return cls(fingerprint, containers, tuple(map(_form, leaves)))


def _form(leaf: object) -> object:
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.stride()
    return leaf


@dataclass(slots=True, eq=False)
class Slot:
    """State and graph of one walk.

    Attributes:
        key: What it was recorded for.
        state: What the walk keeps.
        latents: What the graph reads, (B, C, t, h, w).
        weights: What else it reads, and where that was.
        graph: One steady chunk.
    """

    key: Key
    state: State
    latents: torch.Tensor
    weights: tuple[tuple[torch.Tensor, int], ...]
    graph: Graph

    @property
    def current(self) -> bool:
        """Whether the weights are still where the graph reads them."""
        return all(weight.data_ptr() == place for weight, place in self.weights)

    @property
    def nbytes(self) -> int:
        """What its state takes."""
        return sum(getattr(leaf, "nbytes", 0) for leaf in pytree.tree_leaves(self.state))


def load(state: State, into: State) -> None:
    """Copy a state into another one of the same form.

    Raises:
        RuntimeError: They are not.
    """
    (new, containers), (own, other) = pytree.tree_flatten(state), pytree.tree_flatten(into)
    if containers != other or list(map(_form, new)) != list(map(_form, own)):
        raise RuntimeError("what it remembers changes its form")
    for here, there in zip(own, new, strict=True):
        if isinstance(here, torch.Tensor) and there is not here:
            here.copy_(there)


def copy_containers(state: State) -> State:
    """The same tensors in containers that may be changed."""
    return cast("State", pytree.tree_map(lambda leaf: leaf, state))


#: By autoencoder, those that no walk has; they go when it goes.
_idle: weakref.WeakKeyDictionary[nn.Module, list[Slot]] = weakref.WeakKeyDictionary()
_LOCK = fork_safe_lock()


def idle_slots(module: nn.Module) -> tuple[Slot, ...]:
    """The slots of an autoencoder that no walk has."""
    return tuple(_idle.get(module, ()))


def take_slot(module: nn.Module, key: Key) -> Slot | None:
    """Take one that was recorded for the same; those of other weights are dropped."""
    weights = key.fingerprint.weights
    with _LOCK:
        dropped = _idle.get(module, [])  # destroyed after the lock is free
        idle = _idle[module] = [slot for slot in dropped if slot.key.fingerprint.weights == weights]
        found = next((slot for slot in idle if slot.key == key), None)
        if found is not None:
            idle.remove(found)
    return found


def give_back(module: nn.Module, slot: Slot) -> None:
    """Keep it for the next walk."""
    with _LOCK:
        _idle.setdefault(module, []).append(slot)


def release_slots() -> int:
    """Let go of all idle slots, and give the bytes of their state."""
    with _LOCK:
        dropped = [slot for slots in _idle.values() for slot in slots]
        _idle.clear()
    return sum(slot.nbytes for slot in dropped)
