"""Rows of pipelines whose latents are scaled by one factor.

Formulas and the order of casts are those of the pipelines' own code in diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from .._errors import UsageError
from .._recipe import Preparation, Prepare
from ._by_channel import statistics
from ._row import Decoding, View, argument, needed, once, part


def scaled(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`HunyuanVideoPipeline`, and all that end as it does: cast, then divide by the factor."""
    vae = part(pipe)
    return vae, {}, Preparation(_divided(vae.config["scaling_factor"]))


def scaled_whole(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`HunyuanVideoImageToVideoPipeline`, unless it has dropped a latent that it would decode."""
    kind = part(pipe, "transformer").config["image_condition_type"]
    if kind == "latent_concat":
        raise UsageError(
            "expected a transformer with another image_condition_type than 'latent_concat', with "
            "which the pipeline decodes one latent more than output_type='latent' gives; take the "
            "latents from callback_on_step_end, stream them with pipe.vae (divided by its "
            "scaling_factor), and leave the first 4 frames out"
        )
    vae = part(pipe)
    return vae, {}, Preparation(_divided(cast("Any", pipe).vae_scaling_factor))


def scaled_channels_last(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`Kandinsky5T2VPipeline`: (B, T, h, w, C)."""
    vae = part(pipe)
    prepare = _divided(vae.config["scaling_factor"])
    return vae, {}, Preparation(prepare, lambda latents: latents.permute(0, 4, 1, 2, 3))


def by_reciprocal(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`EasyAnimatePipeline`: multiply by the factor's reciprocal."""
    vae = part(pipe)
    return vae, {}, Preparation(_multiplied(1 / vae.config["scaling_factor"]))


def frames_first(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`CogVideoXVideoToVideoPipeline`: (B, T, C, h, w)."""
    vae = part(pipe)
    prepare = _multiplied(1 / cast("Any", pipe).vae_scaling_factor_image)
    return vae, {}, Preparation(prepare, _time_second)


def frames_first_padded(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`CogVideoXPipeline`: as above, and CogVideoX 1.5 fills up patches of time at the front."""
    vae = part(pipe)
    patch: int | None = part(pipe, "transformer").config["patch_size_t"]
    view: View = _time_second
    if patch is not None:
        frames = _frames(pipe, call)
        length = (frames - 1) // cast("Any", pipe).vae_scale_factor_temporal + 1
        padding = -length % patch
        view = once(lambda latents: _time_second(latents)[:, :, padding:], pipe)
    prepare = _multiplied(1 / cast("Any", pipe).vae_scaling_factor_image)
    return vae, {}, Preparation(prepare, view)


def _frames(pipe: object, call: Mapping[str, object]) -> int:
    """The number of frames that was asked for; None, given as such, is the pipeline's own."""
    if "num_frames" in call and call["num_frames"] is None:
        return cast("int", part(pipe, "transformer").config["sample_frames"])
    return needed(pipe, call, "num_frames")[0]


def in_windows(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`AllegroPipeline`: cast, multiply; its latents make 4 frames each, and no frame is cut."""
    vae = part(pipe)
    frames = cast("int | None", argument(pipe, call, "num_frames"))
    if frames is not None and frames % 4:
        raise UsageError(
            f"expected num_frames that 4 divides, got {frames}: the pipeline cuts the last frames "
            "off; pass call without num_frames and cut them yourself"
        )
    factor: float = 1 / vae.config["scaling_factor"]

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        return factor * latents.to(dtype)

    return vae, {}, Preparation(prepare)


def by_channel_and_factor(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`MochiPipeline`: statistics where the config has them, in the dtype of the latents."""
    vae = part(pipe)
    factor: float = vae.config["scaling_factor"]
    if vae.config.get("latents_mean") is None or vae.config.get("latents_std") is None:
        return vae, {}, Preparation(lambda latents, _, dtype: (latents / factor).to(dtype))
    mean, std = statistics(vae)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        place = latents.device, latents.dtype
        return (latents * std(*place) / factor + mean(*place)).to(dtype)

    return vae, {}, Preparation(prepare)


def _divided(factor: float) -> Prepare:
    return lambda latents, _, dtype: latents.to(dtype) / factor


def _multiplied(factor: float) -> Prepare:
    # These pipelines do not cast: what they give has the dtype of the weights already.
    return lambda latents, _, dtype: (factor * latents).to(dtype)


def _time_second(latents: torch.Tensor) -> torch.Tensor:
    return latents.permute(0, 2, 1, 3, 4)
