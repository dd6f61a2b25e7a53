"""The table of diffusers pipelines: what decodes their latents, and what is done around that."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from .._errors import UnknownSourceError, UsageError
from . import _image_pipelines, _video_pipelines
from ._row import Decoding, Row, check_call

#: By the name of the pipeline's class.
ROWS: Mapping[str, Row] = {**_image_pipelines.ROWS, **_video_pipelines.ROWS}

#: Why a known pipeline has no row, and what to do.
REFUSED: Mapping[str, str] = {**_video_pipelines.REFUSED}

_BASES = ("DiffusionPipeline", "ModularPipeline")


def is_pipeline(candidate: object) -> bool:
    """Whether ``candidate`` is a diffusers pipeline, listed or not. Does not import diffusers."""
    return any(base.__name__ in _BASES and _of_diffusers(base) for base in type(candidate).__mro__)


def of_pipeline(pipe: object, call: Mapping[str, object]) -> Decoding:
    """Give what decodes the latents of a diffusers pipeline, and how.

    Args:
        pipe: A pipeline whose latents are those of ``output_type="latent"``.
        call: Keyword arguments that its call was given, as far as decoding depends on them; the
            others do no harm.

    Returns:
        Its autoencoder, the arguments for that one's codec, and what is done around it; made for
        one stream.

    Raises:
        UnknownSourceError: What this pipeline does to its latents is not known here; also for a
            class derived from a listed one, which may do otherwise.
        UsageError: What it does cannot be streamed, an argument is missing in ``call`` or none
            that the pipeline takes, or the pipeline was loaded without its autoencoder.
    """
    name = type(pipe).__name__
    known = _of_diffusers(type(pipe))
    if known and name in REFUSED:
        raise UsageError(f"expected a pipeline that can be streamed, got a {name}: {REFUSED[name]}")
    if not known or name not in ROWS:
        raise UnknownSourceError(
            f"expected one of the {len(ROWS)} pipelines whose latents are known here "
            f"({_nearest(name)}, ...), got {name}. {_way_out(pipe)}"
        )
    check_call(pipe, call)
    return ROWS[name](pipe, call)


def _way_out(pipe: object) -> str:
    """What to do with a pipeline that is not known."""
    instead = (
        "and pass pipe.vae instead (with normalized=True if all it does is to apply latents_mean "
        "and latents_std)"
    )
    if any(base.__name__ == _BASES[1] for base in type(pipe).__mro__):
        return (
            "What its latents are depends on its blocks: take what goes into its decoding block, "
            f"do what that does to it, {instead}"
        )
    return f'Read what it does to its latents when output_type is not "latent", do that, {instead}'


def _nearest(name: str) -> str:
    return ", ".join(difflib.get_close_matches(name, ROWS, n=3, cutoff=0.0))


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"
