"""The frames of a stream for a thread without a loop; dropped anywhere, it only says so."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Generic, TypeVar

from ._chunks import Frame
from ._errors import ClosedError
from ._loop_thread import LoopThread
from ._merged import AVStream
from ._stream import FrameStream

S = TypeVar("S", FrameStream, AVStream)


class FrameIterator(Generator[Frame, None, None], Generic[S]):
    """A generator of frames whose collection waits for nothing.

    A generator's own ``finally`` would end the stream on the thread that collects it, and wait for
    it there: see Note [Interrupts and collections] in ``_loop_thread``.

    Args:
        stream: Entered with the first frame, on a loop of its own.
        frames: Gives the frames of the entered stream; nothing of it may be left to clean up.
    """

    def __init__(
        self, stream: S, frames: Callable[[S, LoopThread], Generator[Frame, None, None]]
    ) -> None:
        self._stream: S = stream
        self._threads: list[LoopThread] = []  # one, while the stream runs
        self._frames = _entered(stream, frames, self._threads)

    def send(self, value: None) -> Frame:
        """Wait for the next frame."""
        return self._step(lambda: self._frames.send(value))

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: object = None,
        tb: TracebackType | None = None,
    ) -> Frame:
        """End the stream by an error."""
        error = typ if isinstance(typ, BaseException) else val
        if not isinstance(error, BaseException):
            error = typ() if val is None else typ(val)  # type: ignore[operator]  # a class
        return self._step(lambda: self._frames.throw(error.with_traceback(tb)))

    def close(self) -> None:
        """Stop, and return when everything is given back. Idempotent.

        Raises:
            SinkTimeout: A sink did not end in time; its thread ends by itself.
        """
        self._frames.close()
        self._leave(None)

    def _step(self, step: Callable[[], Frame]) -> Frame:
        if inspect.getgeneratorstate(self._frames) == inspect.GEN_RUNNING:
            raise ValueError("generator already executing")
        try:
            return step()
        except StopIteration:
            self._leave(None)
            raise
        except BaseException as error:
            self._leave(error)
            raise

    def _leave(self, error: BaseException | None) -> None:
        if not self._threads:
            return
        thread = self._threads.pop()
        try:
            with contextlib.suppress(ClosedError):  # the loop was stopped, at exit
                thread.call(self._stream.__aexit__, type(error) if error else None, error, None)
        finally:
            thread.close()


def _entered(
    stream: S,
    frames: Callable[[S, LoopThread], Generator[Frame, None, None]],
    running: list[LoopThread],
) -> Generator[Frame, None, None]:
    """Not a method: an iterator that its own generator referred to would be a cycle."""
    # Async iterables of latents and async sinks run there: they are the caller's.
    thread = LoopThread(stream._caller.enter, stream.aclose)
    running.append(thread)
    thread.call(stream.__aenter__)
    yield from frames(stream, thread)
