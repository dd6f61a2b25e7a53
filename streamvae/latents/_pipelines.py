"""The table of diffusers pipelines: what has to be done to their latents before ``vae.decode``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import torch

from .._errors import UnknownSourceError, UsageError
from .._recipe import Preparation, Prepare

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


def of_pipeline(
    pipe: object, call: Mapping[str, object]
) -> tuple[object, Mapping[str, object], Preparation]:
    """Give what decodes the latents of a diffusers pipeline, and how.

    Args:
        pipe: A pipeline whose latents are those of ``output_type="latent"``.
        call: Keyword arguments that its call was given, as far as decoding depends on them.

    Returns:
        Its autoencoder, the arguments for that one's codec, and what is done around it.

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
    return vae, call, Preparation(_wan(vae))


def _wan(vae: object) -> Prepare:
    config = cast("Any", vae).config

    # A copy to the device would stop the launch thread at every chunk.
    @functools.cache
    def constant(key: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(config[key]).view(1, -1, 1, 1, 1).to(device, dtype)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        latents = latents.to(dtype)
        std = constant("latents_std", latents.device, dtype)
        return latents / (1.0 / std) + constant("latents_mean", latents.device, dtype)

    return prepare


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"
