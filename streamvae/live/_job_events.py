"""A job's progress as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio

from ._events import Event
from ._job import Job

#: Seconds between two looks at the job.
_INTERVAL = 0.25


async def job_events(job: Job) -> AsyncGenerator[Event, None]:
    """``job``, the job as it stands, whenever it has come further; at last ``end``."""
    said: list[object] = []
    while not job.over:
        told = job.told()
        # Seconds pass in `stats` also where nothing happens: those alone are no news.
        news = [told[name] for name in ("state", "position", "frames")]
        if news != said:
            yield "job", told
            said = news
        with anyio.move_on_after(_INTERVAL):
            await job.ended()
    yield "end", job.told()
