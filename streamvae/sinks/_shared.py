"""One file that one sink fills, or two: begun by the first of them, complete with the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from streamvae._errors import ClosedError
from streamvae._locks import fork_safe_lock

from ._codecs import Container
from ._partial import Partial

if TYPE_CHECKING:
    from ._muxer import Muxer


class Track(Protocol):
    """What encodes one track of it."""

    @property
    def pictures(self) -> int:
        """How many it was given."""
        ...

    @property
    def begun(self) -> bool:
        """Whether it was given anything."""
        ...

    def flush(self) -> None:
        """Write out what it holds, once."""
        ...

    def release(self) -> None:
        """Let go of what it holds."""
        ...


class SharedFile:
    """A container under its temporary name; each sink that fills it works on its own thread.

    Args:
        partial: The file.
        kind: What kind of file.
    """

    def __init__(self, partial: Partial, kind: Container) -> None:
        self.kind = kind
        #: Sinks that fill it; before the first of them is opened.
        self.sinks = 1
        self.muxer: Muxer | None = None
        self._partial = partial
        self._lock = fork_safe_lock()
        self._tracks: list[Track] = []
        self._open: set[int] = set()
        self._ended: set[int] = set()
        self._begun = self._broken = False

    @property
    def begun(self) -> bool:
        """Whether a sink of it was opened."""
        return self._begun

    def put_aside(self) -> None:
        """Have what an earlier run left stay beside what is made anew, until there is more."""
        self._partial.aside = True

    def enter(self, sink: object) -> None:
        """Open ``sink``'s side; the place is taken with the first.

        Raises:
            UsageError: The file cannot be written.
            ClosedError: The other sink has failed, and the file is as complete as it gets.
        """
        with self._lock:
            if self._broken:
                raise ClosedError(f"{self._partial.target}: its other sink was aborted")
            if not self._begun:
                self._partial.acquire()
                self._begun = True
            self._open.add(id(sink))

    def writer(self) -> Muxer:
        """What takes packets; the file is emptied with the first call."""
        from ._muxer import Muxer

        with self._lock:
            if self.muxer is None:
                self.muxer = Muxer(
                    self._partial.begin(),
                    self.kind,
                    settle=self._partial.settle,
                    tracks=self.sinks,
                )
            return self.muxer

    def add(self, track: Track) -> None:
        """Have ``track`` flushed at the end, if it is not by then."""
        with self._lock:
            self._tracks.append(track)

    def end(self, sink: object) -> None:
        """Close ``sink``'s side, which is flushed. With the last one the file gets its name."""
        with self._lock:
            self._open.discard(id(sink))
            self._ended.add(id(sink))
            whole = len(self._ended) == self.sinks
            left = self._broken and not self._open
        if whole:
            self._complete()
            self._partial.publish()
        elif left:
            self._salvage()

    def stop(self, sink: object) -> None:
        """Give up ``sink``'s side. With the last one that is open, what there is gets completed."""
        with self._lock:
            self._open.discard(id(sink))
            self._broken = True
            left = not self._open
        if left:
            self._salvage()

    def _complete(self) -> None:
        assert self.muxer is not None  # noqa: S101  # who calls has one
        for track in self._tracks:
            track.flush()
        self.muxer.close(sum(track.pictures for track in self._tracks))

    def _salvage(self) -> None:
        keep = False
        try:
            if self.muxer is not None:
                self.muxer.salvage(self._complete)
                whole = self.muxer.whole and any(track.begun for track in self._tracks)
                keep = whole or self.muxer.until > 0 or self.muxer.committed > 0
        finally:
            for track in self._tracks:
                track.release()
            self._partial.release(keep=keep)
