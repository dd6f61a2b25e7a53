"""Walks whose chunks are launched as graphs, once their state has its final form.

A recorded chunk leaves its state elsewhere than where it read it, and then copies it there: one
pass over the state more than eager takes, and many launches less.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import cast

import torch
from torch.utils import _pytree as pytree

from streamvae._errors import UsageError
from streamvae._graphs import Graphs
from streamvae.codecs import State, Steady, WalkingCodec

from ._fingerprint import fingerprint
from ._slots import Key, Slot, copy_containers, give_back, idle_slots, load, take_slot

_log = logging.getLogger("streamvae")

Step = Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]

EAGER = "eager"
_NONE_FREE = "none of the recorded graphs is free for it"
_STALE = "they were of other weights or modes; call warmup again"


def check_only_stream(graphs: Graphs | None) -> None:
    """Refuse to record beside other streams than the one that asks.

    Raises:
        UsageError: Saying how many there are.
    """
    others = 0 if graphs is None else len(graphs.streams) - 1
    if others > 0:
        raise UsageError(
            "expected nobody to use the device while graphs are recorded, got a warmup beside "
            f"{others} stream{'s' * (others > 1)}; call warmup before streams begin, or when they "
            "have ended"
        )


class GraphLauncher:
    """How one stream's chunks are launched: as graphs where slots are free for them.

    Args:
        codec: The stream's.
        graphs: The device's.
        obstacle: Why there cannot be graphs; empty where there can.
    """

    def __init__(self, codec: WalkingCodec, graphs: Graphs, obstacle: str = "") -> None:
        self.obstacle = obstacle
        self._codec = codec
        self._graphs = graphs
        self._walks: weakref.WeakSet[GraphedWalk] = weakref.WeakSet()
        self._recorded_before = bool(idle_slots(codec.module))
        self._replays = 0
        self._missed = ""  # why there is no slot

    @property
    def status(self) -> str:
        """How chunks are launched, as far as is known by now."""
        reason = self.obstacle or self._missed
        if not reason:
            return "graph" if self._replays or idle_slots(self._codec.module) else EAGER
        return f"{EAGER} ({reason})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know who has recorded graphs."""
        reason = self.obstacle or self._missed.removeprefix(_NONE_FREE)
        if not (reason and self._recorded_before):
            return ()
        return (f"graphs of {self._codec.family} were recorded and not used: {reason}",)

    def give_up(self, reason: str) -> None:
        """Launch no more graphs; said once."""
        if not self.obstacle:
            self.obstacle = reason
            _log.warning("%s decodes without a CUDA graph: %s", self._codec.family, reason)

    def key(self, latents: torch.Tensor, state: State) -> Key:
        """What a graph of this chunk would be recorded for."""
        return Key.of(fingerprint(self._codec.vae.decoder, latents), state)

    def take(self, latents: torch.Tensor, state: State) -> Slot | None:
        """An idle slot for such chunks, if there is one."""
        module = self._codec.module
        if self.obstacle or not idle_slots(module):
            return None
        slot = take_slot(module, self.key(latents, state))
        self._missed = "" if slot else _NONE_FREE if idle_slots(module) else _STALE
        return slot

    def replay(self, slot: Slot, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode a chunk by its graph; None where that cannot be, with its state as it was."""
        if self.obstacle or slot.latents.shape != latents.shape:
            return None
        if not slot.current:
            self.give_up("its weights have moved since the stream began")
            return None
        slot.latents.copy_(latents)
        try:
            frames = slot.graph.replay()
        except RuntimeError as error:
            self.give_up(f"it could not be launched: {_line(error)}")
            return None
        self._replays += 1
        return frames.clone()  # out of the memory that the next replay overwrites

    def record(self, streams: int) -> None:
        """Record slots for so many streams like this one, whose walks are at their end.

        What cannot be recorded is said; what could be stays.

        Raises:
            UsageError: Other streams use the device.
        """
        check_only_stream(self._graphs)
        if self.obstacle:
            return
        made: list[Slot] = []
        try:
            for sample in [walk.leave() for walk in list(self._walks)]:
                made += (self._recorded(*sample) for _ in range(streams))
            self._missed = ""
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            self.give_up(f"it could not be recorded: {_line(error)}")
        finally:
            for slot in made:
                give_back(self._codec.module, slot)

    def _recorded(self, latents: torch.Tensor, state: State, step: Step) -> Slot:
        """A slot for chunks like this one, with what they leave: an idle one, or another."""
        key = self.key(latents, state)
        if (idle := take_slot(self._codec.module, key)) is not None:
            return idle
        inputs = latents.clone(memory_format=torch.contiguous_format)
        decoder = self._codec.vae.decoder
        weights = ((one, one.data_ptr()) for one in (*decoder.parameters(), *decoder.buffers()))
        own = cast("State", pytree.tree_map_only(torch.Tensor, torch.clone, state))

        def chunk() -> torch.Tensor:
            frames, left = step(inputs, copy_containers(own))
            load(left, own)
            return frames

        return Slot(key, own, inputs, tuple(weights), self._graphs.capture(chunk))


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
        launcher._walks.add(self)

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next latents."""
        if self._walk.is_step(latents):
            self._latents = latents
            if self._load(latents) and self._slot is not None:
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
        slot, self._slot, self._latents, self._loaded = self._slot, None, None, False
        self._walk.clear()
        if slot is not None:
            give_back(self._launcher._codec.module, slot)

    def leave(self) -> tuple[torch.Tensor, State, Step]:
        """Give the slot back; gives the last step, the state that it left, and what steps.

        Raises:
            RuntimeError: It has no state of a final form.
        """
        state, latents = self._walk.state, self._latents
        if state is None or latents is None:
            raise RuntimeError("what it remembers grows, or these latents are too few")
        held = copy_containers(state)
        self.clear()
        return latents, held, self._walk.stepper()

    def _load(self, latents: torch.Tensor) -> bool:
        """Have the state in a slot, if there is one that it fits in."""
        state = self._walk.state
        if self._loaded or state is None:
            return self._loaded
        self._slot = self._slot or self._launcher.take(latents, state)
        if self._slot is not None:
            with contextlib.suppress(RuntimeError):  # an odd chunk has left another form
                load(state, self._slot.state)
                self._walk.put(copy_containers(self._slot.state))
                self._loaded = True
        return self._loaded


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
