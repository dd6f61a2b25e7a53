"""All jobs of the app: those that wait or run, and the last ones that ended."""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio

from .._threads import Worker, outcome
from ._job import Job, Order
from ._problems import Problem
from ._service import Service
from ._shutdown import Shutdown
from ._uploads import Uploads


class Jobs:
    """Makes jobs, runs each in a task of its own, and forgets the oldest.

    Args:
        service: What decodes.
        folder: Where each job's files go, in a folder of its own; it is there.
        uploads: What stored the latents, and removes them.
        most_open: Jobs that may wait or run.
        most_kept: Jobs that are kept when they have ended, with their videos.
        video: Whether videos are kept; they need PyAV.
    """

    def __init__(
        self,
        service: Service,
        folder: Path,
        uploads: Uploads,
        *,
        most_open: int,
        most_kept: int = 32,
        video: bool = True,
    ) -> None:
        self._service = service
        self._folder = folder
        self._uploads = uploads
        self._most_open, self._most_kept = most_open, most_kept
        self._video = video
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._worker = Worker("streamvae jobs")
        self._shutdown: Shutdown | None = None
        self._expiry: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Job]:
        """The newest first."""
        return reversed(tuple(self._jobs.values()))

    def __getitem__(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            Problem: 404: there is none.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise Problem(404, "no job has this id; it was deleted, or gave way to newer ones")
        return job

    @property
    def open(self) -> int:
        """Jobs that wait or run."""
        return len(self._tasks)

    def expect_room(self) -> None:
        """See that one more may be made.

        Raises:
            Problem: 503: as many wait or run as may, or the server is about to stop.
        """
        if self._shutdown is not None and self._shutdown.stopping:
            raise Problem.later("the server is about to stop", 10)
        if self.open >= self._most_open:
            raise Problem.later(f"{self.open} jobs wait or run, as many as may", 5)

    def obey(self, shutdown: Shutdown | None) -> None:
        """End all jobs in time when the server stops."""
        if shutdown is not None and self._shutdown is None:
            self._shutdown = shutdown
            self._expiry = asyncio.create_task(self._expire(shutdown), name="streamvae expiry")

    def add(self, order: Order) -> Job:
        """Make a job, which begins as soon as its turn comes.

        Raises:
            Problem: As `expect_room`; its upload is removed then.
        """
        try:
            self.expect_room()
        except Problem:
            self._discard(order)
            raise
        job = Job(order, self._folder, video=self._video)
        self._jobs[job.id] = job
        task = asyncio.create_task(self._run(job), name="streamvae job")
        self._tasks[job.id] = task
        job.forsaken = task.cancel
        # Not a `finally` of the task: one that is cancelled before its first step has none.
        task.add_done_callback(functools.partial(self._over, job))
        if self._shutdown is not None:
            self._shutdown.watch(task)
        return job

    async def stop(self, job: Job) -> None:
        """Stop it if it is not over, and return when it has given everything back."""
        task = self._tasks.get(job.id)
        if task is not None:
            await _ended([task])

    async def remove(self, job: Job) -> None:
        """Stop it, and forget it with its files."""
        await self.stop(job)
        if self._jobs.pop(job.id, None) is not None:
            self._remove_files(job)
        await self.settled()

    async def settled(self) -> None:
        """Return when files that were given up are gone."""
        with anyio.CancelScope(shield=True):
            await outcome(self._worker.submit(_nothing), keep=True)
            await self._uploads.settled()

    async def aclose(self) -> None:
        """Stop all. Their videos stay, whole or as far as they came."""
        await _ended([*self._tasks.values(), *([self._expiry] if self._expiry else [])])
        await self.settled()
        self._worker.close()

    async def _run(self, job: Job) -> None:
        if self._video:
            await outcome(self._worker.submit(job.folder.mkdir), keep=True)
        await job.run(self._service)

    def _over(self, job: Job, task: asyncio.Task[None]) -> None:
        """Note that a task has ended. Awaits nothing: files are removed on a thread."""
        del self._tasks[job.id]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):  # its folder could not be made
            job.end("failed", error)
        job.end("cancelled")
        self._discard(job.order)
        over = [each for each in self._jobs.values() if each.id not in self._tasks]
        for each in over[: max(0, len(over) - self._most_kept)]:
            del self._jobs[each.id]
            self._remove_files(each)

    def _discard(self, order: Order) -> None:
        if order.stored is not None:
            self._uploads.discard(order.stored)

    def _remove_files(self, job: Job) -> None:
        self._worker.submit(shutil.rmtree, job.folder, ignore_errors=True)

    async def _expire(self, shutdown: Shutdown) -> None:
        await shutdown.expired()
        for task in self._tasks.values():
            task.cancel()


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        with anyio.CancelScope(shield=True):
            await asyncio.wait(tasks)


def _nothing() -> None:
    pass
