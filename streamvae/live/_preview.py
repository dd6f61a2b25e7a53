"""preview: a pipeline's picture as it forms, by a tiny autoencoder beside the job."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import torch

from .._caller import CallerContext, ThreadState
from .._chunks import Array
from .._errors import ClosedError, UnknownSourceError, UsageError
from .._options import _count
from .._stream import FrameStream, stream_decode
from .._turns import Line, in_line
from ..abc import Backend
from ..latents import decoding_call, is_pipeline, takes
from ..models._load import load_autoencoder
from ._pictures import Picture, Shown, Viewer

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("streamvae")

#: diffusers' way of telling a callback what a step gave, and the one before it.
_NEW, _OLD = "callback_on_step_end", "callback"
_INPUTS = "callback_on_step_end_tensor_inputs"

Callback = Callable[..., object]


def preview(
    pipe: object,
    vae: object = None,
    *,
    every: int = 1,
    share: float = 0.03,
    call: Mapping[str, object] | None = None,
    backend: Backend | None = None,
) -> Preview:
    """Watch what a diffusers pipeline makes while it makes it.

    After a step the latents are copied and decoded by a tiny autoencoder, at low priority, in a
    stream of its own; the pipeline waits for nothing. The latest wins: what has not been decoded
    when the next step ends is dropped. Nothing is installed in the pipeline: it is told by its
    call, ``pipe(**forming.call(prompt=...))``, of this one call.

    Args:
        pipe: A diffusers pipeline of those that `stream_decode` knows.
        vae: What decodes: an autoencoder that could stand in the pipeline's ``vae``, such as
            ``AutoencoderTiny``; a path or hub id of one; or a `Codec` of your own, which gets the
            latents as the pipeline has them. None: the pipeline's own, if that is an
            ``AutoencoderTiny``; a large one would take longer than the steps.
        every: Show what every so manieth step gave, at most.
        share: Part of the time that decoding may take at most, from 0 to 1; pictures come more
            rarely where steps are short. The first one, which pays for what a first launch pays
            for, does not count.
        call: Arguments of the pipeline's call that decoding depends on (``height`` and ``width``
            where latents are packed), if it is not made by `Preview.call`.
        backend: The device's backend; None for the real one. For tests.

    Raises:
        UnknownSourceError: ``pipe`` is no diffusers pipeline.
        UsageError: It calls nobody after its steps, an option is out of range, or ``vae`` is None
            and the pipeline's own is none for this.
    """
    if not is_pipeline(pipe):
        raise UnknownSourceError(f"expected a diffusers pipeline, got {type(pipe).__name__}")
    if not (takes(pipe, _NEW) or takes(pipe, _OLD)):
        raise UsageError(
            f"expected a pipeline that calls back after its steps, got a {type(pipe).__name__}, "
            f"whose call takes no {_NEW}"
        )
    _count("every", every)
    if not 0 < share <= 1:
        raise UsageError(f"expected share from above 0 to 1, got {share!r}")
    own = getattr(pipe, "vae", None)
    if vae is None and type(own).__name__ != "AutoencoderTiny":
        raise UsageError(
            f"expected a tiny autoencoder, got none, and a {type(own).__name__} in the pipeline; "
            "pass vae=AutoencoderTiny.from_pretrained(...) of the same latents"
        )
    return Preview(pipe, vae, every=every, share=share, call=call or {}, backend=backend)


class Preview:
    """What `preview` returns. Inside ``async with`` it decodes; iterate it for `Picture` objects.

    Any number may iterate; each gets the latest picture it has not had, and ends after the last
    step, or when `end` is called or the block is left. It is for one call of the pipeline.

    It is that call's ``callback_on_step_end``; `call` also takes one of yours along. Should
    decoding fail, that is logged once and raised at the end of the iteration; the pipeline never
    hears of it.

    Attributes:
        tensor_inputs: What it has to be given.
    """

    def __init__(
        self,
        pipe: object,
        vae: object,
        *,
        every: int,
        share: float,
        call: Mapping[str, object],
        backend: Backend | None,
    ) -> None:
        self.tensor_inputs = ["latents"]
        self._pipe = pipe
        self._vae = vae
        self._every, self._share = every, share
        self._call = call
        self._backend = backend
        self._source: object = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._pending: _Offer | None = None
        self._ending = False
        self._changed = asyncio.Event()
        self._shown = Shown()

    def call(self, **call: object) -> dict[str, object]:
        """Arguments of the pipeline's call, with this one called after its steps, after yours.

        ``pipe(**forming.call(prompt=...))``, or `stream_pipeline` with them.

        Args:
            **call: The pipeline's own. A callback among them gets what it asked for by
                ``callback_on_step_end_tensor_inputs``, and what it returns counts.

        Raises:
            UsageError: The pipeline's call takes no such arguments.
        """
        said = ("output_type", "return_dict")  # what becomes of the frames is not its business
        self._call = decoding_call(
            self._pipe, {name: value for name, value in call.items() if name not in said}
        )
        if not takes(self._pipe, _NEW):
            return call | {_OLD: self._after_old(cast("Callback | None", call.get(_OLD)))}
        own = cast("Callback | None", call.get(_NEW))
        if own is None:
            return call | {_NEW: self, _INPUTS: self.tensor_inputs}
        asked = getattr(own, "tensor_inputs", None) or call.get(_INPUTS, ["latents"])
        wanted = tuple(cast("Sequence[str]", asked))
        inputs = [*wanted, *(name for name in self.tensor_inputs if name not in wanted)]
        return call | {_NEW: self._after_new(own, wanted), _INPUTS: inputs}

    def __call__(
        self, pipe: object, step: int, timestep: object, given: dict[str, Any]
    ) -> dict[str, Any]:
        """Be a ``callback_on_step_end``: keep the latents, change nothing."""
        del pipe, timestep
        self._offer(step, given.get("latents"))
        return given

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise ClosedError("expected a fresh preview, got one that was entered before")
        here = CallerContext(ThreadState.capture().for_loading())
        self._source = await asyncio.to_thread(here.run, _decoding, self._pipe, self._vae)
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="streamvae preview")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task])
        self._shown.end()  # a task that was cancelled before its first step has ended nothing
        self._pending, self._source = None, None

    def __aiter__(self) -> AsyncIterator[Picture]:
        return Viewer(self._shown)

    def end(self) -> None:
        """The pipeline is done: end with the picture of its last step. Idempotent; on the loop."""
        self._ending = True
        self._changed.set()

    # On the pipeline's thread, whatever that is. Nothing here may raise, or wait.

    def _after_new(self, own: Callback, wanted: Sequence[str]) -> Callback:
        def after_step(pipe: object, step: int, timestep: object, given: dict[str, Any]) -> object:
            latents = given.get("latents")
            returned = own(pipe, step, timestep, {name: given[name] for name in wanted})
            if isinstance(returned, Mapping):
                latents = returned.get("latents", latents)
            self._offer(step, latents)
            return returned

        return after_step

    def _after_old(self, own: Callback | None) -> Callback:
        def after_step(step: int, timestep: object, latents: object) -> None:
            if own is not None:
                own(step, timestep, latents)
            self._offer(step, latents)

        return after_step

    def _offer(self, step: int, latents: object) -> None:
        loop = self._loop
        if loop is None or self._shown.over:
            return
        try:
            steps: int | None = getattr(self._pipe, "num_timesteps", None)
            last = steps is not None and step + 1 >= steps
            stream = None
            if isinstance(latents, torch.Tensor) and (step % self._every == 0 or last):
                # A copy: some pipelines write into their latents. The stream is made here since it
                # waits, on the device, for what this thread has launched.
                stream = self._stream(latents.detach().clone())
            offer = _Offer(step, steps, stream, last)
            with contextlib.suppress(RuntimeError):  # the loop was closed just now
                loop.call_soon_threadsafe(self._take, offer)
        except Exception as error:  # noqa: BLE001  # the job is not to hear of it
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._failed, error)

    def _stream(self, latents: torch.Tensor) -> FrameStream:
        call = self._call if is_pipeline(self._source) else None
        return stream_decode(latents, self._source, call=call, backend=self._backend)

    # On the loop.

    def _take(self, offer: _Offer) -> None:
        if offer.stream is not None:
            self._pending = offer
        if offer.last:
            self._ending = True
        self._changed.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                offer, self._pending = self._pending, None
                if offer is not None:
                    first, seconds = not self._shown.count, await self._show(offer)
                    await self._rest(0.0 if first else seconds)
                    self._changed.set()  # somebody may have come meanwhile
                elif self._ending:
                    return
        except Exception as error:  # noqa: BLE001  # told to who iterates
            self._failed(error)
        finally:
            self._shown.end()

    async def _show(self, offer: _Offer) -> float:
        """Decode and publish; give the seconds that it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        stream = cast("FrameStream", offer.stream)
        with in_line(Line("preview")):
            stream._start()
        async with stream:
            data = await stream.collect()
        self._shown.publish(Picture(offer.step, offer.steps, cast("Array", data)))
        return loop.time() - began

    async def _rest(self, seconds: float) -> None:
        """Leave the device to the job, as long as that goes on."""
        until = asyncio.get_running_loop().time() + seconds * (1 / self._share - 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not self._ending:
                    self._changed.clear()
                    await self._changed.wait()

    def _failed(self, error: Exception) -> None:
        if self._shown.over:
            return
        logger.warning("The preview has ended, the job goes on: %s", error, exc_info=error)
        self._shown.end(error)
        if self._task is not None:
            self._task.cancel()


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    """What a step has given."""

    step: int
    steps: int | None
    stream: FrameStream | None
    last: bool


def _decoding(pipe: object, vae: object) -> object:
    """What decodes the pipeline's latents: the pipeline, with another autoencoder in its place.

    The pipeline itself is not touched: what becomes of its latents before they are decoded depends
    on the autoencoder's config, so it is a copy that is asked. Runs off the loop.
    """
    if vae is None:
        return pipe
    if isinstance(vae, (str, os.PathLike)):
        vae = load_autoencoder(vae)
    if not isinstance(vae, torch.nn.Module):
        return vae
    standing_in = copy.copy(pipe)
    cast("Any", standing_in).vae = vae
    return standing_in
