"""A stream's options, checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict, get_args, runtime_checkable

import torch

from ._chunks import HostChunk
from ._errors import UsageError
from ._pixels import Output
from ._tee import OnSinkError
from ._transforms import Transform
from .abc import Backend, Sink
from .sinks import Continued, sink_for
from .stages import NonFinite

#: ``"exact"``: bit-equal to the autoencoder's own decode. ``"fast"``: the fastest verified step.
Mode = Literal["exact", "fast"]
SinkLike = str | os.PathLike[str] | Sink | Callable[[HostChunk], Awaitable[object]]


@runtime_checkable
class ProgressBar(Protocol):
    """Anything like a tqdm bar."""

    def update(self, n: int) -> object:
        """Go ``n`` frames on."""
        ...


#: True for a tqdm bar, a bar of one's own, or a callable that gets (frames done, frames in all).
Progress = bool | ProgressBar | Callable[[int, int | None], object]


class StreamOptions(TypedDict, total=False):
    """The options of `streamvae.stream_decode` but ``sinks``; see there."""

    fps: float | None
    normalized: bool
    mode: Mode
    latents_per_chunk: int | None
    output: Output
    transform: Transform | None
    device: str | int | torch.device | None
    queue_size: int
    progress: Progress
    timeout: float | None
    sink_timeout: float
    write_timeout: float | None
    on_sink_error: OnSinkError
    resume: bool
    nonfinite: NonFinite
    call: Mapping[str, object] | None
    backend: Backend | None


@dataclass(frozen=True, slots=True)
class Options:
    """What `streamvae.stream_decode` was told; see there."""

    sinks: tuple[Sink, ...]
    fps: float | None
    normalized: bool
    mode: Mode
    latents_per_chunk: int | None
    output: Output
    transform: Transform | None
    device: torch.device | None
    queue_size: int
    progress: Progress
    timeout: float | None
    sink_timeout: float
    nonfinite: NonFinite
    call: Mapping[str, object]
    backend: Backend | None
    write_timeout: float | None = None
    on_sink_error: OnSinkError = "stop"

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, get_args(Mode))
        _one_of("output", self.output, get_args(Output))
        _one_of("nonfinite", self.nonfinite, get_args(NonFinite))
        _one_of("on_sink_error", self.on_sink_error, get_args(OnSinkError))
        _positive("fps", self.fps)
        _positive("timeout", self.timeout)
        _positive("sink_timeout", self.sink_timeout)
        _positive("write_timeout", self.write_timeout)
        _count("queue_size", self.queue_size)
        _count("latents_per_chunk", self.latents_per_chunk)
        if self.transform is not None and not callable(self.transform):
            raise UsageError(f"expected transform to be callable, got {self.transform!r}")
        if not isinstance(self.progress, (bool, ProgressBar)) and not callable(self.progress):
            raise UsageError(
                "expected progress to be a bool, a bar with update(n) or a callable, "
                f"got {self.progress!r}"
            )
        if self.sinks and self.output == "device":
            raise UsageError(
                "expected no sinks with output='device' (nothing is downloaded), "
                f"got {', '.join(sink.name for sink in self.sinks)}"
            )


def sinks_of(given: SinkLike | Iterable[SinkLike]) -> tuple[Sink, ...]:
    """One path or sink, or several, as sinks.

    Raises:
        UsageError: A path has an unknown suffix, something else is no sink, or one comes twice.
    """
    if isinstance(given, (str, os.PathLike)) or not isinstance(given, Iterable):
        given = (given,)
    sinks = tuple(sink_for(one) for one in given)
    names = [sink.name for sink in sinks]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"expected every sink once, got {', '.join(sorted(twice))} more than once")
    return sinks


def resumed(sinks: tuple[Sink, ...]) -> tuple[Sink, ...]:
    """The same sinks, to go on with what they have.

    Raises:
        UsageError: There is none, or one cannot.
    """
    if not sinks:
        raise UsageError("expected sinks to go on with where resume=True, got none")
    return tuple(map(Continued, sinks))


def device_of(given: str | int | torch.device | None) -> torch.device | None:
    """The device a user named.

    Raises:
        UsageError: torch does not know it.
    """
    try:
        return None if given is None else torch.device(given)
    except RuntimeError as error:
        raise UsageError(f"expected a torch device, got {given!r}: {error}") from None


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise UsageError(f"expected {name} to be one of {choices}, got {value!r}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"expected {name} to be positive, got {value!r}")


def _count(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, int) and value >= 1):
        raise UsageError(f"expected {name} to be a whole number from 1, got {value!r}")
