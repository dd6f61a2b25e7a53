"""The caller's world, for the user's code on threads of ours.

What a thread knows by itself (torch's modes, the CUDA device and stream it is on) and what a task
knows (context variables) does not follow a call to another thread. It is captured where a stream is
made, and entered again around whatever of the user's runs elsewhere.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, Self, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

#: Kinds of devices that torch keeps an autocast for.
_KINDS = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What torch keeps by thread, as a thread has it. Make it by `capture`.

    Attributes:
        threads: torch's number of threads, which decides on algorithms; None: not to be set.
        grad: Whether gradients are recorded; None: not to be set.
        inference: Whether it is in inference mode.
        device: Where tensors are made by default; None for the host.
        autocast: Kinds of devices with autocast on, and what it casts to.
        cache: Whether autocast keeps the weights it has cast.
        place: The current CUDA device; None where CUDA is not in use.
        streams: The current streams of CUDA devices, the current device's last.
    """

    threads: int | None = None
    grad: bool | None = None
    inference: bool = False
    device: torch.device | None = None
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    cache: bool = False
    place: int | None = None
    streams: tuple[torch.cuda.Stream, ...] = ()

    @classmethod
    def capture(cls) -> Self:
        """Capture the calling thread's."""
        device = torch.get_default_device()
        place = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        return cls(
            threads=torch.get_num_threads(),
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            device=None if device.type == "cpu" else device,
            autocast=tuple(
                (kind, torch.get_autocast_dtype(kind)) for kind in _KINDS if autocasts(kind)
            ),
            cache=torch.is_autocast_cache_enabled(),
            place=place,
            streams=() if place is None else _streams(place),
        )

    def for_launches(self) -> ThreadState:
        """What a launch thread takes of it: it has a stream of its own, and no gradients.

        Weights that autocast has cast are not kept: torch keeps them for the whole process, also
        for threads whose streams do not wait for the one that has cast them.
        """
        return ThreadState(device=self.device, autocast=self.autocast)

    def for_loading(self) -> ThreadState:
        """What loading weights takes of it: where "cuda" is."""
        return ThreadState(place=self.place)

    def enter(self) -> contextlib.ExitStack:
        """Give the calling thread, one of ours, this state until what comes back is closed.

        torch's number of threads stays.
        """
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with contextlib.ExitStack() as stack:
            for stream in self.streams:
                # The device first: leaving a stream goes back to the device of before, and would
                # make a context there if it had none.
                stack.enter_context(torch.cuda.device(stream.device))
                stack.enter_context(torch.cuda.stream(stream))
            if self.place is not None:
                stack.enter_context(torch.cuda.device(self.place))
            if self.device is not None:
                stack.enter_context(self.device)
            if self.inference:
                stack.enter_context(torch.inference_mode())
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=self.cache))
            if self.grad is not None:
                stack.enter_context(torch.set_grad_enabled(self.grad))
            return stack.pop_all()


class CallerContext:
    """A copy of the running task's context and its caller's `ThreadState`, for one thread of ours.

    One for each thread: a context can be entered once at a time. What a call does to its context
    variables is there in the next one.

    Args:
        state: What is entered besides.
    """

    def __init__(self, state: ThreadState) -> None:
        self._state = state
        self._context = contextvars.copy_context()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``call`` on this thread as if its caller had."""
        return self._context.run(self._run, partial(call, *args, **kwargs))

    def _run(self, call: Callable[[], T]) -> T:
        with self._state.enter():
            return call()


#: Of the caller of the stream whose task one is in.
_current: contextvars.ContextVar[ThreadState | None] = contextvars.ContextVar(
    "streamvae caller", default=None
)


def set_caller(state: ThreadState) -> None:
    """Say, in a stream's own task, who called for it."""
    _current.set(state)


def caller() -> CallerContext:
    """A copy of the context one is in, with the thread state of the stream's caller.

    Outside of a stream's task: with that of the calling thread.
    """
    return CallerContext(_current.get() or ThreadState.capture())


def autocasts(kind: str) -> bool:
    """Whether autocast is on, on this thread, for devices of this kind."""
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # torch knows no autocast for it
        return False


def _streams(place: int) -> tuple[torch.cuda.Stream, ...]:
    """The current stream of every device where it is not the default one, and of ``place``."""
    others = (
        (torch.cuda.current_stream(index), torch.cuda.default_stream(index))
        for index in range(torch.cuda.device_count())
        if index != place
    )
    chosen = (current for current, default in others if current != default)
    return (*chosen, torch.cuda.current_stream(place))
