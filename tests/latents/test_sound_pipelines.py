"""Pipelines that make video with sound: streaming both gives what they would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from streamvae import UnknownSourceError, UsageError, collect, stream_decode_av
from streamvae.latents import sound_of, timed
from tests.families.sound import ltx2_audio, ltx2_vocoder, ltx2_wide, mmaudio, mmaudio_vocoder
from tests.latents.pipelines import CASES
from tests.latents.pipelines.case import Call, Case, bare

#: Of diffusers' own, not of what is tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def _case(name: str) -> Case:
    return next(case for case in CASES if str(case) == name)


@dataclass(frozen=True)
class Sounding:
    """A case of the video pipelines, with other parts for the sound and arguments of the call."""

    name: str
    parts: Callable[[], dict[str, object]] = dict
    call: Callable[[], Call] = dict
    tolerance: float = 2e-6

    def __str__(self) -> str:
        return "-".join([self.name, *self.parts()])

    def build(self) -> DiffusionPipeline:
        """The pipeline."""
        case = _case(self.name)
        return bare(case.pipeline, **{**case.make(), **self.parts()})


def _wide() -> dict[str, object]:
    return {"vocoder": ltx2_wide(in_channels=16)}


def _kandinsky6() -> dict[str, object]:
    return {"audio_vae": mmaudio(), "vocoder": mmaudio_vocoder()}


SOUNDING = (
    Sounding("LTX2Pipeline"),
    Sounding("LTX2Pipeline", _wide),
    Sounding("LTX2Pipeline-noisy"),
    Sounding("LTX2ImageToVideoPipeline"),
    Sounding("LTX2ConditionPipeline"),
    Sounding("Kandinsky6TI2VAPipeline", _kandinsky6, lambda: {"sample_audio": True}),
)


def _run(pipe, call: Call, generator: torch.Generator, output_type: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return pipe(**call, generator=generator, output_type=output_type, return_dict=False)


@pytest.mark.parametrize("one", SOUNDING, ids=str)
async def test_streamed_latents_give_frames_and_sound_of_the_pipeline(one: Sounding) -> None:
    """With the same seed frames and samples are those of the ordinary output, one by one."""
    case, pipe = _case(one.name), one.build()
    call = {**case.call(), "frame_rate": 25.0, **one.call()}
    expected = _run(pipe, call, torch.Generator().manual_seed(0), "np")
    generator = torch.Generator().manual_seed(0)
    latents = _run(pipe, call, generator, "latent")
    told = {name: call[name] for name in (*case.told, "frame_rate")}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        stream = stream_decode_av(
            *latents,
            pipe,
            call={**told, "generator": generator},
            output="float32",
            audio_latents_per_chunk=5,
        )
        video, sound = await stream.collect()

    assert stream.info.video.fps == 25.0
    frames = (video * 0.5 + 0.5).clip(0, 1)  # as diffusers does it
    assert frames.shape == expected[0].shape
    assert np.abs(frames - expected[0]).max() <= max(case.tolerance, 0)
    given = sound.transpose(0, 2, 1)
    wave = np.asarray(expected[1]).reshape(given.shape)
    assert np.ptp(wave) > 0.02
    assert np.abs(given - wave).max() <= one.tolerance


def _sound_alone(name: str) -> DiffusionPipeline:
    return bare(name, audio_vae=ltx2_audio(), vocoder=ltx2_vocoder(in_channels=32))


@pytest.mark.parametrize(
    ("name", "call", "samples"),
    [
        ("LTX2Pipeline", {}, None),
        ("LTX2InContextPipeline", {}, None),
        ("LTX2DFRPipeline", {"num_frames": 17, "frame_rate": 25.0}, 16320),
        ("LTX2DFRPipeline", {"num_frames": 17}, 17000),
        ("LTX2DFRTemporalRefinePipeline", {"num_frames": 17, "frame_rate": 12.0}, 33000),
    ],
)
def test_sound_that_ends_with_the_video(name: str, call: Call, samples: int | None) -> None:
    """Where a pipeline cuts its sound to the length of its video, so is the stream's."""
    (autoencoder, vocoder), arguments, _ = sound_of(pipe := _sound_alone(name)).decoding(call)
    assert (autoencoder, vocoder) == (pipe.audio_vae, pipe.vocoder)
    assert arguments.get("samples") == samples


