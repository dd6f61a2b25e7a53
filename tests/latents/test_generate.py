"""Running a pipeline for its latents: each way in which pipelines of diffusers can be halted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamvae import LatentsError, UsageError
from streamvae.latents import PipelineSource, decoding_call, takes
from tests.flow import no_thread_left, until


class Steps:
    """What pipelines have in common: steps, of which the second waits to be let go."""

    def __init__(self) -> None:
        self.done = 0
        self.freed = False
        self.reached = threading.Event()
        self.go = threading.Event()

    def step(self, number: int) -> None:
        if number == 1:
            self.reached.set()
            assert self.go.wait(20)
        self.done += 1

    def maybe_free_model_hooks(self) -> None:
        self.freed = True


class WithoutCallback(Steps):
    """Knows ``interrupt`` and has no callback, like HunyuanVideo15Pipeline."""

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def __call__(self, output_type: str = "pil", return_dict: bool = True) -> tuple[torch.Tensor]:
        self._interrupt = False
        for number in range(6):
            if self.interrupt:
                continue
            self.step(number)
        return (torch.zeros(1, 4, 2, 2, 2),)


class Deaf(Steps):
    """Knows ``interrupt``, never looks, and has a callback, like Lumina2Pipeline."""

    interrupt = False

    def __call__(
        self,
        callback_on_step_end: Callable[..., dict[str, Any]],
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        for number in range(6):
            self.step(number)
            callback_on_step_end(self, number, 0, {}).pop("latents", None)
        return (torch.zeros(1, 4, 2, 2, 2),)


class Plain(Steps):
    """Has a callback and nothing else, like StableVideoDiffusionPipeline."""

    def __call__(
        self,
        callback_on_step_end: Callable[..., dict[str, Any]],
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        for number in range(6):
            self.step(number)
            callback_on_step_end(self, number, 0, {}).pop("latents", None)
        return (torch.zeros(1, 4, 2, 2, 2),)


class Old(Steps):
    """Has a callback of the old kind, like TextToVideoSDPipeline."""

    def __call__(
        self,
        callback: Callable[..., None],
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> torch.Tensor:
        for number in range(6):
            self.step(number)
            callback(number, 0, None)
        return torch.zeros(1, 4, 2, 2, 2)


class Unstoppable(Steps):
    """Has neither, like I2VGenXLPipeline."""

    def __call__(self, output_type: str = "pil", return_dict: bool = True) -> tuple[torch.Tensor]:
        for number in range(6):
            self.step(number)
        return (torch.zeros(1, 4, 2, 2, 2),)


def source(pipe: object, **call: object) -> PipelineSource:
    """A source over it."""
    return PipelineSource(pipe, call, lambda _: None)


@pytest.mark.parametrize(
    ("kind", "steps"), [(WithoutCallback, 2), (Deaf, 3), (Plain, 2), (Old, 2), (Unstoppable, 6)]
)
async def test_halted(kind: type[Steps], steps: int) -> None:
    """Every pipeline is halted as soon as it lets itself be, and closing waits for that."""
    pipe = kind()
    latents = source(pipe)
    opening = asyncio.create_task(latents.open())
    await until(pipe.reached.is_set, "the second step")
    opening.cancel()
    closing = asyncio.create_task(latents.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    pipe.go.set()
    await closing
    assert pipe.done == steps
    assert pipe.freed == (kind in {Deaf, Plain, Old})
    assert not getattr(pipe, "_interrupt", False)
    assert await latents.piece(2, 1) is None
    no_thread_left()


@pytest.mark.parametrize("kind", [WithoutCallback, Deaf, Plain, Old, Unstoppable])
async def test_latents_are_given_whole(kind: type[Steps]) -> None:
    """What the pipeline gives is given once, its shape known when it is open."""
    pipe = kind()
    pipe.go.set()
    latents = source(pipe)
    assert latents.shape is None
    await latents.open()
    assert (latents.shape, latents.dtype) == ((1, 4, 2, 2, 2), torch.float32)
    piece = await latents.piece(2, 1)
    assert piece is not None
    assert piece.tensor.shape == (1, 4, 2, 2, 2)
    assert await latents.piece(2, 1) is None
    await latents.aclose()
    await latents.aclose()
    assert pipe.done == 6
    no_thread_left()


async def test_closed_before_it_is_opened() -> None:
    """A source that was closed runs nothing."""
    pipe = Plain()
    latents = source(pipe)
    await latents.aclose()
    await latents.open()
    assert await latents.piece(2, 1) is None
    assert pipe.done == 0


async def test_something_else_than_latents() -> None:
    """A pipeline that gives no tensor is told so."""

    class Lists(Steps):
        def __call__(self, output_type: str, return_dict: bool) -> tuple[list[int]]:
            return ([1, 2],)

    latents = source(Lists())
    with pytest.raises(LatentsError, match="a tensor of latents from Lists .* got list"):
        await latents.open()
    await latents.aclose()


async def test_state_of_the_thread_comes_along() -> None:
    """Grad mode and number of threads are those of whoever made the source."""
    seen = list[tuple[bool, int]]()

    class Look(Steps):
        def __call__(self, output_type: str, return_dict: bool) -> tuple[torch.Tensor]:
            seen.append((torch.is_grad_enabled(), torch.get_num_threads()))
            return (torch.zeros(1),)

    before = torch.get_num_threads()
    try:
        for threads, grad in ((1, True), (2, False)):
            torch.set_num_threads(threads)
            with torch.set_grad_enabled(grad):
                latents = source(Look())
            await latents.open()
            await latents.aclose()
    finally:
        torch.set_num_threads(before)
    assert seen == [(True, 1), (False, 2)]


def test_what_decoding_may_depend_on() -> None:
    """Defaults of the call count as if they had been given; what it does not take is refused."""

    class Sized(Steps):
        def __call__(
            self,
            prompt: str,
            height: int = 512,
            width: int | None = None,
            output_type: str = "pil",
            return_dict: bool = True,
        ) -> tuple[torch.Tensor]:
            return (torch.zeros(1),)

    pipe = Sized()
    assert takes(pipe, "height")
    assert not takes(pipe, "self")
    assert decoding_call(pipe, {"prompt": "a"}) == {"prompt": "a", "height": 512, "width": None}
    assert decoding_call(pipe, {"height": 8, "width": 9}) == {"height": 8, "width": 9}
    with pytest.raises(UsageError, match="expected no return_dict"):
        decoding_call(pipe, {"return_dict": False})
    with pytest.raises(UsageError, match="the call of Sized takes, or options .* got depth"):
        decoding_call(pipe, {"depth": 1})
