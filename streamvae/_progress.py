"""Progress for people: a tqdm bar, one of their own, or a callable."""

from __future__ import annotations

from ._chunks import StreamInfo
from ._errors import call_user
from ._options import Progress, ProgressBar


class Reporter:
    """Passes frames on to whatever ``progress`` is: a bool, something like tqdm, or a callable."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._own: ProgressBar | None = None
        self._done = 0

    def advance(self, frames: int, info: StreamInfo | None) -> None:
        """Say that ``frames`` more frames are there."""
        self._done += frames
        total = None if info is None else info.frames
        if isinstance(self._progress, bool):
            if self._progress:
                call_user(self._bar(total).update, frames)
        elif isinstance(self._progress, ProgressBar):
            call_user(self._progress.update, frames)
        else:
            call_user(self._progress, self._done, total)

    def close(self) -> None:
        """Close the bar made here; a bar of the user's own stays open."""
        close = getattr(self._own, "close", None)
        if close is not None:
            call_user(close)

    def _bar(self, total: int | None) -> ProgressBar:
        if self._own is None:
            from tqdm.auto import tqdm

            self._own = tqdm(total=total, unit="frame")
        return self._own
