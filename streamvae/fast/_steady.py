"""Walks whose chunks, once their state has its final form, are launched as graphs.

A recorded chunk leaves its state elsewhere than where it read it, and then copies it there: one
pass over the state more than eager takes, and many launches less.
"""

from __future__ import annotations

from typing import cast

import torch

from streamvae.codecs import State, Steady

from ._launching import GraphLauncher, Sample
from ._slots import Slot, copied, form_of


class GraphedWalk:
    """A walk over a slot, where there is one for it. See `streamvae.codecs.Walk`.

    While the slot has the walk's state, the walk itself knows the slot's tensors, in containers of
    its own: it can go on from there at any time, kernel by kernel.
    """

    def __init__(self, walk: Steady, launcher: GraphLauncher) -> None:
        self._walk = walk
        self._launcher = launcher
        self._slot: Slot | None = None
        self._loaded = False  # whether the slot's state is the walk's
        self._latents: torch.Tensor | None = None  # of the last step
        launcher.add(self)

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next latents."""
        if self._walk.is_step(latents):
            self._latents = latents
            if self._load(latents):
                assert self._slot is not None  # noqa: S101  # it is loaded
                frames = self._launcher.replay(self._slot, latents)
                if frames is not None:
                    return frames
        self._loaded = False
        return self._walk.push(latents)

    def drain(self) -> torch.Tensor | None:
        """Give what is held."""
        self._loaded = False
        return self._walk.drain()

    def clear(self) -> None:
        """Let go of all state; a slot stays with the autoencoder."""
        slot, self._slot, self._latents = self._slot, None, None
        self._walk.clear()
        if slot is not None:
            self._launcher.give_back(slot)

    def take_sample(self) -> Sample | None:
        """Give up the state, for others to be recorded over; None if it has no final form."""
        state, latents = self._walk.state, self._latents
        if state is None or latents is None:
            return None
        held = cast("State", copied(state, clone=False))
        self._walk.put(type(state)())
        sample = Sample(latents, held, self._walk.stepper(), shared=self._slot is not None)
        slot, self._slot, self._loaded = self._slot, None, False
        if slot is not None:
            self._launcher.give_back(slot)
        return sample

    def _load(self, latents: torch.Tensor) -> bool:
        """Have the state in a slot, if there is one that it fits in."""
        state = self._walk.state
        if self._loaded or state is None:
            return self._loaded
        form = form_of(state)
        if self._slot is None:
            self._slot = self._launcher.take(latents, form)
        if self._slot is None or self._slot.state.form != form:
            return False
        self._slot.state.take(state)
        self._walk.put(self._slot.state.lend())
        self._loaded = True
        return True
