"""Graphs without a device that has any."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch

from ._device import poison


class FakeGraph:
    """Runs again what was recorded; its result is at one place, as a real graph's."""

    def __init__(self, owner: FakeGraphs, work: Callable[[], torch.Tensor]) -> None:
        self._owner = owner
        self._work = work
        self._result: torch.Tensor | None = None

    def replay(self) -> torch.Tensor:
        """See `streamvae._graphs.Graph.replay`."""
        if self._owner.launch_failure is not None:
            raise self._owner.launch_failure
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
        failure: What `capture` raises.
        after: How many captures there are before it does.

    Attributes:
        failure: As above; None to record again.
        launch_failure: What replays raise; None to launch.
        captures: How often something was recorded.
        recording: Whether something is being recorded now.
        replays: How often a graph was launched.
        streams: As there.
        results: What its graphs gave; poisoned by the next replay of any of them.
    """

    def __init__(self, *, failure: RuntimeError | None = None, after: int = 0) -> None:
        self.failure = failure
        self.launch_failure: RuntimeError | None = None
        self._after = after
        self.captures = 0
        self.recording = False
        self.streams: set[object] = set()
        self._recorder = 0
        self._broken = False
        self.replays = 0
        self.results: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def overwrite(self) -> None:
        """Write over every result, as graphs do that share the memory between their kernels."""
        for result in list(self.results):
            poison(result)

    def use(self) -> None:
        """Use the device as somebody who knows nothing of recording: draw, synchronise, allocate.

        Raises:
            RuntimeError: Another thread records; what it records is broken, too.
        """
        if self.recording and threading.get_ident() != self._recorder:
            self._broken = True
            raise RuntimeError("operation not permitted while another thread records a graph")

    def capture(self, work: Callable[[], torch.Tensor]) -> FakeGraph:
        """See `streamvae._graphs.Graphs.capture`."""
        self._recorder, self._broken = threading.get_ident(), False
        self.recording = True
        try:
            work()
            if self._broken:
                raise RuntimeError("the recording was broken by another thread")
            if self.failure is not None and self.captures >= self._after:
                raise self.failure
        finally:
            self.recording = False
        self.captures += 1
        return FakeGraph(self, work)
