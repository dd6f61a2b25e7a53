"""Where frames are kept: files by suffix, blocking code on a thread of its own, async callables.

A sink object serves one stream; after `close` or `abort` it raises `ClosedError`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeGuard

from streamvae._chunks import HostChunk
from streamvae._errors import UsageError
from streamvae.abc import Sink

from ._call import CallSink
from ._file import FileSink
from ._npy import NpyFile
from ._raw import RawFile
from ._thread import ThreadSink
from ._video import VideoFile

__all__ = ["CallSink", "FileSink", "NpyFile", "RawFile", "ThreadSink", "VideoFile", "sink_for"]

#: What `sink_for` makes of a path, by suffix.
BY_SUFFIX: dict[str, Callable[[str | os.PathLike[str]], FileSink]] = {
    ".mp4": VideoFile,
    ".npy": NpyFile,
    ".raw": RawFile,
}


def sink_for(
    target: str | os.PathLike[str] | Sink | Callable[[HostChunk], Awaitable[object]],
) -> Sink:
    """Turn what a user names into a sink.

    Args:
        target: A path (its suffix decides), a sink (given back as it is), or an async callable,
            which is awaited with each `HostChunk`.

    Raises:
        UsageError: The suffix is unknown, or ``target`` is none of these.
        MissingDependencyError: The suffix needs a package that is not installed.
    """
    if isinstance(target, str | os.PathLike):
        make = BY_SUFFIX.get(suffix := Path(target).suffix.lower())
        if make is None:
            raise UsageError(
                f"expected a path ending in {', '.join(BY_SUFFIX)}, got {os.fspath(target)!r} "
                f"({'suffix ' + repr(suffix) if suffix else 'no suffix'})"
            )
        return make(target)
    if isinstance(target, type):
        raise UsageError(
            f"expected a sink, got the class {target.__name__}; make one of it, "
            f"as in {target.__name__}(...)"
        )
    if _is_sink(target):
        return target
    if _is_async(target):
        return CallSink(target)
    raise UsageError(
        "expected a path, a sink (open, write, close, abort) or an async callable, got "
        f"{'a callable that is not async, ' if callable(target) else ''}{target!r}"
    )


def _is_sink(target: object) -> TypeGuard[Sink]:
    verbs = ("open", "write", "close", "abort")
    return hasattr(target, "committed") and all(callable(getattr(target, v, None)) for v in verbs)


def _is_async(target: object) -> TypeGuard[Callable[[HostChunk], Awaitable[object]]]:
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004  # asked for its kind, not its presence
    )
