"""CUDA graphs, recorded while nobody else uses the device. See `streamvae._graphs.Graphs`.

Note [A capture that fails]
---------------------------
``CUDAGraph.capture_begin`` sends this stream's allocations, on the device and page-locked, to the
graph's pool, and marks the default generator. ``capture_end`` takes all that back, but torch
before 2.13 does so only after ``cudaStreamEndCapture`` has succeeded, which it does not where
something inside (a wait for the device, say) has made the capture invalid: from then on
``torch.randn`` raises in the whole process, cached memory is never given back, and the next capture
into a living pool fails. So a capture that failed is discarded and another one, of one memset, is
begun in its place behind torch's back: ``capture_end`` then goes its regular way. The generator is
not put at risk: while a capture begins, the default generator has a state of its own, which the
graph keeps; random numbers of other threads come from the old one.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from streamvae._locks import fork_safe_lock

from . import _libcuda

T = TypeVar("T")

#: One capture at a time in a process: captures on several devices share the caching allocator.
_CAPTURING = fork_safe_lock()


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

    Graphs are launched one after the other in one stream, and a chunk's result is read out before
    the next launch: so they share the memory between their kernels, one pool for all.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: torch.cuda._POOL_HANDLE | None = None
        self._living: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self.streams: set[object] = set()
        self._needed = 0  # bytes that one run takes, as rehearsed
        self._pooled = 0  # bytes that the pool has taken

    def capture(self, work: Callable[[], torch.Tensor]) -> CudaGraph:
        """See `streamvae._graphs.Graphs.capture`."""
        with _CAPTURING:
            self.rehearse(work)
            self.settle()
            if self._pool is None or not self._living:  # torch frees a pool with its last graph
                self._pool, self._pooled = torch.cuda.graph_pool_handle(), 0
            # For the graph, if it is the first, and for streams' chunks that are launched without.
            needed = 2 * self._needed - min(self._pooled, self._needed)
            free, _ = torch.cuda.mem_get_info(self._device)
            if free < needed:
                raise RuntimeError(f"{needed} bytes of device memory are needed, {free} are free")
            graph, result = self._record(work, self._pool)
            self._living.add(graph)
            self._pooled = max(self._pooled, self._needed)
            return CudaGraph(graph, result)

    def rehearse(self, work: Callable[[], T]) -> T:
        """Run ``work`` as it is, and see how much memory it takes."""
        before = torch.cuda.memory_reserved(self._device)
        result = work()
        self._needed = max(torch.cuda.memory_reserved(self._device) - before, 0)
        return result

    def settle(self) -> None:
        """Give back what a rehearsal has left: what is between kernels would be held twice."""
        torch.cuda.empty_cache()

    def _record(
        self, work: Callable[[], torch.Tensor], pool: torch.cuda._POOL_HANDLE
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        # Not by torch.cuda.graph(), which wants a stream that is not ours to be current.
        graph, spare = torch.cuda.CUDAGraph(), torch.empty(1, device=self._device)
        try:
            with _other_generator(self._device):
                # Errors are the capturing thread's own: other threads may ask for their events.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            result = work()
            graph.capture_end()
        except BaseException:
            self._mend(graph, pool, spare)
            raise
        return graph, result

    def _mend(
        self, graph: torch.cuda.CUDAGraph, pool: torch.cuda._POOL_HANDLE, spare: torch.Tensor
    ) -> None:
        """See Note [A capture that fails]."""
        stream, index = torch.cuda.current_stream(self._device).cuda_stream, self._device.index or 0
        _libcuda.discard_capture(stream)
        try:
            _libcuda.begin_capture(stream)
            spare.zero_()
            graph.capture_end()
        except Exception:  # noqa: BLE001  # the first error is the one to tell of
            _libcuda.discard_capture(stream)
            with contextlib.suppress(Exception):  # torch from 2.13 on has done this itself
                torch._C._cuda_endAllocateToPool(index, pool)
            with contextlib.suppress(Exception):
                torch._C._cuda_releasePool(index, pool)
        graph.reset()


@contextlib.contextmanager
def _other_generator(device: torch.device) -> Iterator[None]:
    """Give the device's default generator another state meanwhile, which a capture then marks."""
    generator = torch.cuda.default_generators[device.index or 0]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)
