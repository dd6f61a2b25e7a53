"""What the commands show: a bar for people at a terminal, one line for an error, nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import typer

from ._av import stream_decode_av
from ._chunks import StreamInfo
from ._errors import (
    DeviceError,
    LatentsError,
    MissingDependencyError,
    NonFiniteError,
    StreamVAEError,
    UnknownSourceError,
    UsageError,
)
from ._merged import AVInfo, AVStats, AVStream
from ._options import Mode, StreamOptions
from ._stats import StreamStats
from ._stream import FrameStream, stream_decode
from .abc import Sink
from .latents import LatentsLike
from .report import Verdict, Verification, verify
from .sinks import VideoFile

if TYPE_CHECKING:
    import torch
    from rich.progress import TaskID

#: Exit codes.
FAILED, USAGE, ROUNDED, ABORTED = 1, 2, 3, 130
VERDICTS: dict[Verdict, int] = {
    "equal": 0,
    "accepted": 0,
    "within rounding": ROUNDED,
    "different": FAILED,
}

#: What can be mended by asking for something else; nothing was decoded when these are raised.
_ASKED = (DeviceError, LatentsError, MissingDependencyError, UnknownSourceError, UsageError)

#: What things are called by the kind of stream.
UNITS = {"video": "frames", "image": "pictures", "sound": "samples"}


def run_stream(
    latents: LatentsLike,
    source: object,
    sinks: Sequence[Sink],
    label: str,
    scratch: Sequence[Sink] = (),
    **options: Unpack[StreamOptions],
) -> tuple[StreamInfo, StreamStats]:
    """Run a stream to its end, with a bar where standard error is a terminal.

    ctrl-C stops it as cancelling its task does: within a chunk, with what was accepted kept.

    Args:
        latents: See `stream_decode`.
        source: See `stream_decode`.
        sinks: What to keep it in.
        label: Stands before the bar.
        scratch: Files that nobody is told of, for they are soon gone.
        **options: Every other option of `stream_decode`.

    Raises:
        KeyboardInterrupt: It was stopped; as with every other error a note says what is kept.
    """
    with bar(label) as progress:
        # Made here, not on the loop: bad options raise before there is one.
        options["progress"] = progress
        stream = stream_decode(latents, source, sinks=(*sinks, *scratch), **options)
        try:
            return asyncio.run(_finish(stream))
        except BaseException as error:
            if any(sink.committed for sink in sinks):
                _note_kept(error, sinks, UNITS[stream.info.kind])
            raise


def run_stream_av(
    latents: tuple[LatentsLike, LatentsLike],
    source: tuple[object, object],
    sinks: tuple[Sequence[VideoFile], Sequence[Sink], Sequence[Sink]],
    label: str,
    **options: Unpack[StreamOptions],
) -> tuple[AVInfo, AVStats]:
    """As `run_stream`, for a video and its sound.

    Args:
        latents: Of the video and of the sound.
        source: What decodes them: see `stream_decode_av`.
        sinks: Files of both, of the video, and of the sound.
        label: Stands before the bar.
        **options: Every other option of `stream_decode_av`.

    Raises:
        KeyboardInterrupt: As in `run_stream`.
    """
    both, video, audio = sinks
    with bar(label) as progress:
        options["progress"] = progress
        stream = stream_decode_av(
            *latents, source, sinks=both, video_sinks=video, audio_sinks=audio, **options
        )
        try:
            return asyncio.run(_finish_both(stream))
        except BaseException as error:
            _note_kept(error, (*both, *video), "frames")
            _note_kept(error, audio, "samples")
            raise


def run_verify(
    vae: torch.nn.Module,
    latents: Path | None,
    *,
    normalized: bool,
    mode: Mode,
    latents_per_chunk: int | None,
    seed: int,
    reference_device: str | None = None,
) -> Verification:
    """Decode both ways and compare, with a bar where standard error is a terminal.

    Args:
        vae: What to decode with.
        latents: See `verify`.
        normalized: See `verify`.
        mode: See `verify`.
        latents_per_chunk: See `verify`.
        seed: See `verify`.
        reference_device: See `verify`.
    """
    logger = logging.getLogger("streamvae")
    level = logger.level
    logger.setLevel(logging.ERROR)  # each of its streams would say the notes that it sums up
    try:
        with bar("streaming") as progress:
            return verify(
                vae,
                latents,
                normalized=normalized,
                mode=mode,
                latents_per_chunk=latents_per_chunk,
                seed=seed,
                reference_device=reference_device,
                progress=progress,
            )
    finally:
        logger.setLevel(level)


async def _finish(stream: FrameStream) -> tuple[StreamInfo, StreamStats]:
    stream._unwatch()
    async with stream:
        stats = await stream.finish()
        return stream.info, stats


async def _finish_both(stream: AVStream) -> tuple[AVInfo, AVStats]:
    async with stream:
        stats = await stream.finish()
        return stream.info, stats


def _note_kept(error: BaseException, sinks: Sequence[Sink], unit: str) -> None:
    said = " ".join(getattr(error, "__notes__", ()))
    for sink in sinks:
        place = getattr(sink, "partial", None)  # of those that are one file
        there = place is not None and place.exists() and str(place) not in said
        if sink.committed and there:
            error.add_note(f"{sink.committed} {unit} kept in {place}")


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, if that is a terminal; advanced by (done, in all)."""
    with bars() as advance:
        yield lambda done, total: advance(label, done, total)


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Bars on standard error, if that is a terminal; advanced by (label, done, in all)."""
    if not sys.stderr.isatty():
        yield lambda _label, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(label: str, done: int, total: int | None) -> None:
            if label not in tasks:
                tasks[label] = progress.add_task(label, total=total)
            progress.update(tasks[label], completed=done, total=total)

        yield advance


def report(error: BaseException) -> int:
    """Say on standard error, in one line, what went wrong; return the exit code.

    Args:
        error: What came out of a command. Of click's own errors only the message is used.
    """
    if isinstance(error, KeyboardInterrupt):
        notes = _notes(error)
        typer.echo(f"aborted: {notes}" if notes else "aborted", err=True)
        return ABORTED
    typer.echo(f"error: {described(error)}", err=True)
    if getattr(error, "format_message", None) is not None:
        return USAGE
    wrong = isinstance(error, _ASKED) and not isinstance(error, NonFiniteError)
    return USAGE if wrong else FAILED


def described(error: BaseException) -> str:
    """What went wrong, in one line."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        message = format_message()
    elif isinstance(error, StreamVAEError):
        message = str(error)
    else:
        message = f"{type(error).__name__}: {error}"
    notes = _notes(error)
    return " ".join(message.split()) + (f" ({notes})" if notes else "")


def _notes(error: BaseException) -> str:
    return "; ".join(note.rstrip(".") for note in getattr(error, "__notes__", ()))


def show_traceback(error: BaseException) -> None:
    """Print where ``error`` came from to standard error, for those who asked for it."""
    typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def mebibytes(value: int | None) -> str:
    """An amount of memory for people."""
    return "not measured" if value is None else f"{value / 2**20:.0f} MiB"
