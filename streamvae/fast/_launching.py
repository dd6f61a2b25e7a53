"""What the walks of one stream share while their chunks are launched as graphs."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae._graphs import Graphs
from streamvae.codecs import State

from ._fingerprint import Fingerprint, fingerprint
from ._slots import Form, Slot, StaticState, copied, form_of, places_in, slots_of

if TYPE_CHECKING:
    from ._steady import GraphedWalk

_log = logging.getLogger("streamvae")

GRAPH = "graph"
EAGER = "eager"

_active: weakref.WeakKeyDictionary[Graphs, int] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextlib.contextmanager
def count_stream(graphs: Graphs | None) -> Iterator[None]:
    """Count a stream as one that uses the device of ``graphs``, as long as the block lasts."""
    if graphs is None:
        yield
        return
    with _lock:
        _active[graphs] = _active.get(graphs, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _active[graphs] -= 1


def check_only_stream(graphs: Graphs | None) -> None:
    """Refuse to record beside other streams than the one that asks.

    Raises:
        UsageError: Saying how many there are.
    """
    with _lock:
        others = 0 if graphs is None else _active.get(graphs, 0) - 1
    if others > 0:
        raise UsageError(
            "expected nobody to use the device while graphs are recorded, got a warmup beside "
            f"{others} stream{'s' if others > 1 else ''}; call warmup before streams begin, or "
            "when they have ended"
        )


class GraphLauncher:
    """How one stream's chunks are launched: as graphs where slots are free, until told otherwise.

    Args:
        family: For people.
        module: The autoencoder.
        graphs: The device's.
        obstacle: Why there cannot be graphs; empty where there can.
        why: Why it is no faster step.
    """

    def __init__(
        self, family: str, module: nn.Module, graphs: Graphs, obstacle: str = "", why: str = ""
    ) -> None:
        self.obstacle = obstacle
        self._why = why
        self._family = family
        self._decoder = cast("nn.Module", getattr(module, "decoder", module))
        self._graphs = graphs
        self._slots = slots_of(module)
        self._walks: weakref.WeakSet[GraphedWalk] = weakref.WeakSet()
        self._replays = 0
        self._missed = False
        self._stale = False  # graphs were dropped

    @property
    def status(self) -> str:
        """How chunks are launched, as far as is known by now."""
        if not self.obstacle and (self._replays or (self._slots and not self._missed)):
            return "; ".join(filter(None, (GRAPH, self._why)))
        missed = "none of the recorded graphs is free for it" if self._slots else ""
        reasons = "; ".join(filter(None, (self._why, self.obstacle or missed)))
        return f"{EAGER} ({reasons})" if reasons else EAGER

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know who has recorded graphs."""
        reason = self.obstacle if self._slots or self._replays else ""
        if self._stale:
            reason = reason or "they are of other weights or modes; call warmup again"
        return (f"graphs of {self._family} were recorded and not used: {reason}",) if reason else ()

    def give_up(self, reason: str) -> None:
        """Launch no more graphs; said once."""
        if not self.obstacle:
            self.obstacle = reason
            _log.warning("%s decodes without a CUDA graph: %s", self._family, reason)

    def add(self, walk: GraphedWalk) -> None:
        """Have ``walk`` among those that `record` records for."""
        self._walks.add(walk)

    def take(self, latents: torch.Tensor, form: Form) -> Slot | None:
        """An idle slot for such chunks, if there is one."""
        if self.obstacle or not self._slots:
            return None
        slot = self._slots.take(fingerprint(self._decoder, latents), form)
        self._missed = slot is None
        self._stale = self._stale or (self._missed and not self._slots)
        return slot

    def give_back(self, slot: Slot) -> None:
        """A slot is idle."""
        self._slots.give_back(slot)

    def replay(self, slot: Slot, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode a chunk by its graph; None where that cannot be, with its state as it was."""
        if self.obstacle or slot.latents.shape != latents.shape:
            return None
        if not slot.current:
            self.give_up("its weights have moved since the stream began")
            return None
        try:
            frames = slot.replay(latents)
        except RuntimeError as error:
            self.give_up(f"it could not be launched: {_line(error)}")
            return None
        self._replays += 1
        return frames

    def record(self, streams: int) -> None:
        """Record slots for so many streams like this one, whose decoder is at its end.

        What cannot be recorded is said; what could be stays.

        Raises:
            UsageError: Other streams use the device.
        """
        check_only_stream(self._graphs)
        walks = list(self._walks)
        if self.obstacle or not walks:
            return
        samples = [walk.take_sample() for walk in walks]
        by_key: dict[tuple[Fingerprint, Form], list[Sample]] = {}
        for sample in samples:
            if sample is None:
                self.obstacle = "what it remembers grows, or these latents are too few"
                return
            by_key.setdefault(
                (fingerprint(self._decoder, sample.latents), form_of(sample.state)), []
            ).append(sample)
        try:
            for key, same in by_key.items():
                for _ in range(streams * len(same) - self._slots.count(*key)):
                    self._slots.give_back(self._recorded(key[0], same[0]))
            self._missed = False
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            self.give_up(f"it could not be recorded: {_line(error)}")

    def _recorded(self, key: Fingerprint, sample: Sample) -> Slot:
        state = StaticState(sample.copy_state())
        inputs, step = sample.latents.clone(memory_format=torch.contiguous_format), sample.step

        def chunk() -> torch.Tensor:
            frames, left = step(inputs, state.lend())
            state.take(left)
            return frames

        places = tuple(places_in(self._decoder))
        return Slot(key, state, inputs, self._graphs.capture(chunk), places)


@dataclass(slots=True)
class Sample:
    """A walk's last steady chunk, to record others like it.

    Attributes:
        latents: It.
        state: What it left.
        step: See `streamvae.codecs.Steady.stepper`.
        shared: Whether the tensors of the state are somebody's already.
    """

    latents: torch.Tensor
    state: State
    step: Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]
    shared: bool

    def copy_state(self) -> State:
        """Give the state; from the second time on a copy of it."""
        given, self.shared = cast("State", copied(self.state, clone=self.shared)), True
        return given


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
