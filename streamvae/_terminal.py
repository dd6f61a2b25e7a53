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
from ._options import Mode, StreamOptions
from ._stats import StreamStats
from ._stream import FrameStream, stream_decode
from .latents import LatentsLike
from .report import Verdict, Verification, verify
from .sinks import FileSink

if TYPE_CHECKING:
    import torch

#: Exit codes.
FAILED, USAGE, ROUNDED, ABORTED = 1, 2, 3, 130
VERDICTS: dict[Verdict, int] = {"equal": 0, "within rounding": ROUNDED, "different": FAILED}

#: What can be mended by asking for something else; nothing was decoded when these are raised.
_ASKED = (DeviceError, LatentsError, MissingDependencyError, UnknownSourceError, UsageError)

#: What things are called by the kind of stream.
UNITS = {"video": "frames", "image": "pictures", "sound": "samples"}


def run_stream(
    latents: LatentsLike,
    source: object,
    sinks: Sequence[FileSink],
    label: str,
    scratch: Sequence[FileSink] = (),
    **options: Unpack[StreamOptions],
) -> tuple[StreamInfo, StreamStats]:
    """Run a stream to its end, with a bar where standard error is a terminal.

    ctrl-C stops it as cancelling its task does: within a chunk, with what was accepted kept.

    Args:
        latents: See `stream_decode`.
        source: See `stream_decode`.
        sinks: Files to keep it in.
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
            _note_kept(error, sinks, stream)
            raise


def run_verify(
    vae: torch.nn.Module,
    latents: Path | None,
    *,
    normalized: bool,
    mode: Mode,
    latents_per_chunk: int | None,
    seed: int,
) -> Verification:
    """Decode both ways and compare, with a bar where standard error is a terminal.

    Args:
        vae: What to decode with.
        latents: See `verify`.
        normalized: See `verify`.
        mode: See `verify`.
        latents_per_chunk: See `verify`.
        seed: See `verify`.
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
                progress=progress,
            )
    finally:
        logger.setLevel(level)


async def _finish(stream: FrameStream) -> tuple[StreamInfo, StreamStats]:
    async with stream:
        stats = await stream.finish()
        return stream.info, stats


def _note_kept(error: BaseException, sinks: Sequence[FileSink], stream: FrameStream) -> None:
    said = " ".join(getattr(error, "__notes__", ()))
    for sink in sinks:
        if sink.committed and sink.partial.exists() and str(sink.partial) not in said:
            unit = UNITS[stream.info.kind]
            error.add_note(f"{sink.committed} {unit} kept in {sink.partial}")


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, if that is a terminal; advanced by (done, in all)."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def report(error: BaseException) -> int:
    """Say on standard error, in one line, what went wrong; return the exit code.

    Args:
        error: What came out of a command. Of click's own errors only the message is used.
    """
    notes = "; ".join(note.rstrip(".") for note in getattr(error, "__notes__", ()))
    if isinstance(error, KeyboardInterrupt):
        typer.echo(f"aborted: {notes}" if notes else "aborted", err=True)
        return ABORTED
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        message, code = format_message(), USAGE
    elif isinstance(error, StreamVAEError):
        wrong = isinstance(error, _ASKED) and not isinstance(error, NonFiniteError)
        message, code = str(error), USAGE if wrong else FAILED
    else:
        message, code = f"{type(error).__name__}: {error}", FAILED
    line = " ".join(message.split())
    typer.echo(f"error: {line}" + (f" ({notes})" if notes else ""), err=True)
    return code


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
