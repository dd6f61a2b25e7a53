"""What the walks of one stream share while their chunks are launched as graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from streamvae._graphs import Graphs

from ._slots import Key, Slot, State, slots_of

_log = logging.getLogger("streamvae")

T = TypeVar("T")

GRAPH = "graph"
EAGER = "eager"


class Launching:
    """How one stream's chunks are launched: as graphs, until something speaks against it.

    Args:
        family: For people.
        module: The autoencoder.
        graphs: The device's.
    """

    def __init__(self, family: str, module: nn.Module, graphs: Graphs) -> None:
        self.graphs = graphs
        self.slots = slots_of(module)
        #: Tiles and clips that are decoded one after the other and then put together.
        self.walks = 0
        #: Why chunks are launched kernel by kernel after all; empty while they are not.
        self.obstacle = ""
        self._family = family
        self._before: int | None = None  # bytes that the process held before the rehearsal

    @property
    def said(self) -> str:
        """How chunks are launched, as far as is known by now."""
        return f"{EAGER} ({self.obstacle})" if self.obstacle else GRAPH

    def give_up(self, reason: str) -> None:
        """Record no more; said once."""
        if not self.obstacle:
            self.obstacle = reason
            _log.warning("%s decodes without a CUDA graph: %s", self._family, reason)

    def take(self, key: Key, weights: tuple[torch.Tensor, ...]) -> Slot | None:
        """An idle slot, if there is one."""
        if self.obstacle:
            return None
        return self.slots.take(key, tuple(weight.data_ptr() for weight in weights))

    def give_back(self, slot: Slot) -> None:
        """A slot is idle."""
        self.slots.give_back(slot, self.graphs)

    def usable(self, slot: Slot | None, latents: torch.Tensor) -> bool:
        """Whether a slot's graph is for these latents, and its weights still there."""
        if slot is None or slot.latents.shape != latents.shape:
            return False
        if not slot.current:
            self.give_up("its weights have moved since the stream began")
        return slot.current

    def replay(self, slot: Slot, latents: torch.Tensor) -> torch.Tensor:
        """Decode a steady chunk; the next replay, of any slot, overwrites what it gives."""
        slot.latents.copy_(latents)
        return slot.graph.replay()

    def first(self, slot: Slot, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the first chunk as a graph; None if the slot has none for it."""
        if slot.first is None or slot.latents.shape != latents.shape:
            return None
        slot.latents.copy_(latents)
        return slot.first.replay()

    def rehearse(self, work: Callable[[], T]) -> T:
        """Run a chunk that is to be recorded next; see `Graphs.rehearse`."""
        self._before = self.graphs.reserved()
        try:
            return self.graphs.rehearse(work)
        except BaseException:
            self.graphs.settle()
            raise

    def record_first(self, slot: Slot, chunk: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Record the first chunk over a slot's state too; it stays eager if that cannot be."""
        before = self.graphs.reserved()
        try:
            slot.first = self.graphs.capture(lambda: chunk(slot.latents))
        except RuntimeError as error:
            _log.debug("%s decodes first chunks without a CUDA graph: %s", self._family, error)
        slot.nbytes += max(self.graphs.reserved() - before, 0)

    def record(
        self,
        key: Key,
        state: State,
        latents: torch.Tensor,
        weights: tuple[torch.Tensor, ...],
        chunk: Callable[[torch.Tensor], torch.Tensor],
    ) -> Slot | None:
        """Record a steady chunk over ``state``; None, once and for all, if that cannot be."""
        try:
            return self._record(key, state, latents, weights, chunk)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.give_up(f"it could not be recorded: {reason}")
            return None
        finally:
            self.graphs.settle()

    def _record(
        self,
        key: Key,
        state: State,
        latents: torch.Tensor,
        weights: tuple[torch.Tensor, ...],
        chunk: Callable[[torch.Tensor], torch.Tensor],
    ) -> Slot:
        # What lies between the kernels takes about 1.3 times the state at any size of Wan's.
        wanted, room = int(1.5 * state.nbytes), self.graphs.room()
        if room < wanted:
            raise RuntimeError(f"about {wanted} bytes of device memory are needed, {room} are left")
        places = tuple((weight, weight.data_ptr()) for weight in weights)
        static = torch.empty_like(latents, memory_format=torch.contiguous_format)
        before, self._before = self._before, None
        if before is None:
            before = self.graphs.reserved()
        graph = self.graphs.capture(lambda: chunk(static))
        own = max(self.graphs.reserved() - before, 0)
        return Slot(key, state, static, graph, places, state.nbytes + own)


def key_of(kind: str, latents: torch.Tensor) -> Key:
    """All that decides which kernels run."""
    batch, channels, _, height, width = latents.shape
    cudnn = torch.backends.cudnn
    return (
        kind,
        (batch, channels, height, width),
        latents.dtype,
        latents.device,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        *(_setting(read) for read in _SWITCHES),
    )


#: These raise where somebody has mixed torch's old and new way to set them.
_SWITCHES: tuple[Callable[[], object], ...] = (
    lambda: torch.backends.cudnn.allow_tf32,
    torch.get_float32_matmul_precision,
    torch.are_deterministic_algorithms_enabled,
    lambda: torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
    lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
)


def _setting(read: Callable[[], object]) -> object:
    try:
        return read()
    except RuntimeError:
        return None
