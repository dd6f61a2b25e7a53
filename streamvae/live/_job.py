"""A job of the app: one decode with its viewers, its video file and an end that is told."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import anyio

from .._chunks import StreamInfo
from .._errors import ClosedError, StreamVAEError
from .._stats import StreamStats
from ..latents import LatentsLike
from ..sinks import VideoFile
from ._broadcast import Broadcast
from ._events import SPANS, info_told, stats_told
from ._problems import Problem
from ._request import Request
from ._service import Service
from ._uploads import Stored

logger = logging.getLogger("streamvae")

#: How far a job is. The last three are ends.
State = Literal["queued", "running", "done", "failed", "cancelled"]

#: Seconds that a job which is to begin with its first viewer waits for one.
PATIENCE = 10.0

#: Seconds that those who waited for a job have to begin to watch it.
_JOINING = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be decoded, and how.

    Attributes:
        name: What people call it; never a path.
        latents: As `streamvae.stream_decode` takes them.
        fps: Frames a second.
        normalized: As `streamvae.stream_decode` has it.
        on_idle: What happens when the last viewer has left: ``"finish"`` or ``"cancel"``.
        start: ``"now"``, or ``"viewer"``: with the first viewer, so that it misses nothing, or
            after `PATIENCE` without one.
        stored: The upload that is removed when it has been decoded.
    """

    name: str
    latents: LatentsLike
    fps: float
    normalized: bool = False
    on_idle: Literal["finish", "cancel"] = "finish"
    start: Literal["now", "viewer"] = "now"
    stored: Stored | None = None


class Job:
    """One decode. Made by `streamvae.live._jobs.Jobs`, which runs it once.

    Args:
        order: What is asked for.
        folder: Where the folder of its files goes.
        video: Whether its video is kept.

    Attributes:
        id: Random; a secret of those who were told it.
        order: What was asked for.
        state: How far it is.
        error: What it failed with, for its owner; None if it did not.
        created: When it was made.
        folder: Where its files are.
        info: What is known of its stream; None before that runs.
    """

    def __init__(self, order: Order, folder: Path, *, video: bool) -> None:
        self.id = secrets.token_urlsafe(16)
        self.order = order
        self.state: State = "queued"
        self.error: str | None = None
        self.created = datetime.now(UTC)
        self.folder = folder / self.id
        self.info: StreamInfo | None = None
        #: Called when all who waited for it have left, and it is not to go on without them.
        self.forsaken: Callable[[], object] = _nothing
        self._video = self.folder / "video.mp4" if video else None
        self._request: Request | None = None
        self._broadcast: Broadcast | None = None
        self._stats = StreamStats()
        self._asked = asyncio.Event()
        self._settled = asyncio.Event()  # it runs, or it is over: viewers need not wait
        self._ended = asyncio.Event()
        self._waiting = 0

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.state in {"done", "failed", "cancelled"}

    @property
    def video(self) -> Path | None:
        """The video, once the job is over: all of it, or what there was when it ended; or None."""
        if self._video is None or not self.over:
            return None
        partial = self._video.with_name(self._video.name + ".partial")
        return next((each for each in (self._video, partial) if each.is_file()), None)

    @property
    def stats(self) -> StreamStats:
        """What each stage did so far."""
        return self._stats if self._broadcast is None else self._broadcast.stats

    async def broadcast(self) -> Broadcast:
        """Where it is watched, as soon as it runs.

        Raises:
            Problem: 410: it is over.
        """
        self._waiting += 1
        self._asked.set()
        try:
            await self._settled.wait()
        finally:
            self._waiting -= 1
            left = not self._waiting and not self._settled.is_set()
            if left and self.order.on_idle == "cancel":
                self.forsaken()
        if self._broadcast is None:
            video = "; its video is there" if self.video is not None else ""
            raise Problem(410, self.error or f"the job is {self.state}{video}")
        return self._broadcast

    async def ended(self) -> None:
        """Wait until it is over."""
        await self._ended.wait()

    async def run(self, service: Service) -> None:
        """Decode it: the body of its task. Raises no error: `state` tells."""
        try:
            if self.order.start == "viewer":
                with anyio.move_on_after(PATIENCE):
                    await self._asked.wait()
            await self._decode(service)
        except (asyncio.CancelledError, ClosedError):  # the second: its last viewer has left
            self.end("cancelled")
        except Exception as error:
            self.end("failed", error)
            if not isinstance(error, StreamVAEError):
                logger.exception("job %s failed", self.id)
        else:
            self.end("done")

    async def _decode(self, service: Service) -> None:
        sinks = () if self._video is None else (VideoFile(self._video, self.order.fps),)
        self._request = service.stream(
            self.order.latents,
            sinks=sinks,
            fps=self.order.fps,
            normalized=self.order.normalized,
        )
        async with self._request as stream:
            self.info, self.state = stream.info, "running"
            broadcast = self._broadcast = Broadcast(stream, on_idle=self.order.on_idle)
            self._settled.set()
            await self._joined(broadcast)
            async with broadcast:
                await broadcast.finished()

    async def _joined(self, broadcast: Broadcast) -> None:
        """Have those who waited watch before it begins, so that they miss nothing."""
        with anyio.move_on_after(_JOINING):
            # A broadcast tells nobody who comes; they come within a few turns of the loop.
            while self._waiting or (self._asked.is_set() and not broadcast.viewers):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def end(self, state: State, error: Exception | None = None) -> None:
        """Be over; only the first time counts."""
        if self.over:
            return
        self._stats = self.stats
        self.state = state
        self.error = None if error is None else self._described(error)
        # Its frames are gone: nobody is to hold on to the stream.
        self._broadcast = self._request = None
        self._settled.set()
        self._ended.set()

    def _described(self, error: Exception) -> str:
        """What it failed with, without where things are on this machine."""
        if not isinstance(error, StreamVAEError):
            return f"{type(error).__name__}; the server's log says more"
        text = str(error)
        for path in (self.order.stored and self.order.stored.path, self._video):
            text = text if path is None else text.replace(str(path), self.order.name)
        return text

    def told(self, spans: int = SPANS) -> dict[str, object]:
        """All of it as JSON has it; links are relative to the app's root.

        Args:
            spans: How many of each stage's last chunks are in ``stats.timeline``.
        """
        stats, info = self.stats, self.info
        position = 0 if self._request is None else self._request.position
        base = f"jobs/{self.id}"
        frames = {each: f"{base}/frames.{each}" for each in ("jpegs", "mjpeg", "mp4")}
        return {
            "id": self.id,
            "name": self.order.name,
            "state": self.state,
            "created": self.created.isoformat(timespec="milliseconds"),
            "position": position or None,
            "frames": stats.frames,
            "total": None if info is None else info.frames,
            "fps": self.order.fps,
            "info": None if info is None else info_told(info),
            "stats": stats_told(stats, spans),
            "bottleneck": stats.bottleneck,
            "error": self.error,
            "links": {
                "self": base,
                "events": f"{base}/events",
                "socket": base,
                **frames,
                "video": None if self.video is None else f"{base}/video.mp4",
            },
        }


def _nothing() -> None:
    pass
