"""The stages: async generator functions, source first. Each drops its input before it yields.

decode → download → persist, or decode → settle where frames stay on the device.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Literal, TypeVar

import anyio
import torch

from ._bands import Joiner
from ._chunks import DeviceChunk, DeviceFrames, HostChunk, LatentChunk
from ._errors import NonFiniteError, StageTimeout
from ._events import Event, wait
from ._log import Call, Log
from ._pixels import Kind
from ._recipe import Recipe
from ._tee import Tee
from ._threads import outcome
from ._turns import Ticket
from .abc import Backend, Copy, Rendered, Sink, Uploaded, Uploads

T = TypeVar("T")

logger = logging.getLogger("streamvae")

#: Bytes that are brought to the device at once where all latents are, if they can be cut.
UPLOAD = 16 * 2**20

#: What to do about NaN and infinity.
NonFinite = Literal["raise", "warn"]


async def decode(
    source: AsyncIterator[LatentChunk],
    recipe: Recipe,
    backend: Backend,
    timeout: float | None = None,
    *,
    log: Log | None = None,
) -> AsyncGenerator[DeviceChunk, None]:
    """Launch each chunk on the device, at most two ahead of it; never wait for its result.

    Latents in host memory are on their way before a chunk waits for its turn.
    """
    index, log = 0, log or Log()
    whole = await _upload_everything(recipe, backend, timeout)
    async for chunk in source:
        on_device = await _upload(chunk.pieces, backend, index, timeout)
        arrived = (*chunk.arrived, *on_device.arrived, *whole.arrived)
        pieces, held = on_device.tensors, (*on_device.tensors, *whole.tensors)
        del chunk, on_device
        whole = Uploaded(())  # read by the first launch
        bands = recipe.bands(pieces)
        for band in bands or (None,):
            work = functools.partial(recipe.decode, pieces, band)
            launched = await _launch(backend, work, index, timeout, log, after=arrived, hold=held)
            del work
            if band is None or band.last:
                pieces, arrived, held = (), (), ()
            yield replace(launched, band=band)
            del launched
            index += 1
    for _ in range(recipe.codec.drains(recipe.latents)):
        launched = await _launch(backend, recipe.drain, index, timeout, log)
        yield launched
        del launched
        index += 1


async def _upload_everything(recipe: Recipe, backend: Backend, timeout: float | None) -> Uploaded:
    """Bring all latents to the device, where the codec wants them at once."""
    uploads, whole = _uploads(backend), recipe.everything
    if uploads is None or not uploads.wanted(whole):
        return Uploaded(())
    parts = [
        await _upload((part,), backend, 0, timeout)
        for one in whole
        for part in torch.split(one, _fitting(one, recipe.codec.axis), recipe.codec.axis)
    ]
    recipe.everything = tuple(tensor for part in parts for tensor in part.tensors)
    return Uploaded(recipe.everything, tuple(event for part in parts for event in part.arrived))


def _fitting(latents: torch.Tensor, axis: int) -> int:
    """How many latents are brought at once."""
    return max(1, UPLOAD * latents.shape[axis] // max(1, latents.nbytes))


async def _upload(
    pieces: tuple[torch.Tensor, ...], backend: Backend, index: int, timeout: float | None
) -> Uploaded:
    """Bring ``pieces`` to the device if they are in host memory and the backend does that."""
    uploads = _uploads(backend)
    if uploads is None or not uploads.wanted(pieces):
        return Uploaded(pieces)
    slot = uploads.slot()
    await _pass(slot, backend, "upload", index, timeout)
    return await _result(uploads.start(pieces, slot), slot, "upload", index, timeout)


def _uploads(backend: Backend) -> Uploads | None:
    return getattr(backend, "uploads", None)


async def _launch(
    backend: Backend,
    work: Callable[[], Rendered | None],
    index: int,
    timeout: float | None,
    log: Log,
    *,
    after: tuple[Event, ...] = (),
    hold: tuple[torch.Tensor, ...] = (),
) -> DeviceChunk:
    turn = backend.turn()
    await _pass(turn, backend, "decode", index, timeout)
    call = Call(work, f"decode chunk {index}", log.clock)
    del work
    future = backend.launch(call, turn, after=after, hold=hold)
    handle, ready = await _result(future, turn, "decode", index, timeout)
    log.launched(index, call, ready)
    return DeviceChunk(index, handle, ready)


async def _pass(
    ticket: Ticket, backend: Backend, stage: str, index: int, timeout: float | None
) -> None:
    """Wait for one's turn; give the place up if the wait is broken off."""
    try:
        await wait(ticket, backend.device, stage=stage, chunk=index, timeout=timeout)
    except BaseException:
        ticket.leave()
        raise


