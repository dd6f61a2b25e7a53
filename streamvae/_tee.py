"""All sinks of a stream as one: opened, given every chunk side by side, closed or aborted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import anyio

from ._chunks import HostChunk, StreamInfo
from ._errors import SinkTimeout, clear_frames
from ._stats import SinkFailure
from .abc import Sink

logger = logging.getLogger("streamvae")

#: What a sink's error does to the stream and to the other sinks.
OnSinkError = Literal["stop", "continue"]


@dataclass(frozen=True, slots=True)
class _Failed:
    """A sink that failed, at which chunk (None: when it was opened or closed), and with what."""

    sink: Sink
    chunk: int | None
    error: Exception


class Tee:
    """The sinks of one stream.

    Args:
        sinks: In the order in which they are opened.
        on_error: ``"stop"``: raise a sink's error, which ends the stream. ``"continue"``: abort
            that sink, go on with the others, and raise the first such error from `close`.
        write_timeout: Seconds a sink may take to open, to accept a chunk, to complete; None for
            as long as it likes.
        abort_timeout: Seconds a sink may take to end when it is aborted.

    Attributes:
        sinks: All of them.
        stuck: What did not end in time when it was aborted.
        alone: Nobody else wants the frames: with no sink left there is nothing to go on for.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        *,
        on_error: OnSinkError = "stop",
        write_timeout: float | None = None,
        abort_timeout: float = 10.0,
    ) -> None:
        self.sinks = tuple(sinks)
        self.stuck: list[SinkTimeout] = []
        self.alone = False
        self._on_error = on_error
        self._write_timeout = write_timeout
        self._abort_timeout = abort_timeout
        self._taking = self.sinks  # those that have not failed
        self._opened: list[Sink] = []
        self._complete: set[int] = set()  # ids
        self._aborted: set[int] = set()  # or given up, which is waited for only once
        self._failed: list[_Failed] = []  # in the order of their failing

    @property
    def failures(self) -> tuple[SinkFailure, ...]:
        """What failed so far, the first first."""
        return tuple(
            SinkFailure(one.sink.name, one.chunk, one.sink.committed, _told(one.error))
            for one in self._failed
        )

    async def open(self, info: StreamInfo) -> None:
        """Open one after the other.

        Raises:
            Exception: The first error, unless sinks may fail.
        """
        for sink in self.sinks:
            self._opened.append(sink)
            try:
                with anyio.move_on_after(self._write_timeout) as scope:
                    await sink.open(info)
                self._check_time(scope, sink, "open")
            except Exception as error:  # noqa: BLE001  # whatever a sink raises
                what = "nothing was decoded" if self._on_error == "stop" else "it got no frame"
                error.add_note(f"While sink {sink.name} was opened; {what}.")
                await self._leave_behind([_Failed(sink, None, error)])

    async def accept(self, chunk: HostChunk) -> None:
        """Have every sink accept ``chunk``, side by side.

        Raises:
            Exception: The first error, when the others have the chunk; where sinks may fail, only
                if none is left and nobody else wants the frames.
        """
        failed: list[_Failed] = []
        if len(self._taking) == 1:
            await self._write(self._taking[0], chunk, failed)
        elif self._taking:
            async with anyio.create_task_group() as group:
                for sink in self._taking:
                    group.start_soon(self._write, sink, chunk, failed)
        del chunk  # since Python 3.13 a kept traceback's frames keep those that called them
        if failed:
            await self._leave_behind(failed)
        if self.alone and self.sinks and not self._taking:
            raise self._failed[0].error

    async def close(self) -> None:
        """Complete those that have not failed, side by side.

        Raises:
            Exception: The first error of all, also of a sink that was left behind.
        """
        async with anyio.create_task_group() as group:
            for sink in self._taking:
                group.start_soon(self._close, sink)
        if self._failed:
            raise self._failed[0].error

    async def abort(self) -> None:
        """Have every sink that has not ended keep what it accepted, each within its time."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for sink in self._opened:
                    group.start_soon(self._abort, sink)

    def notes(self, error: BaseException) -> Iterator[str]:
        """What is to be known beside the ``error`` that has ended the stream."""
        for one in self._failed:
            if one.error is not error:
                where = "" if one.chunk is None else f" at chunk {one.chunk}"
                yield f"Sink {one.sink.name} failed{where}: {_told(one.error)}"
        yield from map(str, self.stuck)
        for sink in self._opened:
            if id(sink) in self._complete:
                yield f"Sink {sink.name} is complete."
            elif sink.committed:
                yield f"Sink {sink.name} keeps the {sink.committed} before it."

    # Not a closure over the chunk: the frames of a kept traceback would hold it, cleared or not.
    async def _write(self, sink: Sink, chunk: HostChunk, failed: list[_Failed]) -> None:
        try:
            with anyio.move_on_after(self._write_timeout) as scope:
                await sink.write(chunk)
            self._check_time(scope, sink, f"take chunk {chunk.index}")
        except Exception as error:  # noqa: BLE001  # the other sinks still get this chunk
            error.add_note(f"While sink {sink.name} took chunk {chunk.index}.")
            failed.append(_Failed(sink, chunk.index, error))

    async def _close(self, sink: Sink) -> None:
        try:
            with anyio.move_on_after(self._write_timeout) as scope:
                await sink.close()
            self._check_time(scope, sink, "complete")
        except Exception as error:  # noqa: BLE001  # the other sinks are still completed
            error.add_note(f"While sink {sink.name} was closed; it has every frame.")
            self._failed.append(_Failed(sink, None, error))
        else:
            self._complete.add(id(sink))

    async def _abort(self, sink: Sink) -> None:
        if id(sink) in self._complete | self._aborted:
            return
        with anyio.move_on_after(self._abort_timeout, shield=True) as scope:
            try:
                await sink.abort()
            except Exception:
                logger.exception("sink %s failed while it was aborted", sink.name)
        if scope.cancelled_caught:
            self.stuck.append(SinkTimeout(sink.name, self._abort_timeout))
        self._aborted.add(id(sink))

    async def _leave_behind(self, failed: Sequence[_Failed]) -> None:
        """Go on without those that have just failed, if that is what is wanted."""
        self._failed += failed
        for one in failed:
            # An error that is kept must not keep a chunk.
            clear_frames(one.error)
        if self._on_error == "stop":
            raise failed[0].error
        for one in failed:
            logger.error(
                "sink %s failed and is left behind, the stream goes on: %s",
                one.sink.name,
                _told(one.error),
            )
        gone = {id(one.sink) for one in failed}
        self._taking = tuple(sink for sink in self._taking if id(sink) not in gone)
        async with anyio.create_task_group() as group:
            for one in failed:
                group.start_soon(self._abort, one.sink)

    def _check_time(self, scope: anyio.CancelScope, sink: Sink, what: str) -> None:
        if scope.cancelled_caught:
            raise SinkTimeout(sink.name, self._write_timeout or 0.0, what)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
