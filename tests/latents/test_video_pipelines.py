"""Video pipelines of diffusers: streaming their latents gives the frames that they would give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import streamvae
from streamvae._errors import LatentsError, UsageError
from streamvae.latents import of_pipeline
from tests.latents.pipelines import CASES
from tests.latents.pipelines.case import Case
from tests.latents.pipelines.wan import image
from tests.releases import since

#: Of diffusers' own, not of what is tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]


def _run(case: Case, pipe, generator: torch.Generator, output_type: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        given = pipe(**case.call(), generator=generator, output_type=output_type, return_dict=False)
    return given[0] if isinstance(given, tuple) else given


def _as_video(frames: np.ndarray) -> np.ndarray:
    """(B, T, H, W, C), also of a pipeline that gives pictures."""
    return frames if frames.ndim == 5 else frames[:, None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streamed_latents_give_the_frames_of_the_pipeline(case: Case) -> None:
    """With the same seed the streamed frames are those of the ordinary output, frame by frame."""
    pipe = case.build()
    expected = _run(case, pipe, torch.Generator().manual_seed(0), "np")
    generator = torch.Generator().manual_seed(0)
    latents = _run(case, pipe, generator, "latent")
    for name in case.taken_off:
        setattr(pipe, name, None)
    told = {name: case.call()[name] for name in case.told}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        streamed = streamvae.collect(
            latents, pipe, call={**told, "generator": generator}, output="device"
        )
    frames = (streamed * 0.5 + 0.5).clamp(0, 1).float().numpy()  # as diffusers does it
    expected = _as_video(expected)
    assert frames.shape == expected.shape
    assert np.ptp(expected) > 0.05
    difference = np.abs(frames - expected).max(axis=(0, 2, 3, 4))
    assert difference.max() <= case.tolerance, difference


def test_the_pil_rule_gives_the_bytes_of_the_pipelines_pictures() -> None:
    """Streamed uint8 frames are the pictures that ``output_type="pil"`` gives."""
    case = CASES[0]
    pipe = case.build()
    pictures = _run(case, pipe, torch.Generator().manual_seed(0), "pil")
    latents = _run(case, pipe, torch.Generator().manual_seed(0), "latent")
    streamed = streamvae.collect(latents, pipe)
    assert np.array_equal(streamed[0], np.stack([np.asarray(one) for one in pictures[0]]))


def _pipe(name: str, label: str = ""):
    return next(c for c in CASES if c.pipeline == name and c.label == label).build()


@pytest.mark.parametrize(
    ("name", "label", "call", "said"),
    [
        ("LTXPipeline", "", {"height": 64}, r"got no width"),
        ("LTXPipeline", "", {"height": 64, "width": 0}, r"width of at least 1 in call, got 0"),
        ("CogVideoXPipeline", "padded", {}, r"call=\{'num_frames': \.\.\.\}.*got no num_frames"),
        ("CosmosTextToWorldPipeline", "", {}, r"without safety_checker.*check_video_safety"),
        ("AllegroPipeline", "", {"num_frames": 23}, r"num_frames that 4 divides, got 23"),
    ],
)
def test_what_decoding_depends_on_must_be_told(name, label, call, said) -> None:
    """What latents do not tell is asked for by name before anything is decoded."""
    pipe = _pipe(name, label)
    with pytest.raises(UsageError, match=said):
        of_pipeline(pipe, call)


@pytest.mark.parametrize(
    ("name", "call", "shape", "error"),
    [
        ("LTXPipeline", {"height": 64, "width": 96}, (1, 17, 8), LatentsError),
        ("AnimateDiffPipeline", {}, (2, 4, 5, 4, 6), LatentsError),
        ("ChronoEditPipeline", {"enable_temporal_reasoning": True}, (1, 4, 3, 4, 6), UsageError),
    ],
)
def test_latents_that_do_not_fit_the_call_are_refused(name, call, shape, error) -> None:
    """Latents that the pipeline cannot have given after such a call raise before decoding."""
    with pytest.raises(error, match="expected"):
        streamvae.collect(torch.zeros(shape), _pipe(name), call=call)


def test_latents_in_pieces_are_refused_where_only_the_whole_can_be_cut() -> None:
    """A pipeline whose first latents are dropped takes its latents in one piece."""
    pipe = _pipe("WanVACEPipeline")
    pieces = [torch.zeros(1, 4, 2, 4, 6)] * 2
    call = {"reference_images": [image()]}
    with pytest.raises(LatentsError, match="WanVACEPipeline all at once"):
        streamvae.collect(iter(pieces), pipe, call=call)


class _Enough(Exception):
    """Ends a pipeline where it begins to decode."""


def _handed_to_decode(case: Case, pipe) -> torch.Tensor:
    """What the pipeline hands to ``vae.decode`` (first)."""
    handed = []

    def decode(latents: torch.Tensor, *_: object, **__: object) -> None:
        handed.append(latents.clone())
        raise _Enough

    pipe.vae.decode = decode
    with pytest.raises(_Enough):
        _run(case, pipe, torch.Generator().manual_seed(0), "np")
    del pipe.vae.decode
    return handed[0]


def _half(value: object) -> object:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if floating else value


_IN_HALF = {
    "AllegroPipeline",
    "AnimateDiffPipeline-at-once",
    "CogVideoXPipeline-padded",
    "Cosmos2TextToImagePipeline",
    "Cosmos2VideoToWorldPipeline",
    "Cosmos2_5_PredictBasePipeline",
    "CosmosTextToWorldPipeline",
    "EasyAnimatePipeline",
    "HunyuanVideoPipeline",
    "Kandinsky6TI2VAPipeline",
    "LTX2Pipeline",
    "LTXPipeline-noisy",
    "MochiPipeline",
    "MotifVideoPipeline",
    "SanaVideoPipeline",
    "StableVideoDiffusionPipeline-at-once",
    "WanPipeline",
}


@pytest.mark.parametrize("case", [c for c in CASES if str(c) in _IN_HALF], ids=str)
def test_in_bfloat16_the_same_latents_are_decoded(case: Case) -> None:
    """Operations and casts have the pipeline's order: chunks are its own latents, bit for bit."""
    if case.pipeline == "StableVideoDiffusionPipeline":
        since("0.41", "it encodes float32 with weights of bfloat16, which raises")
    case = replace(case, call=lambda call=case.call: {k: _half(v) for k, v in call().items()})
    pipe = case.build().to(torch.bfloat16)
    expected = _handed_to_decode(case, pipe)
    generator = torch.Generator().manual_seed(0)
    latents = _run(case, pipe, generator, "latent")
    for name in case.taken_off:
        setattr(pipe, name, None)
    told = {name: case.call()[name] for name in case.told}
    vae, _, preparation = of_pipeline(pipe, {**told, "generator": generator})
    viewed = latents if preparation.view is None else preparation.view(latents)
    axis = 2 if viewed.ndim == 5 else 0
    sizes = [1, viewed.shape[axis] - 1] if viewed.shape[axis] > 1 else [1]
    chunks = [
        preparation.prepare(chunk, start, vae.dtype)
        for start, chunk in zip((0, 1), viewed.split(sizes, axis), strict=False)
    ]
    assert torch.equal(torch.cat(chunks, axis), expected)
