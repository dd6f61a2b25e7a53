"""A pipeline's call streamed: its frames, its errors, and how it is left while it is generating."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.callbacks import PipelineCallback

from streamvae import FrameStream, UnknownSourceError, UsageError, stream_pipeline
from streamvae.testing import FakeBackend
from tests import tiny
from tests.codecs.walk import noise
from tests.latents import image_pipelines as image
from tests.latents import pipelines as video
from tests.latents.pipelines.case import Case

from .flow import no_thread_left, until

STEPS = 6

#: Packed tokens and decode noise; frames taken off; legacy ways of giving and of halting.
SOME = [
    case
    for case in (*video.CASES, *image.CASES)
    if str(case)
    in {
        "CogVideoXPipeline-padded",
        "CogVideoXPipeline-unsaid",
        "FluxPipeline",
        "HunyuanVideo15Pipeline",
        "LTXPipeline-noisy",
        "StableDiffusionXLInpaintPipeline",
        "StableVideoDiffusionPipeline",
        "TextToVideoSDPipeline",
    }
]


def wan(cls: type[WanPipeline] = WanPipeline) -> WanPipeline:
    """A tiny WanPipeline that needs no text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=8,
            ffn_dim=8,
            num_layers=1,
        ).eval()
    pipe = cls(
        tokenizer=None,
        text_encoder=None,
        vae=tiny.wan21(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> WanPipeline:
    """One pipeline for all tests: each has to leave it usable."""
    return wan()


def call(**more: object) -> dict[str, Any]:
    """Arguments of a short, seeded call."""
    return {
        "prompt_embeds": noise(1, 4, 8),
        "guidance_scale": 1.0,
        "height": 16,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(3),
        **more,
    }


def pictures(pipe: WanPipeline, **more: object) -> np.ndarray:
    """The bytes of the pictures that the pipeline itself gives."""
    (clip,) = pipe(**call(**more), output_type="pil").frames
    return np.stack([np.asarray(picture) for picture in clip])


class Gate:
    """A callback that counts steps, also in ``log``; stops in one of them until it is let go."""

    def __init__(self, at: int = 1, log: list[Gate] | None = None) -> None:
        self.at = at
        self.steps = 0
        self.log: list[Gate] = [] if log is None else log
        self.threads = set[str]()
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(
        self, pipe: object, step: int, time: torch.Tensor, given: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        self.steps += 1
        self.log.append(self)
        self.threads.add(threading.current_thread().name)
        if step == self.at:
            self.reached.set()
            assert self.go.wait(20)
        return given


def _threads() -> int:
    """How many pipelines run, or wait for their turn."""
    return sum(one.name == "streamvae-pipeline" for one in threading.enumerate())


async def test_frames_are_the_pipeline_s(pipe: WanPipeline) -> None:
    """Streaming a call gives the very pictures that the call gives, and says what they will be."""
    expected = pictures(pipe)

    async with stream_pipeline(pipe, fps=16, **call()) as stream:
        assert (stream.info.frames, stream.info.height, stream.info.width) == (9, 16, 32)
        assert stream.info.latents_shape == (1, 4, 3, 2, 4)
        streamed = await stream.collect()

    assert np.array_equal(streamed[0], expected)
    no_thread_left()
    assert np.array_equal(pictures(pipe), expected)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # torch's norms, under autocast
async def test_under_autocast(pipe: WanPipeline) -> None:
    """A call and its decoding run under the autocast, and in the context, of their caller."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: set[tuple[str, bool]] = set()

    def note(pipe: object, step: int, timestep: object, given: dict[str, Any]) -> dict[str, Any]:
        seen.add((request.get(), torch.is_autocast_enabled("cpu")))
        return given

    plain = pictures(pipe)
    request.set("ninth")
    with torch.autocast("cpu", torch.bfloat16):
        expected = pictures(pipe)
        streamed = await stream_pipeline(pipe, **call(callback_on_step_end=note)).collect()
    assert np.array_equal(streamed[0], expected)
    assert not np.array_equal(plain, expected)
    assert seen == {("ninth", True)}


@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
async def test_frames_of_other_pipelines(case: Case) -> None:
    """Sizes that were left to the pipeline, and noise drawn by decoding, are the pipeline's."""
    pipe = case.build()
    with torch.random.fork_rng(devices=[]):  # some decoders draw from the global generator too
        torch.manual_seed(1)
        seeded = torch.Generator().manual_seed(0)
        expected = np.asarray(pipe(**case.call(), generator=seeded, output_type="np")[0])
        torch.manual_seed(1)
        again = torch.Generator().manual_seed(0)
        stream = stream_pipeline(pipe, output="device", generator=again, **case.call())
        frames = await stream.collect()
    assert torch.equal(again.get_state(), seeded.get_state())
    assert isinstance(frames, torch.Tensor)
    pixels = (frames * 0.5 + 0.5).clamp(0, 1).float().numpy()
    assert np.abs(pixels.reshape(expected.shape) - expected).max() <= case.tolerance


async def test_nothing_runs_before_it_is_asked_for(pipe: WanPipeline) -> None:
    """Making a stream runs nothing; dropping it neither."""
    gate = Gate()
    stream = stream_pipeline(pipe, **call(callback_on_step_end=gate))
    await stream.aclose()
    stream_pipeline(pipe, **call(callback_on_step_end=gate))
    assert gate.steps == 0
    no_thread_left()


async def test_the_loop_stays_free(pipe: WanPipeline) -> None:
    """The pipeline runs on a thread of its own; meanwhile the loop goes on."""
    gate = Gate()
    stream = stream_pipeline(pipe, **call(callback_on_step_end=gate))
    collecting = asyncio.create_task(stream.collect())
    await until(gate.reached.is_set, "the second step")
    gate.go.set()
    assert len(await collecting) == 1
    assert gate.threads == {"streamvae-pipeline"}
    assert gate.steps == STEPS


class Halve(PipelineCallback):
    """A callback of diffusers' kind, which says for itself which tensors it reads."""

    tensor_inputs: ClassVar = ["latents", "prompt_embeds"]

    def callback_fn(
        self, pipeline: object, step_index: int, timesteps: object, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Change what the next step works on."""
        return {name: tensor * 0.5 for name, tensor in callback_kwargs.items()}


async def test_own_callbacks_have_their_say(pipe: WanPipeline) -> None:
    """A callback of the user's, function or PipelineCallback, changes what it would change."""
    for own in (Halve(), lambda pipe, step, time, given: {"latents": given["latents"] + 1}):
        expected = pictures(pipe, callback_on_step_end=own)
        stream = stream_pipeline(pipe, **call(callback_on_step_end=own))
        assert np.array_equal((await stream.collect())[0], expected)
        assert not np.array_equal(expected, pictures(pipe))


async def _left(stream: FrameStream, gate: Gate, how: str) -> None:
    """Leave a stream whose pipeline is in its second step, in one way or another."""

    async def entered() -> None:
        async with stream:
            raise AssertionError("expected to be left before there is anything")

    async def first() -> None:
        async for frame in stream:
            raise AssertionError(f"expected no frame, got {frame.index}")

    waiting = asyncio.create_task(entered() if how == "entering" else first())
    await until(gate.reached.is_set, "the second step")
    if how != "aclose":
        waiting.cancel()
    closing = asyncio.create_task(stream.aclose())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not closing.done(), "the pipeline is still in use"
    gate.go.set()
    await closing
    with pytest.raises((asyncio.CancelledError, ValueError, RuntimeError)):
        await waiting


@pytest.mark.parametrize("how", ["entering", "cancelled", "aclose"])
async def test_left_between_steps(pipe: WanPipeline, how: str) -> None:
    """A stream that is left ends its pipeline with the step it is in, and leaves it usable."""
    gate = Gate()
    expected = pictures(pipe)

    await _left(stream_pipeline(pipe, **call(callback_on_step_end=gate)), gate, how)

    assert gate.steps == gate.at + 1
    no_thread_left()
    assert np.array_equal(pictures(pipe), expected)
    assert np.array_equal((await stream_pipeline(pipe, **call()).collect())[0], expected)


async def test_dropped_while_generating(pipe: WanPipeline) -> None:
    """A stream that is merely dropped halts its pipeline too."""
    gate = Gate()
    stream = stream_pipeline(pipe, **call(callback_on_step_end=gate))
    step = asyncio.ensure_future(anext(aiter(stream)))
    await until(gate.reached.is_set, "the second step")
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    del step, stream
    gc.collect()
    await until(lambda: pipe._interrupt, "the halt")
    gate.go.set()
    no_thread_left()
    assert gate.steps == gate.at + 1


async def test_left_while_decoding(pipe: WanPipeline) -> None:
    """A stream may be left as any other once there are frames."""
    async with stream_pipeline(pipe, **call()) as stream:
        async for frame in stream:
            assert frame.index == 0
            break
    no_thread_left()


async def test_streams_of_one_pipeline_take_turns(pipe: WanPipeline) -> None:
    """Two streams of one pipeline at once: the second begins when the first has its latents."""
    log = list[Gate]()
    first, second = Gate(log=log), Gate(log=log)
    second.go.set()
    expected = pictures(pipe)
    one = asyncio.create_task(stream_pipeline(pipe, **call(callback_on_step_end=first)).collect())
    await until(first.reached.is_set, "the second step")
    other = asyncio.create_task(
        stream_pipeline(pipe, **call(callback_on_step_end=second)).collect()
    )
    await until(lambda: _threads() == 2, "the other's thread, which waits")
    first.go.set()
    assert all(np.array_equal(given[0], expected) for given in await asyncio.gather(one, other))
    assert log == [first] * STEPS + [second] * STEPS


async def test_left_while_another_stream_has_the_pipeline(pipe: WanPipeline) -> None:
    """A stream that waits for its turn can be left at once."""
    gate, never = Gate(), Gate()
    expected = pictures(pipe)
    one = asyncio.create_task(stream_pipeline(pipe, **call(callback_on_step_end=gate)).collect())
    await until(gate.reached.is_set, "the second step")
    before = _threads()
    waiting = stream_pipeline(pipe, **call(callback_on_step_end=never))
    entering = asyncio.create_task(waiting.__aenter__())
    await until(lambda: _threads() > before, "its thread, which waits")
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not one.done()
    assert never.steps == 0
    gate.go.set()
    assert np.array_equal((await one)[0], expected)


async def test_errors_of_the_pipeline(pipe: WanPipeline) -> None:
    """What the pipeline raises is raised as it is; the next stream is right."""

    def fail(pipe: object, step: int, time: object, given: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("in step 0")

    for entered in (True, False):
        stream = stream_pipeline(pipe, **call(callback_on_step_end=fail))
        with pytest.raises(ZeroDivisionError, match="in step 0"):
            if entered:
                await stream.__aenter__()
            else:
                await stream.collect()
        with pytest.raises(ValueError, match="divisible by 16"):
            await stream_pipeline(pipe, **call(height=17)).collect()
    no_thread_left()
    assert np.array_equal((await stream_pipeline(pipe, **call()).collect())[0], pictures(pipe))


def test_bad_arguments(pipe: WanPipeline) -> None:
    """What neither the stream nor the pipeline takes is refused before anything runs."""
    with pytest.raises(UnknownSourceError, match="expected a diffusers pipeline, got Linear"):
        stream_pipeline(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="expected no output_type and no return_dict"):
        stream_pipeline(pipe, **call(output_type="pil", return_dict=True))
    with pytest.raises(UsageError, match="the call of WanPipeline takes.* got colour, lumen"):
        stream_pipeline(pipe, **call(lumen=1, colour=2))
    with pytest.raises(UsageError, match="expected fps to be positive"):
        stream_pipeline(pipe, fps=-1, **call())


async def test_latents_are_marked_where_they_are_made(pipe: WanPipeline) -> None:
    """The latents' event is recorded on the pipeline's thread, and decoding waits for it."""
    expected = pictures(pipe)
    threads = list[str]()

    class Backend(FakeBackend):
        def mark(self, latents: torch.Tensor):  # type: ignore[no-untyped-def]
            threads.append(threading.current_thread().name)
            return super().mark(latents)

    backend = Backend()
    stream = stream_pipeline(pipe, backend=backend, **call())
    assert np.array_equal((await stream.collect())[0], expected)
    assert threads == ["streamvae-pipeline"]
