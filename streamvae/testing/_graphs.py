"""Graphs without a device that has any."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ._device import poison

T = TypeVar("T")


class FakeGraph:
    """Runs again what was recorded; its result is at one place, as a real graph's."""

    def __init__(self, owner: FakeGraphs, work: Callable[[], torch.Tensor]) -> None:
        self._owner = owner
        self._work = work
        self._result: torch.Tensor | None = None

    def replay(self) -> torch.Tensor:
        """See `streamvae._graphs.Graph.replay`."""
        self._owner.replays += 1
        self._owner.overwrite()
        result = self._work()
        if self._result is None:
            self._result = result.clone(memory_format=torch.contiguous_format)
            self._owner.results.add(self._result)
        else:
            self._result.copy_(result)
        return self._result


class FakeGraphs:
    """What a device with graphs offers (`streamvae._graphs.Graphs`), to give to a `FakeBackend`.

    Args:
        idle_bytes: As there.
        room: Bytes that `room` says are left.
        failure: What `capture` raises.
        after: How many captures there are before it does.

    Attributes:
        held: Whether the memory of a rehearsal waits for a graph.
        captures: How often something was recorded.
        replays: How often a graph was launched.
        retired: What was dropped while the device might still use it.
        results: What its graphs gave; poisoned by the next replay of any of them.
    """

    def __init__(
        self,
        *,
        idle_bytes: int = 1 << 40,
        room: int = 1 << 40,
        failure: RuntimeError | None = None,
        after: int = 0,
    ) -> None:
        self.idle_bytes = idle_bytes
        self.failure = failure
        self._after = after
        self._room = room
        self.held = False
        self.captures = 0
        self.replays = 0
        self.retired: list[object] = []
        self.results: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def overwrite(self) -> None:
        """Write over every result, as graphs do that share the memory between their kernels."""
        for result in list(self.results):
            poison(result)

    def room(self) -> int:
        """See `streamvae._graphs.Graphs.room`."""
        return self._room

    def reserved(self) -> int:
        """See `streamvae._graphs.Graphs.reserved`."""
        return 0

    def rehearse(self, work: Callable[[], T]) -> T:
        """See `streamvae._graphs.Graphs.rehearse`; its tensors are overwritten as results are."""
        self.held = True
        result = work()
        self.results.update(_tensors(result))
        return result

    def settle(self) -> None:
        """See `streamvae._graphs.Graphs.settle`."""
        self.held = False

    def capture(self, work: Callable[[], torch.Tensor]) -> FakeGraph:
        """See `streamvae._graphs.Graphs.capture`."""
        if self.failure is not None and self.captures >= self._after:
            raise self.failure
        self.captures += 1
        return FakeGraph(self, work)

    def retire(self, thing: object) -> None:
        """See `streamvae._graphs.Graphs.retire`."""
        self.retired.append(thing)


def _tensors(made: object) -> Iterator[torch.Tensor]:
    if isinstance(made, torch.Tensor):
        yield made
    elif isinstance(made, list | tuple):
        for one in made:
            yield from _tensors(one)
