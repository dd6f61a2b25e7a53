"""One form of the frames for all viewers who want that form: made once, given to each."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import anyio

from streamvae._chunks import Frame, HostChunk
from streamvae._errors import clear_frames
from streamvae._threads import outcome

from ._subscription import Ending, Outlet

T = TypeVar("T")

_log = logging.getLogger("streamvae")

#: Chunks that wait for a track at most; another one is in its hands.
ROOM = 2


class Form(Protocol[T]):
    """How frames become what viewers get. `make` runs on threads of its own.

    Attributes:
        name: For people.
        header: What comes before the first item; there when that is.
        ahead: How many may be made at the same time.
    """

    name: str
    header: bytes
    ahead: int

    def frames(self, chunk: HostChunk) -> Sequence[Frame]:
        """The frames of ``chunk`` that it takes."""
        ...

    def make(self, frame: Frame, *, key: bool) -> Future[T]:
        """Make one; ``key``: somebody waits for one to begin with."""
        ...

    def is_key(self, item: T) -> bool:
        """Whether a viewer can begin with ``item``."""
        ...

    def close(self) -> None:
        """Let threads and encoders go, without waiting for them."""
        ...


class Track(Generic[T]):
    """Takes chunks, makes items of them and gives these to the viewers, each by its policy.

    At most `ROOM` chunks wait; with a viewer who blocks, whoever puts more in waits too, else the
    oldest is dropped, which every viewer counts. So encoding never holds the decode either.

    Args:
        form: What it makes.
    """

    def __init__(self, form: Form[T]) -> None:
        self.outlets: list[Outlet[T]] = []
        self.over = False
        self._form = form
        self._inlet: deque[HostChunk] = deque()
        self._last = False
        self._ending = Ending()
        self._came = anyio.Event()
        self._taken = anyio.Event()
        self._scope = anyio.CancelScope()

    @property
    def lossless(self) -> bool:
        """Whether a viewer wants every frame, whatever it costs the others."""
        return any(outlet.lossless for outlet in self.outlets)

    async def put(self, chunk: HostChunk) -> None:
        """Hand over a chunk. Waits only for a viewer who blocks."""
        while self.lossless and len(self._inlet) >= ROOM and not self.over:
            self._taken = anyio.Event()
            await self._taken.wait()
        if self.over:
            return
        if len(self._inlet) >= ROOM:
            missed = len(self._form.frames(self._inlet.popleft()))
            for outlet in self.outlets:
                outlet.missed(missed)
        self._inlet.append(chunk)
        self._came.set()

    def finish(self, ending: Ending) -> None:
        """No more chunks will come; once all are given, viewers get ``ending``."""
        self._last, self._ending = True, ending
        self._came.set()

    def leave(self, outlet: Outlet[T]) -> None:
        """Take a viewer out; without any there is nothing to do."""
        self.outlets.remove(outlet)
        outlet.end(Ending(), discard=True)
        self._taken.set()  # it may have been the one who blocked
        if not self.outlets:
            self.stop()

    def stop(self) -> None:
        """End at once; idempotent, and before `run` as well."""
        self.over = True
        self._inlet.clear()
        self._taken.set()
        self._scope.cancel()

    def end(self, ending: Ending) -> None:
        """End the viewers' queues."""
        for outlet in self.outlets:
            outlet.end(ending)

    async def run(self) -> None:
        """Make and give until the last chunk, or until nobody is left.

        An error is the viewers': each gets what was made before, then the error.
        """
        try:
            with self._scope:
                await self._run()
                self.end(self._ending)
        except Exception as error:  # noqa: BLE001  # whatever an encoder raises; never the job's
            clear_frames(error)  # viewers may keep it, but no chunk with it
            told = f"{type(error).__name__}: {error}"  # a handler may keep what it is given
            _log.warning("viewers of %s get no more: %s", self._form.name, told)
            self.end(Ending(error))
        finally:
            self.over = True
            self._inlet.clear()
            self._taken.set()
            self._form.close()

    async def _run(self) -> None:
        while True:
            while self._inlet:
                await self._next(self._inlet.popleft())
            if self._last:
                return
            self._came = anyio.Event()
            await self._came.wait()

    async def _next(self, chunk: HostChunk) -> None:
        self._taken.set()
        making: deque[Future[T]] = deque()
        try:
            for frame in self._form.frames(chunk):
                thirsty = any(outlet.thirsty for outlet in self.outlets)
                making.append(self._form.make(frame, key=thirsty))
                if len(making) > self._form.ahead:
                    await self._give(await outcome(making.popleft()))
            while making:
                await self._give(await outcome(making.popleft()))
        finally:
            for future in making:
                future.cancel()

    async def _give(self, item: T) -> None:
        key, header = self._form.is_key(item), self._form.header
        blocked: list[Outlet[T]] = []
        for outlet in self.outlets:
            outlet.header = header
            if outlet.lossless and outlet.full:
                blocked.append(outlet)
                continue
            outlet.make_room(self._form.is_key)
            outlet.offer(item, key=key)
        for outlet in blocked:
            await outlet.free()
            outlet.offer(item, key=key)
