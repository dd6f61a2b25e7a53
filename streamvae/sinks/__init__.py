"""Where frames are kept: files by suffix, blocking code on a thread of its own, async callables.

A sink object serves one stream; after `close` or `abort` it raises `ClosedError`.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeGuard

from streamvae._chunks import HostChunk
from streamvae._errors import UsageError
from streamvae.abc import Sink

from ._audio import AudioFile
from ._call import CallSink
from ._codecs import CONTAINERS, SOUNDS
from ._continued import Continued
from ._file import FileSink
from ._flac import FlacFile
from ._npy import NpyFile
from ._null import Null
from ._raw import RawFile
from ._raw_pipe import RawPipe
from ._resumable import ResumableSink
from ._sound_track import SoundTrack
from ._stills import FORMATS, Stills
from ._thread import ThreadSink
from ._video import VideoFile
from ._wav import WavFile
from ._y4m import Y4M, Y4MFile, Y4MPipe
from ._zarr import ZarrArray

__all__ = [
    "Y4M",
    "AudioFile",
    "CallSink",
    "Continued",
    "FileSink",
    "FlacFile",
    "NpyFile",
    "Null",
    "RawFile",
    "RawPipe",
    "ResumableSink",
    "SoundTrack",
    "Stills",
    "ThreadSink",
    "VideoFile",
    "WavFile",
    "Y4MFile",
    "Y4MPipe",
    "ZarrArray",
    "both_for",
    "sink_for",
]

#: What `sink_for` makes of a path, by suffix.
BY_SUFFIX: dict[str, Callable[[str | os.PathLike[str]], Sink]] = {
    ".flac": FlacFile,
    **dict.fromkeys(CONTAINERS, VideoFile),
    **dict.fromkeys(SOUNDS, AudioFile),
    ".npy": NpyFile,
    ".raw": RawFile,
    ".wav": WavFile,
    ".y4m": Y4MFile,
    ".zarr": ZarrArray,
    **dict.fromkeys(FORMATS, Stills),
}


def sink_for(
    target: str | os.PathLike[str] | Sink | Callable[[HostChunk], Awaitable[object]],
) -> Sink:
    """Turn what a user names into a sink.

    Args:
        target: A path (its suffix decides), ``"-"`` (y4m to standard output), a sink (given back
            as it is), or an async callable, which is awaited with each `HostChunk`.

    Raises:
        UsageError: The suffix is unknown, standard output is a terminal, or ``target`` is none of
            these.
        MissingDependencyError: The suffix needs a package that is not installed.
    """
    if target == "-":
        return _stdout()
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


def both_for(target: str | os.PathLike[str] | Sink) -> tuple[VideoFile, SoundTrack]:
    """Turn what a user names for video with sound into a sink for each of the two.

    Args:
        target: A path that ends in .mp4, .mkv, .mov or .webm, or a `VideoFile`, whose
            `VideoFile.sound_track` has not been made.

    Raises:
        UsageError: ``target`` is no such file.
    """
    if isinstance(target, str | os.PathLike) and Path(target).suffix.lower() in CONTAINERS:
        target = VideoFile(target)
    if not isinstance(target, VideoFile):
        raise UsageError(
            f"expected a VideoFile or a path ending in {', '.join(CONTAINERS)} for video with "
            f"sound, got {target!r}; what keeps one of them goes into video_sinks or audio_sinks"
        )
    return target, target.sound_track()


def _stdout() -> Y4MPipe:
    if sys.stdout.isatty():
        raise UsageError("expected standard output to be a pipe or a file for '-', got a terminal")
    return Y4MPipe(sys.stdout.buffer)


def _is_sink(target: object) -> TypeGuard[Sink]:
    verbs = ("open", "write", "close", "abort")
    return hasattr(target, "committed") and all(callable(getattr(target, v, None)) for v in verbs)


def _is_async(target: object) -> TypeGuard[Callable[[HostChunk], Awaitable[object]]]:
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004  # asked for its kind, not its presence
    )
