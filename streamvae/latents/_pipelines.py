"""The table of diffusers pipelines: what has to be done to their latents before ``vae.decode``."""

from __future__ import annotations

from .._errors import UnknownSourceError, UsageError

#: Pipelines whose ``output_type="latent"`` gives just what they go on with: cast to the dtype of
#: ``pipe.vae``, taken to its space by the ``latents_mean`` and ``latents_std`` of its config, and
#: decoded. Read in diffusers 0.42.1. Not here though they use the same autoencoder:
#: ``WanVACEPipeline`` (its latents begin with reference frames, which it cuts off only when it
#: decodes) and ``WanAnimatePipeline`` (decodes segment by segment inside its loop).
NORMALIZED = ("WanImageToVideoPipeline", "WanPipeline", "WanVideoToVideoPipeline")

_BASES = ("DiffusionPipeline", "ModularPipeline")


def is_pipeline(candidate: object) -> bool:
    """Whether ``candidate`` is a diffusers pipeline, listed or not. Does not import diffusers."""
    return any(base.__name__ in _BASES and _of_diffusers(base) for base in type(candidate).__mro__)


def autoencoder_of(pipe: object) -> tuple[object, bool]:
    """Give what decodes the latents of a diffusers pipeline.

    Args:
        pipe: A pipeline whose latents are those of ``output_type="latent"``.

    Returns:
        Its autoencoder, and whether the latents are in the diffusion model's space
        (``normalized=True``).

    Raises:
        UnknownSourceError: What this pipeline does to its latents is not known here; also for a
            class derived from a listed one, which may do otherwise.
        UsageError: It was loaded without its autoencoder.
    """
    name = type(pipe).__name__
    if name not in NORMALIZED or not _of_diffusers(type(pipe)):
        raise UnknownSourceError(
            f"expected one of the pipelines {', '.join(NORMALIZED)}, got {name}. Read what it does "
            'to its latents when output_type is not "latent", do that, and pass pipe.vae instead '
            "(with normalized=True if all it does is to apply latents_mean and latents_std)"
        )
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise UsageError(f"expected a {name} with its autoencoder, got one with vae=None")
    return vae, True


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"
