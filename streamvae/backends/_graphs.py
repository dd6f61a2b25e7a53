"""CUDA graphs, recorded beside whatever else the process does on the device."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Callable
from typing import TypeVar

import torch

from streamvae._errors import UsageError
from streamvae._locks import fork_safe_lock

_log = logging.getLogger("streamvae")

T = TypeVar("T")

#: One capture at a time in a process: captures on several devices share the caching allocator.
_CAPTURING = fork_safe_lock()

#: Sets what idle graphs may keep, in bytes.
VARIABLE = "STREAMVAE_IDLE_GRAPH_BYTES"


class CudaGraph:
    """See `streamvae._graphs.Graph`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: torch.Tensor) -> None:
        self._graph = graph
        self._result = result

    def replay(self) -> torch.Tensor:
        """See `streamvae._graphs.Graph.replay`."""
        self._graph.replay()
        return self._result


class CudaGraphs:
    """See `streamvae._graphs.Graphs`; one for each device.

    Graphs are launched one after the other in one stream, and what a chunk gives is read out
    before the next launch: so they can share the memory between their kernels, one pool for all.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._retired: list[tuple[torch.cuda.Event, object]] = []
        self._pool: torch.cuda._POOL_HANDLE | None = None
        self._rehearsed: tuple[torch.cuda._POOL_HANDLE, list[torch.cuda.CUDAGraph]] | None = (
            None  # the pool that is held, and the graphs in it
        )
        self._living: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    @functools.cached_property
    def idle_bytes(self) -> int:
        """An eighth of the device's memory, or what the environment says.

        Raises:
            UsageError: It says something else than a number of bytes.
        """
        said = os.environ.get(VARIABLE)
        if said is None:
            return torch.cuda.get_device_properties(self._device).total_memory // 8
        if not said.isdecimal():
            raise UsageError(f"expected {VARIABLE} to be a number of bytes, got {said!r}")
        return int(said)

    def _shared(self) -> tuple[torch.cuda._POOL_HANDLE, list[torch.cuda.CUDAGraph]]:
        """The pool, and graphs that keep it: a pool that lost its last graph must not come back.

        torch frees its memory then, also from under a graph that was recorded into it later.
        """
        living = list(self._living)
        if self._pool is None or not (living or self._rehearsed is not None):
            with torch.cuda.device(self._device):
                self._pool = torch.cuda.graph_pool_handle()
        return self._pool, living

    def room(self) -> int:
        """What the driver has left, and what torch has cached."""
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(
            self._device
        )
        return int(free) + max(cached, 0)

    def reserved(self) -> int:
        """See `streamvae._graphs.Graphs.reserved`."""
        return torch.cuda.memory_reserved(self._device)

    def rehearse(self, work: Callable[[], T]) -> T:
        """See `streamvae._graphs.Graphs.rehearse`.

        As ``torch.cuda.use_mem_pool()`` does it, which wants a pool whose owner outlives all graphs
        in it; here the graphs own it.
        """
        begin = getattr(torch._C, "_cuda_beginAllocateCurrentThreadToPool", None)
        if begin is None:
            return work()
        index = self._device.index or 0
        with _CAPTURING:
            pool, living = self._shared()
            begin(index, pool)
            try:
                return work()
            finally:
                torch._C._cuda_endAllocateToPool(index, pool)
                if self._rehearsed is not None:  # held already
                    torch._C._cuda_releasePool(index, pool)
                # Its graphs too: torch counts them apart for page-locked memory.
                self._rehearsed = pool, living

    def settle(self) -> None:
        """See `streamvae._graphs.Graphs.settle`."""
        rehearsed, self._rehearsed = self._rehearsed, None
        if rehearsed is not None:
            torch._C._cuda_releasePool(self._device.index or 0, rehearsed[0])

    def capture(self, work: Callable[[], torch.Tensor]) -> CudaGraph:
        """See `streamvae._graphs.Graphs.capture`.

        Not by ``torch.cuda.graph()``, which waits for the whole device and empties its cache:
        other streams of the process would stand still. Errors are the capturing thread's own
        (``thread_local``): another thread may ask for its events meanwhile.
        """
        self._reap()
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING:
            pool, living = self._shared()
            try:
                return self._captured(graph, pool, work)
            finally:
                living.clear()

    def _captured(
        self,
        graph: torch.cuda.CUDAGraph,
        pool: torch.cuda._POOL_HANDLE,
        work: Callable[[], torch.Tensor],
    ) -> CudaGraph:
        try:
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        except BaseException:
            self._release(pool)
            raise
        try:
            result = work()
        except BaseException:
            self._give_up(graph, pool)
            raise
        try:
            graph.capture_end()
        except BaseException:
            self._release(pool)
            raise
        self._living.add(graph)
        return CudaGraph(graph, result)

    def _give_up(self, graph: torch.cuda.CUDAGraph, pool: torch.cuda._POOL_HANDLE) -> None:
        """End a capture that went wrong; the first error is the one to tell of."""
        try:
            graph.capture_end()
        except Exception as error:  # noqa: BLE001
            _log.debug("ending a capture that had failed: %s", error)
            self._release(pool)

    def _release(self, pool: torch.cuda._POOL_HANDLE) -> None:
        """Send this stream's allocations where they went before.

        A capture that something made invalid is not ended by torch as far as its allocator is
        concerned (``CUDAGraph::capture_end`` raises before that): without this all that is decoded
        later would be allocated in the graphs' pool.
        """
        index = self._device.index or 0
        with contextlib.suppress(Exception):  # nothing to end: nothing to release either
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
        if not self._living:
            self._pool = None

    def retire(self, thing: object) -> None:
        """See `streamvae._graphs.Graphs.retire`."""
        self._reap()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._retired.append((event, thing))

    def _reap(self) -> None:
        self._retired = [(event, thing) for event, thing in self._retired if not _over(event)]


def _over(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]