async def _result(
    future: Future[T], ticket: Ticket | None, stage: str, index: int, timeout: float | None
) -> T:
    """Await a call of the device's threads that owns ``ticket`` once it has begun."""
    try:
        with anyio.move_on_after(timeout):
            return await outcome(future)
    finally:
        # A call that never began, withdrawn or without a thread, cannot give the ticket back; one
        # that has begun does, before it fails: only the first time counts.
        never = future.cancel() or (future.done() and future.exception() is not None)
        if never and ticket is not None:
            ticket.leave()
    raise StageTimeout(stage, index, timeout or 0.0)


async def download(
    source: AsyncIterator[DeviceChunk],
    backend: Backend,
    kind: Kind,
    nonfinite: NonFinite = "raise",
    timeout: float | None = None,
    *,
    log: Log | None = None,
) -> AsyncGenerator[HostChunk, None]:
    """Copy each chunk to the host as soon as the device has made it."""
    start, log = 0, log or Log()
    async for chunk in source:
        index, band = chunk.index, chunk.band
        copy = await _copy(chunk, backend, timeout)
        del chunk
        if copy is None:
            continue
        await wait(copy.done, backend.device, stage="download", chunk=index, timeout=timeout)
        done = copy.done
        arrived = await _result(backend.collect(copy), None, "download", index, timeout)
        del copy
        check_finite(
            index,
            nonfinite,
            latents=arrived.latents_finite,
            pixels=arrived.pixels_finite,
        )
        host = HostChunk(index, start, kind, arrived.pixels, band, arrived.picture)
        del arrived
        start += len(host)
        log.passed("download", index, frames=len(host), nbytes=host.data.nbytes, event=done)
        yield host
        del host


async def _copy(chunk: DeviceChunk, backend: Backend, timeout: float | None) -> Copy | None:
    slot = backend.slot()
    await _pass(slot, backend, "download", chunk.index, timeout)
    future = backend.download(chunk.data, chunk.ready, slot)
    return await _result(future, slot, "download", chunk.index, timeout)


async def settle(
    source: AsyncIterator[DeviceChunk],
    backend: Backend,
    kind: Kind,
    nonfinite: NonFinite = "raise",
    timeout: float | None = None,
    *,
    log: Log | None = None,
) -> AsyncGenerator[DeviceFrames, None]:
    """Leave each chunk on the device and pass it on once the device has made it."""
    start, log = 0, log or Log()
    async for chunk in source:
        index, band = chunk.index, chunk.band
        await wait(chunk.ready, backend.device, stage="settle", chunk=index, timeout=timeout)
        rendered = await outcome(backend.settle(chunk.data))
        del chunk
        if rendered is None:
            continue
        latents, pixels = rendered.finite.tolist()  # on the host by now
        check_finite(index, nonfinite, latents=latents, pixels=pixels)
        frames = DeviceFrames(index, start, kind, rendered.pixels, band)
        del rendered
        start += len(frames)
        log.passed("settle", index, frames=len(frames))
        yield frames
        del frames


async def persist(
    source: AsyncIterator[HostChunk], tee: Tee, *, log: Log | None = None
) -> AsyncGenerator[HostChunk, None]:
    """Have every sink accept each chunk, side by side, before it is passed on.

    Bands of a picture are joined first, unless all sinks take them.
    """
    log = log or Log()
    joiner = Joiner(bands=all(map(takes_bands, tee.sinks)))
    try:
        async for given in source:
            chunk = await joiner.add(given)
            del given
            if chunk is not None:
                await tee.accept(chunk)
                log.passed("persist", chunk.index, frames=len(chunk), nbytes=chunk.data.nbytes)
                yield chunk
            del chunk
    finally:
        joiner.close()


def takes_bands(sink: Sink) -> bool:
    """Whether ``sink`` takes bands of pictures as they come."""
    return bool(getattr(sink, "takes_bands", False))


def check_finite(index: int, nonfinite: NonFinite, *, latents: bool, pixels: bool) -> None:
    """Act on the two flags that travelled with chunk ``index``.

    Raises:
        NonFiniteError: A flag is down and ``nonfinite`` is ``"raise"``.
    """
    if latents and pixels:
        return
    error = NonFiniteError("pixels" if latents else "latents", index)
    if nonfinite == "raise":
        raise error
    logger.warning("%s", error)
