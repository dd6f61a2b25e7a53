"""The table of diffusers pipelines."""

import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

from streamvae._errors import UnknownSourceError, UsageError
from streamvae.latents import is_pipeline, of_pipeline
from streamvae.latents._pipelines import REFUSED, ROWS
from tests import tiny
from tests.latents.pipelines.case import bare
from tests.releases import released, since


def test_a_listed_pipeline_gives_its_autoencoder() -> None:
    """A listed pipeline's own autoencoder decodes, from the diffusion model's space."""
    vae = tiny.wan21()
    pipe = bare("WanPipeline", vae=vae)
    assert is_pipeline(pipe)
    assert of_pipeline(pipe, {})[0] is vae


def _with_frames() -> set[str]:
    """Class names of all pipelines whose modules speak of videos."""
    names = set[str]()
    for file in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        source = file.read_text()
        if "video_processor" in source or "frames=" in source:
            names.update(re.findall(r"^class (\w+Pipeline)\(", source, re.MULTILINE))
    return names


def test_every_video_pipeline_is_listed_or_refused_with_a_reason() -> None:
    """No video pipeline of diffusers is simply unknown, and none that is listed is made up."""
    names = _with_frames() - {"HunyuanImageRefinerPipeline", "JoyImageEditPipeline"}  # pictures
    assert names <= {*ROWS, *REFUSED}
    assert not ROWS.keys() & REFUSED.keys()
    since("0.42", "the table has what came later")
    for name in (*ROWS, *REFUSED):
        assert hasattr(diffusers, name), name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_streamed_is_refused_with_its_reason(name: str) -> None:
    """A pipeline that does what cannot be streamed raises, saying what it does and the way out."""
    pipe = object.__new__(released(name))
    with pytest.raises(UsageError, match=rf"got a {name}: .*(stream|let it decode)"):
        of_pipeline(pipe, {})


def test_an_unknown_pipeline_is_refused_with_the_way_out() -> None:
    """A pipeline that nobody read raises, naming some that are known and what to do instead."""
    pipe = object.__new__(diffusers.StableAudioPipeline)
    assert is_pipeline(pipe)
    with pytest.raises(
        UnknownSourceError,
        match=r"Stable\w*Pipeline.*got StableAudioPipeline.*pipe\.vae.*normalized",
    ):
        of_pipeline(pipe, {})


def test_a_pipeline_made_of_blocks_is_refused_with_the_way_out() -> None:
    """What a modular pipeline's latents are depends on its blocks: it raises, and says so."""
    pipe = object.__new__(diffusers.WanModularPipeline)
    assert is_pipeline(pipe)
    with pytest.raises(UnknownSourceError, match=r"WanModularPipeline.*blocks.*pipe\.vae"):
        of_pipeline(pipe, {})


def test_a_derived_pipeline_is_not_taken_for_its_base() -> None:
    """A class of the user's own may treat latents otherwise, even under the same name."""
    derived = type("WanPipeline", (diffusers.WanPipeline,), {"__module__": "users_own"})
    pipe = object.__new__(derived)
    assert is_pipeline(pipe)
    with pytest.raises(UnknownSourceError, match="got WanPipeline"):
        of_pipeline(pipe, {})


def test_a_pipeline_without_autoencoder_says_so() -> None:
    """A pipeline loaded with ``vae=None`` raises before anything else is tried."""
    with pytest.raises(UsageError, match="vae=None"):
        of_pipeline(bare("WanPipeline"), {})


def test_arguments_that_the_call_does_not_take_are_refused() -> None:
    """A misspelt argument raises; one that decoding does not depend on does no harm."""
    pipe = bare("WanPipeline", vae=tiny.wan21())
    of_pipeline(pipe, {"height": 480, "guidance_scale": 3.0})
    with pytest.raises(UsageError, match=r"WanPipeline takes, got heigth"):
        of_pipeline(pipe, {"heigth": 480})


@pytest.mark.parametrize("other", [None, "hub/id", object(), type])
def test_other_things_are_no_pipelines(other: object) -> None:
    """What is not diffusers' is not taken for a pipeline."""
    assert not is_pipeline(other)
    assert not is_pipeline(tiny.wan21())


def test_asking_does_not_import_diffusers() -> None:
    """Reading latents does not pay for importing diffusers."""
    code = (
        "import sys; from streamvae.latents import is_pipeline; is_pipeline(object());"
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
