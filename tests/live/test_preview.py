"""What a job's latents look like meanwhile: right, late at worst, and never in the job's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback

from streamvae import (
    ClosedError,
    LatentsError,
    UnknownSourceError,
    UsageError,
    stream_decode,
    stream_pipeline,
)
from streamvae._turns import PATIENCE
from streamvae.live import Picture, Preview, preview
from streamvae.testing import FakeBackend, TagCodec, tagged_latents
from tests import tiny
from tests.families.pictures import tiny as tiny_pictures
from tests.flow import tag, virtual
from tests.latents.image_pipelines import unets
from tests.latents.image_pipelines.tokens import flux, flux_call
from tests.latents.pipelines import frames
from tests.latents.pipelines.case import bare
from tests.test_stream_pipeline import call as wan_call
from tests.test_stream_pipeline import pictures, wan

STEPS = 4

#: Seconds that a launch takes, where it takes any: few polls, so that virtual time stays cheap.
DECODE = 0.02


def stable(vae: torch.nn.Module | None = None) -> diffusers.StableDiffusionPipeline:
    """A Stable Diffusion pipeline, with its own autoencoder or another."""
    components = unets.stable()
    return bare("StableDiffusionPipeline", **(components | ({"vae": vae} if vae else {})))


def call(**more: object) -> dict[str, Any]:
    """A short, seeded call of `stable`."""
    seeded = torch.Generator().manual_seed(3)
    return {**unets.call(), "num_inference_steps": STEPS, "generator": seeded, **more}


def pixels(pipe: diffusers.DiffusionPipeline, **more: object) -> np.ndarray:
    """The bytes of the pictures that a pipeline gives."""
    return np.stack([np.asarray(one) for one in pipe(**more, output_type="pil").images])


async def followed(
    forming: Preview, run: Callable[[], object], seen: list[Picture] | None = None
) -> tuple[object, list[Picture]]:
    """What the call gives, and what was shown while it ran on a thread."""
    seen = [] if seen is None else seen

    async def watch() -> None:
        async for picture in forming:
            seen.append(picture)

    async with asyncio.timeout(60):
        watching = asyncio.create_task(watch())
        given = await asyncio.to_thread(run)
        forming.end()
        await watching
    return given, seen


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline", "WanPipeline"])
async def test_the_picture_is_the_pipeline_s(name: str) -> None:
    """What is shown last is what the pipeline gives with that autoencoder in its place."""
    if name == "WanPipeline":
        pipe, small, made = wan(), tiny.wan21(seed=7), wan_call
        right = pictures(_with(wan(), small))[None]
    elif name == "FluxPipeline":
        pipe, made = bare(name, **flux()), flux_call
        small = tiny.kl(7, **{key: pipe.vae.config[key] for key in _FLUX})
        seeded = torch.Generator().manual_seed(3)
        right = pixels(_with(bare(name, **flux()), small), **flux_call(), generator=seeded)
    else:
        pipe, small, made = stable(), tiny_pictures(seed=7), call
        right = pixels(stable(small), **call())
    own = pipe.vae

    async with preview(pipe, small, share=1) as forming:
        arguments = made() | {"generator": torch.Generator().manual_seed(3)}
        _, seen = await followed(forming, lambda: pipe(**forming.call(**arguments)))

    assert np.array_equal(seen[-1].data, right)
    assert seen[-1].steps == seen[-1].step + 1 == pipe.num_timesteps
    assert seen[-1].frame.shape == right.shape[-3:]
    assert pipe.vae is own
    assert [one.step for one in seen] == sorted({one.step for one in seen})


_FLUX = ("latent_channels", "scaling_factor", "shift_factor", "block_out_channels")


def _with(pipe: diffusers.DiffusionPipeline, vae: torch.nn.Module) -> diffusers.DiffusionPipeline:
    pipe.vae = vae
    return pipe


async def test_every_step_of_a_slow_job_is_shown() -> None:
    """Where steps take longer than pictures, each is shown, and shows that step's latents."""
    pipe, small = stable(), tiny_pictures()
    latents: list[torch.Tensor] = []
    seen: list[Picture] = []

    def wait(pipe: object, step: int, time: object, given: dict[str, Any]) -> dict[str, Any]:
        while len(seen) < step:  # as long as the picture of the step before is not there
            pass
        latents.append(given["latents"].clone())
        return given

    async with preview(pipe, small, share=1) as forming:
        arguments = forming.call(**call(callback_on_step_end=wait))
        await followed(forming, lambda: pipe(**arguments), seen)

    assert [one.step for one in seen] == [*range(STEPS)]
    for given, one in zip(latents, seen, strict=True):
        right = await stream_decode(given, stable(small)).collect()
        assert np.array_equal(one.data, right)


