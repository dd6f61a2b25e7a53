"""Latents that a diffusers pipeline makes first: its call, on a thread, halted between steps."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, cast

import torch

from .._caller import CallerContext, ThreadState
from .._errors import LatentsError
from .._locks import fork_safe_lock
from .._threads import Worker, outcome, parked
from ._call import takes
from ._source import Mark, Piece

#: Arguments that a pipeline calls after each step, in the order they are preferred.
_CALLBACKS = ("callback_on_step_end", "callback")

#: Seconds between two looks, and two tries to halt a pipeline that forgot the first one.
_AGAIN = 0.05

_lock = fork_safe_lock()
#: A pipeline's scheduler belongs to one call at a time.
_busy: weakref.WeakKeyDictionary[object, threading.RLock] = weakref.WeakKeyDictionary()


class PipelineSource:
    """What ``pipe(**call)`` gives with ``output_type="latent"``. Runs it when it is opened.

    The call runs on a daemon thread of its own, one call of a pipeline at a time, with the thread
    state of whoever made the source and in a copy of the context of the task that opens it.

    Args:
        pipe: A diffusers pipeline.
        call: Keyword arguments of its call.
        mark: Called with the latents, on that thread.
    """

    def __init__(self, pipe: object, call: Mapping[str, object], mark: Mark) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype: torch.dtype | None = None
        self._caller = ThreadState.capture()
        self._run = _Run(pipe, call, mark)
        self._running: Future[Piece | None] | None = None
        self._piece: Piece | None = None
        self._began = False
        weakref.finalize(self, self._run.halt).atexit = False

    async def open(self) -> None:
        """Run the pipeline.

        Raises:
            Exception: As the pipeline raised it.
            LatentsError: It gave something else than a tensor.
        """
        if self._began:
            return
        self._began = True
        worker = Worker("streamvae-pipeline")
        self._running = worker.submit(CallerContext(self._caller).run, self._run)
        worker.close()
        # Kept: should this wait be broken, `aclose` still has to know when the call is over.
        self._piece = await outcome(self._running, keep=True)
        self._running = None  # it would hold the latents
        if self._piece is not None:
            self.shape, self.dtype = tuple(self._piece.tensor.shape), self._piece.tensor.dtype

    async def piece(self, axis: int, wanted: int) -> Piece | None:  # noqa: ARG002  # given whole
        """Give all latents, once."""
        await self.open()
        piece, self._piece = self._piece, None
        return piece

    async def aclose(self) -> None:
        """Halt the pipeline and wait for the end of its step: until then it is in use."""
        self._began = True  # if only now, then never
        self._piece = None
        running, self._running = self._running, None
        if running is None or running.cancel():
            return
        ending = asyncio.wrap_future(running)
        while not ending.done():
            self._run.halt()
            await asyncio.wait({ending}, timeout=_AGAIN)
        ending.exception()  # `open` has raised it, or nobody wants it any more


class _Halted(Exception):
    """Leaves a pipeline from its callback."""


class _Run:
    """One call of a pipeline. Called on its thread; halted from any.

    Pipelines that know ``interrupt`` skip the steps that are left and end in good order; the others
    are left by an exception out of their callback, as are those that ignore what they know.
    """

    def __init__(self, pipe: object, call: Mapping[str, object], mark: Mark) -> None:
        self._pipe = cast("Any", pipe)
        self._call = dict(call)
        self._mark = mark
        self._lock = fork_safe_lock()
        self._inside = False
        self._halted = False
        self._asked = False

    def __call__(self) -> Piece | None:
        """Give the latents, None if it was halted."""
        call, self._call = self._call, {}  # what a caller hands over is not held after the call
        with _alone(self._pipe, self.halted):
            latents = self._generate(call)
            if latents is None:
                return None
            return Piece(latents.detach(), self._mark(latents))

    def halt(self) -> None:
        """End as soon as the step that is running ends. Idempotent; again where it was forgotten.

        A pipeline forgets it when its call begins. A finalizer may do it: it never waits.
        """
        self._halted = True
        if self._lock.acquire(blocking=False):  # else the call begins or ends just now
            try:
                if self._inside and hasattr(type(self._pipe), "interrupt"):
                    self._pipe._interrupt = True
            finally:
                self._lock.release()

    def halted(self) -> bool:
        """Whether it is to end."""
        return self._halted

    def _generate(self, call: dict[str, object]) -> torch.Tensor | None:
        pipe = self._pipe
        self._listen(call)
        with self._lock:
            if self.halted():
                return None
            self._inside = True
        try:
            given = pipe(**call, output_type="latent", return_dict=False)
        except _Halted:
            pipe.maybe_free_model_hooks()  # as the pipeline does at its end
            return None
        finally:
            with self._lock:
                self._inside = False
                if self.halted() and hasattr(type(pipe), "interrupt"):
                    pipe._interrupt = False
        return None if self.halted() else _latents(pipe, given)

    def _listen(self, call: dict[str, object]) -> None:
        """Have the callback of ``call`` look whether to go on, after what it does for the user."""
        name = next((one for one in _CALLBACKS if takes(self._pipe, one)), None)
        if name is None:
            return  # all that is left is `interrupt`
        own = cast("Callable[..., object] | None", call.get(name))
        wanted = getattr(own, "tensor_inputs", None)  # a PipelineCallback says what it reads
        if wanted is not None and takes(self._pipe, "callback_on_step_end_tensor_inputs"):
            call["callback_on_step_end_tensor_inputs"] = wanted

        def after_step(*args: object, **kwargs: object) -> object:
            result: object = {} if own is None else own(*args, **kwargs)
            self._look()
            return result

        call[name] = after_step

    def _look(self) -> None:
        if not self.halted():
            return
        if self._asked or not hasattr(type(self._pipe), "interrupt"):
            raise _Halted
        self._asked = True
        self.halt()


@contextlib.contextmanager
def _alone(pipe: object, given_up: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other stream's call of ``pipe`` is running, or until that is given up."""
    with _lock:
        mine = _busy.setdefault(pipe, fork_safe_lock())
    held = mine.acquire(blocking=False)
    while not held and not given_up():
        with parked():
            held = mine.acquire(timeout=_AGAIN)
    try:
        yield
    finally:
        if held:
            mine.release()


def _latents(pipe: object, given: object) -> torch.Tensor:
    """The first thing a pipeline gives: where it makes sound too, the video."""
    # Some give what `return_dict` would have given, whatever was said: a mapping.
    whole = tuple(given.values()) if isinstance(given, Mapping) else given
    first = whole[0] if isinstance(whole, (tuple, list)) and whole else whole
    if not isinstance(first, torch.Tensor):
        raise LatentsError(
            f"expected a tensor of latents from {type(pipe).__name__} with output_type='latent', "
            f"got {type(first).__name__}"
        )
    return first
