"""The table of diffusers pipelines."""

import inspect
import subprocess
import sys

import diffusers
import pytest

from streamvae._errors import UnknownSourceError, UsageError
from streamvae.latents import is_pipeline, of_pipeline
from streamvae.latents._pipelines import NORMALIZED


def _pipeline(cls, vae):
    """A pipeline with every required component absent but the scheduler and the autoencoder."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    required = [each.name for each in parameters if each.default is inspect.Parameter.empty]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return cls(**{**dict.fromkeys(required), "vae": vae, "scheduler": scheduler})


def _vae():
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@pytest.mark.parametrize("name", NORMALIZED)
def test_a_listed_pipeline_gives_its_autoencoder(name: str) -> None:
    """A listed pipeline's own autoencoder decodes, from the diffusion model's space."""
    vae = _vae()
    pipe = _pipeline(getattr(diffusers, name), vae)
    assert is_pipeline(pipe)
    assert of_pipeline(pipe, {})[0] is vae


@pytest.mark.parametrize("name", NORMALIZED)
def test_listed_pipelines_do_what_the_table_says(name: str) -> None:
    """The source of each listed pipeline goes from latents to pixels by the one formula."""
    source = inspect.getsource(getattr(diffusers, name).__call__)
    after = source.rpartition('if not output_type == "latent":')[2]
    decoding, _, given = after.partition("else:\n            video = latents\n")
    assert given
    assert "latents = latents / latents_std + latents_mean\n" in decoding
    assert "self.vae.decode(latents, return_dict=False)[0]" in decoding
    assert "latents[:" not in decoding


@pytest.mark.parametrize("name", ["WanVACEPipeline", "WanAnimatePipeline"])
def test_other_pipelines_are_refused_with_the_way_out(name: str) -> None:
    """A pipeline that is not listed raises, naming those that are and what to do instead."""
    pipe = object.__new__(getattr(diffusers, name))
    assert is_pipeline(pipe)
    with pytest.raises(
        UnknownSourceError, match=rf"WanPipeline.*got {name}.*pipe\.vae.*normalized"
    ):
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
        of_pipeline(_pipeline(diffusers.WanPipeline, None), {})


@pytest.mark.parametrize("other", [None, "hub/id", object(), type])
def test_other_things_are_no_pipelines(other: object) -> None:
    """What is not diffusers' is not taken for a pipeline."""
    assert not is_pipeline(other)
    assert not is_pipeline(_vae())


def test_asking_does_not_import_diffusers() -> None:
    """Reading latents does not pay for importing diffusers."""
    code = (
        "import sys; from streamvae.latents import is_pipeline; is_pipeline(object());"
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
