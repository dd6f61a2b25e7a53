"""Everything streamvae raises on its own account.

Errors raised by somebody else's code (a codec, a sink, a source, torch) reach the consumer as
themselves, with a note that names the stage and the chunk.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StreamVAEError(Exception):
    """Base of every error that streamvae raises itself."""


class UsageError(StreamVAEError, ValueError):
    """Raised when options contradict each other or cannot be honoured."""


class UnknownSourceError(StreamVAEError, TypeError):
    """Raised when nobody here knows how to decode with the given source."""


class ShapeError(StreamVAEError, ValueError):
    """Raised when pixels do not have the shape they must have."""


class LatentsError(StreamVAEError, ValueError):
    """Raised when latents are not what the codec expects (rank, channels, dtype, size)."""


class NonFiniteError(LatentsError):
    """Raised when latents or decoded pixels hold NaN or infinity.

    Attributes:
        where: ``"latents"`` if the input was bad already, ``"pixels"`` if the decoder or the
            transform made it so.
        chunk: Index of the first bad chunk; every chunk before it was delivered.
    """

    def __init__(self, where: str, chunk: int) -> None:
        super().__init__(where, chunk)
        self.where = where
        self.chunk = chunk

    def __str__(self) -> str:
        cause = (
            "the latents already hold it"
            if self.where == "latents"
            else "the latents are finite: the decoder overflowed (in float16? try bfloat16), or "
            "transform made it"
        )
        return (
            f"expected finite values, got NaN or infinity in chunk {self.chunk}: {cause}. "
            "Pass nonfinite='warn' to go on."
        )


class StageTimeout(StreamVAEError, TimeoutError):
    """Raised when the device did not finish in time.

    Attributes:
        stage: The stage that waited.
        chunk: Index of the chunk it waited for.
        seconds: How long it waited.
    """

    def __init__(self, stage: str, chunk: int, seconds: float) -> None:
        super().__init__(stage, chunk, seconds)
        self.stage = stage
        self.chunk = chunk
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"stage {self.stage!r} waited {self.seconds:g} s for chunk {self.chunk} on the device"
        )


class SinkTimeout(StreamVAEError, TimeoutError):
    """Raised when a sink did not end, or do another thing, in time; its thread ends with its call.

    Attributes:
        sink: What the sink calls itself.
        seconds: How long it was waited for.
        what: What it was to do: ``"end"``, ``"open"``, ``"take chunk 3"``, ``"complete"``.
    """

    def __init__(self, sink: str, seconds: float, what: str = "end") -> None:
        super().__init__(sink, seconds, what)
        self.sink = sink
        self.seconds = seconds
        self.what = what

    def __str__(self) -> str:
        return f"sink {self.sink} did not {self.what} within {self.seconds:g} s"


class FrameCountError(StreamVAEError, RuntimeError):
    """Raised at the end of a stream that gave another number of frames than its family must."""


class ClosedError(StreamVAEError, RuntimeError):
    """Raised when a stream is used again: a second iteration, or a step after its end."""


class ConcurrentUseError(UsageError, RuntimeError):
    """Raised when a stream is used by two tasks at once, or from another loop than its own."""


class ControlFlowError(StreamVAEError, RuntimeError):
    """Raised for what user code raised that is no error to Python but ends something else.

    ``StopIteration`` ends a loop, ``CancelledError`` a task, ``GeneratorExit`` a generator,
    ``KeyboardInterrupt`` and ``SystemExit`` a program: raised in a sink, a source or a transform,
    they would end what awaits it in silence. What was raised is the ``__cause__``.
    """


class DeviceError(StreamVAEError, RuntimeError):
    """Raised when weights, latents and the requested device do not fit together."""


class MissingDependencyError(StreamVAEError, ImportError):
    """Raised when an optional package is needed and absent; the message has the install line."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}; install it with: "
            f"pip install 'streamvae[{extra}]'"
        )
        self.package = package


def as_error(raised: BaseException) -> Exception:
    """``raised``, or the `ControlFlowError` in its place where it would pass for something else."""
    if isinstance(raised, Exception) and not isinstance(raised, _CONTROL_FLOW):
        return raised
    error = ControlFlowError(
        f"expected a result or an error of the code that was called, it raised {raised!r}"
    )
    error.__cause__ = raised
    return error


def call_user(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run user code here; what it raises comes out `as_error`."""
    try:
        return call(*args, **kwargs)
    except BaseException as raised:
        error = as_error(raised)
        if error is raised:
            raise
        raise error from raised


#: Packages whose frames are cleared: ours, and those whose frames hold chunks and activations. Who
#: debugs code of their own finds its locals.
_CLEARED = frozenset({"streamvae", "anyio", "torch", "diffusers", "accelerate"})


def clear_frames(error: BaseException) -> None:
    """Let the frames of ``error``, and of all it came from, hold no chunk and no decoder's state.

    Whoever keeps an error keeps its traceback. Frames of user code stay as they are. What a closure
    holds is held by its frame, cleared or not: so chunks are handed on as arguments.
    """
    seen: dict[int, BaseException] = {}
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is None or id(one) in seen:
            continue
        seen[id(one)] = one
        found += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            found += one.exceptions
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _CLEARED:
                with contextlib.suppress(RuntimeError):  # it is running
                    frame.clear()


#: Exceptions that mean something to whoever awaits; ``asyncio`` takes the last for its own.
_CONTROL_FLOW = (StopIteration, StopAsyncIteration, CancelledError)