async def test_the_job_is_as_without() -> None:
    """Pictures, generator and components are those of a call that nobody watches."""
    pipe = stable()
    right = pixels(pipe, **call())
    config, parts = dict(pipe.config), dict(vars(pipe))

    async with preview(pipe, tiny_pictures()) as forming:
        arguments = forming.call(**call())
        given, _ = await followed(forming, lambda: pixels(pipe, **arguments))

    assert np.array_equal(given, right)
    assert dict(pipe.config) == config
    assert vars(pipe).keys() == parts.keys()
    assert pipe.vae is parts["vae"]
    assert np.array_equal(pixels(pipe, **call()), right)


class Halve(PipelineCallback):
    """A callback of diffusers' kind, which says for itself which tensors it reads."""

    tensor_inputs: ClassVar = ["prompt_embeds", "latents"]

    def callback_fn(
        self, pipeline: object, step_index: int, timesteps: object, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Change what the next step works on."""
        assert [*callback_kwargs] == self.tensor_inputs
        return {name: tensor * 0.5 for name, tensor in callback_kwargs.items()}


async def test_own_callbacks_have_their_say() -> None:
    """A callback of the user's gets what it asked for; what it returns counts, and is shown."""
    small, asked = tiny_pictures(), list[tuple[str, ...]]()

    def embeddings(pipe: object, step: int, time: object, given: dict[str, Any]) -> dict[str, Any]:
        asked.append(tuple(given))
        return {"prompt_embeds": given["prompt_embeds"] * 0.5}

    for own, inputs in ((Halve(), {}), (embeddings, {_INPUTS: ["prompt_embeds"]})):
        arguments = {"callback_on_step_end": own, **inputs}
        pipe = stable()
        right, small_right = (pixels(one, **call(**arguments)) for one in (pipe, stable(small)))
        assert not np.array_equal(right, pixels(pipe, **call()))
        async with preview(pipe, small, share=1) as forming:
            watched = forming.call(**call(**arguments))
            given, seen = await followed(forming, lambda: pixels(pipe, **watched))  # noqa: B023
        assert np.array_equal(given, right)
        assert np.array_equal(seen[-1].data, small_right)
    assert set(asked) == {("prompt_embeds",)}


_INPUTS = "callback_on_step_end_tensor_inputs"


async def test_as_a_callback_of_a_streamed_pipeline() -> None:
    """It is itself the callback, for `stream_pipeline` too, and ends after the last step."""
    pipe, small = wan(), tiny.wan21(seed=7)
    right, small_right = pictures(pipe), pictures(_with(wan(), small))

    async with (
        preview(pipe, small, share=1) as forming,
        stream_pipeline(pipe, callback_on_step_end=forming, **wan_call()) as stream,
    ):
        frames = await stream.collect()
        seen = [one async for one in forming]

    assert np.array_equal(frames[0], right)
    assert np.array_equal(seen[-1].data[0], small_right)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
async def test_older_callbacks() -> None:
    """Pipelines that call back in diffusers' older way are watched too, and call the user's."""
    case = next(one for one in frames.CASES if one.pipeline == "TextToVideoSDPipeline")
    pipe, small, steps = case.build(), tiny.kl(7), list[int]()

    def own(step: int, time: object, latents: torch.Tensor) -> None:
        steps.append(step)

    arguments = dict(case.call())
    right = _with(case.build(), small)(**arguments, generator=_seeded(), output_type="np")[0]
    async with preview(pipe, small, share=1) as forming:
        watched = forming.call(**arguments, generator=_seeded(), callback=own)
        _, seen = await followed(forming, lambda: pipe(**watched))

    assert steps == [*range(len(steps))]
    shown = seen[-1].data / 255
    assert shown.shape == np.asarray(right).shape
    assert np.abs(shown - np.asarray(right)).max() < 0.01


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("how", ["decoding", "latents"])
async def test_a_failure_is_nobody_else_s(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once and raised at the end of the iteration; the job never hears of it."""
    pipe = stable()
    right = pixels(pipe, **call())
    vae = TagCodec() if how == "decoding" else tiny.wan21()

    with caplog.at_level(logging.WARNING, "streamvae"):
        async with preview(pipe, vae, share=1) as forming:
            arguments = forming.call(**call())
            given = await asyncio.to_thread(pixels, pipe, **arguments)
            for _ in range(2):
                with pytest.raises((LatentsError, KeyError, UsageError, AttributeError)):
                    [_ async for _ in forming]

    assert np.array_equal(given, right)
    assert sum("The preview has ended" in record.message for record in caplog.records) == 1


async def test_left_early() -> None:
    """Leaving the block ends whoever iterates, also while the job goes on, which is not harmed."""
    pipe = stable()
    right = pixels(pipe, **call())

    async with preview(pipe, tiny_pictures()) as forming:
        watching = asyncio.create_task(_all(forming))
        arguments = forming.call(**call())

    assert await watching == []
    assert np.array_equal(await asyncio.to_thread(pixels, pipe, **arguments), right)
    with pytest.raises(ClosedError, match="expected a fresh preview"):
        await forming.__aenter__()


async def _all(forming: Preview) -> list[Picture]:
    return [one async for one in forming]


def _tags(value: int) -> dict[str, torch.Tensor]:
    return {"latents": tagged_latents(1, start=value)}


@virtual
async def test_the_latest_wins() -> None:
    """While a picture is decoded, all steps but the last one are passed over."""
    backend = FakeBackend(decode=1.0)
    async with preview(stable(), TagCodec(), share=1, backend=backend) as forming:
        watching = asyncio.create_task(_all(forming))
        forming(None, 0, None, _tags(100))
        await asyncio.sleep(0.5)
        for step in range(1, 7):
            forming(None, step, None, _tags(100 + step))
        await asyncio.sleep(0.7)
        forming.end()
        shown = await watching

    assert [(one.step, tag(one.data)) for one in shown] == [(0, 100), (6, 106)]
    assert shown[0].steps is None


@virtual
async def test_its_share_of_the_time_is_bounded() -> None:
    """Of steps that are shorter than pictures only so many are shown as there is time for."""
    backend = FakeBackend(decode=0.01)
    steps, seconds = 400, 0.02
    async with preview(stable(), TagCodec(), share=0.05, backend=backend) as forming:
        watching = asyncio.create_task(_all(forming))
        for step in range(steps):
            forming(None, step, None, _tags(step % 100))
            await asyncio.sleep(seconds)
        forming.end()
        shown = await watching

    bound = 0.05 * steps * seconds / 0.01
    assert 0.5 * bound < len(shown) <= bound + 3  # the first, and the last
    assert shown[-1].step >= steps - 2


@virtual
async def test_every_so_manieth_step() -> None:
    """Steps in between are not even copied."""
    backend = FakeBackend()
    async with preview(stable(), TagCodec(), every=3, share=1, backend=backend) as forming:
        watching = asyncio.create_task(_all(forming))
        for step in range(8):
            forming(None, step, None, _tags(step))
            await asyncio.sleep(1)
        forming.end()

    assert [one.step for one in await watching] == [0, 3, 6]


@virtual
async def test_behind_frames_that_are_kept() -> None:
    """A preview's launch waits while others ask for turns, and not for ever."""
    backend = FakeBackend(decode=DECODE)
    codec = TagCodec()
    async with preview(stable(), codec, backend=backend) as forming:
        others = [
            asyncio.create_task(stream_decode(tagged_latents(12), codec, backend=backend).finish())
            for _ in range(3)
        ]
        await asyncio.sleep(4.5 * DECODE)
        began = asyncio.get_running_loop().time()
        forming(None, 0, None, _tags(7))
        await anext(aiter(forming))
        waited = (asyncio.get_running_loop().time() - began) / DECODE
        await asyncio.gather(*others)

    # Those who came before it, those who overtake it, two that are launched, and its own.
    assert PATIENCE < waited < 3 + PATIENCE + 2 + 2


def test_what_it_refuses() -> None:
    """Nothing is begun with what cannot work."""
    pipe = stable()
    with pytest.raises(UnknownSourceError, match="expected a diffusers pipeline, got Linear"):
        preview(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="expected a tiny autoencoder, got none, and a Auto"):
        preview(pipe)
    with pytest.raises(UsageError, match="expected every to be a whole number from 1"):
        preview(pipe, tiny_pictures(), every=0)
    for share in (0, 1.5):
        with pytest.raises(UsageError, match="expected share from above 0 to 1"):
            preview(pipe, tiny_pictures(), share=share)
    with pytest.raises(UsageError, match="calls back after its steps, got a DiTPipeline"):
        preview(bare("DiTPipeline"), tiny_pictures())
    with pytest.raises(UsageError, match="takes.* got colour"):
        preview(pipe, tiny_pictures()).call(colour=1)
    assert isinstance(preview(stable(tiny_pictures())), Preview)