def test_the_sound_of_a_pipeline_alone() -> None:
    """A pair of its parts gives it without the video."""
    pipe = _sound_alone("LTX2Pipeline")
    latents = torch.randn(1, 4, 9, 4, generator=torch.Generator().manual_seed(0))
    given = collect(latents, (pipe.audio_vae, pipe.vocoder))
    assert np.array_equal(given, collect(latents, sound_of(pipe)))


@pytest.mark.parametrize(
    ("call", "fps", "given"),
    [
        ({}, 25, (25, {"frame_rate": 25})),
        ({"frame_rate": 24.0}, None, (24.0, {"frame_rate": 24.0})),
        ({"frame_rate": 24.0}, 24, (24.0, {"frame_rate": 24.0})),
    ],
)
def test_who_says_how_many_frames_a_second(call: Call, fps: float | None, given) -> None:
    """The user or the pipeline's call; each is told what the other said."""
    assert timed(_sound_alone("LTX2Pipeline"), call, fps) == given


def test_a_pipeline_that_doubles_its_frames() -> None:
    """A pipeline whose video has two frames for each of its call's rate is asked for the rate."""
    pipe = _sound_alone("LTX2DFRTemporalRefinePipeline")
    assert timed(pipe, {}, 50.0) == (50.0, {"frame_rate": 25.0})
    assert timed(pipe, {"frame_rate": 25.0}, None) == (50.0, {"frame_rate": 25.0})


@pytest.mark.parametrize(
    ("make", "options", "error", "said"),
    [
        (
            partial(bare, "WanPipeline"),
            {"fps": 24},
            UnknownSourceError,
            r"makes video with sound \(.*LTX2Pipeline\), or a pair .* got WanPipeline",
        ),
        (dict, {"fps": 24}, UnknownSourceError, "got dict"),
        (
            partial(bare, "LTX2Pipeline", vocoder=None),
            {"fps": 24},
            UsageError,
            "expected a LTX2Pipeline with its audio_vae, got one with audio_vae=None",
        ),
        (
            lambda: bare("LTX2Pipeline", audio_vae=ltx2_audio()),
            {"fps": 24},
            UsageError,
            "with its vocoder, got one with vocoder=None",
        ),
        (
            partial(_sound_alone, "LTX2Pipeline"),
            {},
            UsageError,
            r"expected fps, or call=\{'frame_rate': \.\.\.\} as the call of LTX2Pipeline got it",
        ),
        (
            partial(_sound_alone, "LTX2Pipeline"),
            {"fps": 12, "call": {"frame_rate": 24.0}},
            UsageError,
            "expected fps to be the 24 frames a second .* got 12: the sound would not fit",
        ),
        (
            partial(_sound_alone, "LTX2Pipeline"),
            {"call": {"frame_rate": -1}},
            UsageError,
            "expected frame_rate in call to be positive, got -1",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(make, options, error, said: str) -> None:
    """A source without sound, or of no known frame rate, raises when the stream is made."""
    latents = torch.zeros(1, 8, 2, 2, 3), torch.zeros(1, 4, 9, 4)
    with pytest.raises(error, match=said):
        stream_decode_av(*latents, make(), **options)


def test_what_the_call_does_not_take_is_refused() -> None:
    """Arguments that decoding cannot depend on are named."""
    with pytest.raises(UsageError, match=r"call of LTX2Pipeline takes, got fames"):
        sound_of(_sound_alone("LTX2Pipeline")).decoding({"fames": 1})
