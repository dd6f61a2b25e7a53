"""Where requests to a service are let in, made to wait, sent away, and seen out."""

from __future__ import annotations

import asyncio
from typing import cast

import anyio

from .._errors import ClosedError, LatentsError
from .._turns import Priority
from ..latents import LatentsLike
from ._admission import SOONEST, Admission, Busy, Need, Place, until_served
from ._books import Books
from ._needs import Needs, Planned
from ._request import RequestOptions

_PLANNED = Planned.__annotations__


class Desk:
    """Admits requests, by what they need and who is there.

    Args:
        admission: The places.
        books: Who runs.
        needs: Tells what requests take.
    """

    def __init__(self, admission: Admission, books: Books, needs: Needs) -> None:
        self._admission = admission
        self._books = books
        self._needs = needs
        #: Whether nobody is let in any more.
        self.draining = False

    def enter(self, priority: Priority) -> Place:
        """Give a request a place, or one in the queue.

        Raises:
            Busy: There is none.
        """
        if self.draining:
            self._books.refused["draining"] += 1
            raise Busy(self.retry_after(), "draining")
        need = Need() if self._admission.memory is None else None
        place = self._admission.enter(need, priority)
        if place is None:
            raise self._full()
        return place

    async def settle(self, place: Place, latents: LatentsLike, options: RequestOptions) -> None:
        """Find out what a request takes, where that matters.

        Raises:
            Busy: It would have to wait, and as many do as may.
            LatentsError: More than there is, or they are no latents that can be decoded here.
        """
        if place.need is None and not place.needs(await self._need(latents, options)):
            raise self._full()

    def retry_after(self) -> float:
        """Seconds after which one who came now would have a place."""
        books, admission = self._books, self._admission
        return until_served(books.remaining(), admission.waiting, admission.places, books.typical())

    async def drain(self, grace: float) -> None:
        """See `Service.drain`."""
        self.draining = True
        running = self._books.running
        busy = Busy(max(SOONEST, grace), "draining")
        for place in self._admission.everybody():
            if all(place is not one.place for one in running):
                self._books.refused["draining"] += 1
                place.refuse(busy)
        try:
            if running:
                await asyncio.wait([one.task for one in running], timeout=grace)
        finally:
            for one in tuple(running):
                one.end("drain", ClosedError("expected a service that runs, got one that drained"))
            with anyio.CancelScope(shield=True):
                if running:
                    await asyncio.wait([one.task for one in running])

    async def _need(self, latents: LatentsLike, options: RequestOptions) -> Need:
        planned = cast("Planned", {key: value for key, value in options.items() if key in _PLANNED})
        need = await self._needs.of(latents, planned, alone=options.get("transform") is None)
        if not self._admission.fits(need):
            raise LatentsError(
                f"expected latents that decode in {self._admission.memory} bytes beside the "
                f"weights, got ones that take {need.kept + need.working}; see codec.plan(shape)"
            )
        return need

    def _full(self) -> Busy:
        self._books.refused["full"] += 1
        return Busy(self.retry_after(), "full")
