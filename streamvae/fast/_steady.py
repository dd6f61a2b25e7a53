"""Graphs for families whose state is handed from chunk to chunk, whatever its form.

The state that a recorded chunk leaves is copied back to where it read it: one pass over the state
more than eager takes, and many launches less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch

from streamvae.codecs import State, Steady, WalkingCodec

from ._launching import Launching, key_of
from ._slots import Slot

#: Chunks after which a state that still changes its form will go on doing so.
PATIENCE = 3

#: The form of a state: containers, keys, and of each tensor what a kernel sees of it.
Form = object


class StaticState:
    """A state whose tensors stay where they are."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.form = form_of(state)
        self._leaves = tuple(leaves(state))
        self.nbytes = sum(leaf.nbytes for leaf in self._leaves)

    def rewind(self) -> None:
        """Nothing to do: `take` writes over all of it."""

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
        """The state in containers of its own."""
        return cast("State", _copied(self.state))


class GraphedSteady:
    """A walk whose steady chunks are launched as graphs. See `streamvae.codecs._walk.Walk`."""

    def __init__(self, walk: Steady, codec: WalkingCodec, launching: Launching) -> None:
        self._walk = walk
        self._codec = codec
        self._launching = launching
        self._slot: Slot | None = None
        self._pushed = 0

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next latents."""
        launching, before = self._launching, self._walk.state
        self._pushed += 1
        if before is None or launching.obstacle or not self._walk.is_step(latents):
            return self._eager(latents)
        if self._slot is None:
            self._slot = self._idle(latents, before)
        if self._slot is not None and launching.usable(self._slot, latents):
            # Whoever gets these may keep them: nothing else copies frames in these families.
            return launching.replay(self._slot, latents).clone()
        if self._slot is not None:
            return self._eager(latents)
        was = form_of(before)
        frames = self._walk.push(latents)
        after = self._walk.state
        if after is not None and form_of(after) == was:
            self._slot = self._recorded(latents, after)
        elif self._pushed >= PATIENCE:
            launching.give_up("what it remembers grows")
        return frames

    def drain(self) -> torch.Tensor | None:
        """Give what is held."""
        self._own()
        return self._walk.drain()

    def clear(self) -> None:
        """Let go of all state; a slot stays with the autoencoder."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._walk.put({})  # the slot's own containers are not to be emptied
            self._launching.give_back(slot)
        self._walk.clear()

    def _eager(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode kernel by kernel."""
        self._own()
        frames = self._walk.push(latents)
        if self._slot is not None:
            state = self._walk.state
            static = cast("StaticState", self._slot.state)
            if state is not None and form_of(state) == static.form:
                static.take(state)
                self._walk.put(static.state)
            else:
                slot, self._slot = self._slot, None
                self._launching.give_back(slot)
        return frames

    def _own(self) -> None:
        """Have the walk's state in containers that it may change."""
        if self._slot is not None:
            self._walk.put(cast("StaticState", self._slot.state).lend())

    def _idle(self, latents: torch.Tensor, state: State) -> Slot | None:
        """A slot for what comes, with the state in it."""
        form = form_of(state)
        key = (*key_of(self._codec.family, latents), latents.shape[2], form)
        slot = self._launching.take(key, self._weights())
        if slot is not None:
            static = cast("StaticState", slot.state)
            static.take(state)
            self._walk.put(static.state)
        return slot

    def _recorded(self, latents: torch.Tensor, state: State) -> Slot | None:
        static = StaticState(state)
        step = self._walk.stepper()

        def chunk(inputs: torch.Tensor) -> torch.Tensor:
            frames, left = step(inputs, static.lend())
            static.take(left)
            return frames

        key = (*key_of(self._codec.family, latents), latents.shape[2], static.form)
        return self._launching.record(key, static, latents, self._weights(), chunk)

    def _weights(self) -> tuple[torch.Tensor, ...]:
        module = self._codec.module
        return (*module.parameters(), *module.buffers())


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
    return id(key) if isinstance(key, torch.nn.Module) else key


def _copied(state: object) -> object:
    if isinstance(state, dict):
        return {key: _copied(kept) for key, kept in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(kept) for kept in state)
    return state
