"""Rows of Cosmos pipelines: schedulers' factors, and frames that pass a guardrail as a whole.

Formulas and the order of casts are those of the pipelines' own code in diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from .._errors import UsageError
from .._recipe import Preparation, Prepare
from ._by_channel import BY_CHANNEL, statistics
from ._row import Constant, Decoding, Part, argument, constant, part


def by_index(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`CosmosTextToWorldPipeline`: each latent index has statistics of its own."""
    vae = _unguarded(pipe)
    sigma = _sigma(pipe)
    if vae.config["latents_mean"] is None:
        return (
            vae,
            {},
            Preparation(
                lambda latents, _, dtype: (latents / sigma).to(dtype), finish=_as_for_guardrail
            ),
        )
    shape = (1, vae.config["latent_channels"], -1, 1, 1)
    mean, std = (constant(vae.config[key], shape) for key in ("latents_mean", "latents_std"))

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        place = latents.device, latents.dtype
        here = slice(start, start + latents.shape[2])
        deviations, means = std(*place)[:, :, here], mean(*place)[:, :, here]
        return (latents * deviations / sigma + means).to(dtype)

    return vae, {}, Preparation(prepare, finish=_as_for_guardrail)


def multiplied(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`Cosmos2VideoToWorldPipeline`."""
    vae = _unguarded(pipe)
    mean, std = statistics(vae)
    sigma = _sigma(pipe)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        place = latents.device, latents.dtype
        return (latents * std(*place) / sigma + mean(*place)).to(dtype)

    return vae, {}, Preparation(prepare, finish=_as_for_guardrail)


def picture(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`Cosmos2TextToImagePipeline`: (B, C, h, w), the only latent of a video of one frame."""
    vae = _unguarded(pipe)
    mean, std = statistics(vae)
    sigma = _sigma(pipe)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        place = latents.device, latents.dtype
        inverse = 1.0 / std(*place)
        return (latents / inverse / sigma + mean(*place)).to(dtype)

    return (
        vae,
        {},
        Preparation(prepare, lambda latents: latents.unsqueeze(2), finish=_as_for_guardrail),
    )


def predicted(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`Cosmos2_5_PredictBasePipeline`: statistics of its own, in the dtype of the latents."""
    vae = _unguarded(pipe)
    frames = call.get("num_frames")
    if isinstance(frames, int) and (frames - 1) % 4:
        raise UsageError(
            f"expected num_frames of 4 n + 1, got {frames}: for other numbers the pipeline repeats "
            "each frame 4 times; pass call without num_frames for the frames as they are decoded"
        )
    prepare = _divided_by_reciprocal(
        constant(cast("Any", pipe).latents_mean, BY_CHANNEL),
        constant(cast("Any", pipe).latents_std, BY_CHANNEL),
    )
    return (
        vae,
        {},
        Preparation(
            lambda latents, start, dtype: prepare(latents, start, latents.dtype).to(dtype),
            finish=_as_for_guardrail,
        ),
    )


def omni(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`Cosmos3OmniPipeline`: statistics of its own; pixels in the dtype of the latents."""
    checked = argument(pipe, call, "enable_safety_check")
    vae = _unguarded(pipe) if checked else part(pipe)
    normal = _divided_by_reciprocal(
        constant(cast("Any", pipe)._vae_latents_mean, BY_CHANNEL),
        constant(cast("Any", pipe)._vae_latents_inv_std, BY_CHANNEL),
    )
    came: list[torch.dtype] = []

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        came[:] = [latents.dtype]
        return normal(latents, start, dtype)

    return vae, {}, Preparation(prepare, finish=lambda frames: frames.to(came[0]))


def _divided_by_reciprocal(mean: Constant, inverse: Constant) -> Prepare:
    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        place = latents.device, dtype
        return latents.to(dtype) / inverse(*place) + mean(*place)

    return prepare


def _as_for_guardrail(frames: torch.Tensor) -> torch.Tensor:
    """Frames as the pipeline hands them to its guardrail, which rounds down, and takes them back.

    That one gets whole numbers of 255, and what it does not object to is the pipeline's output.
    """
    pixels = (frames * 0.5 + 0.5).clamp(0, 1).float()
    return (pixels * 255).to(torch.uint8).float() / 255.0 * 2 - 1


def _unguarded(pipe: object) -> Part:
    """The autoencoder of a pipeline whose frames do not go through a guardrail.

    Raises:
        UsageError: They do.
    """
    if getattr(pipe, "safety_checker", None) is not None:
        raise UsageError(
            f"expected a {type(pipe).__name__} without safety_checker, got one whose frames are "
            "looked at, and may be changed, by its guardrail when the video is finished, which "
            "cannot be streamed: let the pipeline decode, or set pipe.safety_checker to None, "
            "collect the frames and give them to its check_video_safety yourself"
        )
    return part(pipe)


def _sigma(pipe: object) -> float:
    return cast("float", part(pipe, "scheduler").config["sigma_data"])
