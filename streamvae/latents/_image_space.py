"""From the diffusion model's space to the decoder's, for pictures: the pipelines' formulas.

Each in the order of operations and casts of diffusers 0.42.1, since another order rounds otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch

from .._errors import LatentsError, UsageError
from .._recipe import Prepare, cast_to_weights
from ._row import Constant, Part, constant

#: Makes what takes an autoencoder's latents, (B, C, h, w) or (B, C, 1, h, w), to its space.
Formula = Callable[[Part], Prepare]


def as_it_is(vae: Part) -> Prepare:  # noqa: ARG001
    """`Flux2KleinPipeline`: its latents are in the decoder's space."""
    return cast_to_weights


def scaled(vae: Part) -> Prepare:
    """`StableDiffusionPipeline`: cast, then divide; a shift in the config is passed over."""
    factor = _factor(vae)
    return lambda latents, _, dtype: latents.to(dtype) / factor


def shifted(vae: Part) -> Prepare:
    """`StableDiffusion3Pipeline` and `FluxPipeline`: cast, divide, add."""
    factor, shift = _factor(vae), _shift(vae)
    return lambda latents, _, dtype: latents.to(dtype) / factor + shift


def shifted_if_any(vae: Part) -> Prepare:
    """`DreamLitePipeline`: as `shifted`; no shift in the config is a shift of 0."""
    factor, shift = _factor(vae), vae.config.get("shift_factor") or 0.0
    return lambda latents, _, dtype: latents.to(dtype) / factor + shift


def shifted_then_cast(vae: Part) -> Prepare:
    """`LongCatImagePipeline`: as `shifted`, in the latents' own dtype, and cast at the end."""
    factor, shift = _factor(vae), _shift(vae)
    return lambda latents, _, dtype: (latents / factor + shift).to(dtype)


def shifted_in_float32(vae: Part) -> Prepare:
    """`BriaPipeline`: as `shifted`, in float32, and cast at the end."""
    factor, shift = _factor(vae), _shift(vae)
    return lambda latents, _, dtype: (latents.to(torch.float32) / factor + shift).to(dtype)


def standardised(vae: Part) -> Prepare:
    """`StableDiffusionXLPipeline`: by statistics of each channel where the config has them."""
    factor = _factor(vae)
    if vae.config.get("latents_mean") is None or vae.config.get("latents_std") is None:
        return scaled(vae)
    mean, std = _statistics(vae, (1, -1, 1, 1))

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        latents = latents.to(dtype)
        place = (latents.device, dtype)
        return latents * std(*place) / factor + mean(*place)

    return prepare


def multiplied(vae: Part) -> Prepare:
    """`GlmImagePipeline`: cast, multiply by each channel's deviation, add its mean."""
    mean, std = _statistics(vae, (1, -1, 1, 1))

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        latents = latents.to(dtype)
        return latents * std(latents.device, dtype) + mean(latents.device, dtype)

    return prepare


def batch_norm(vae: Part) -> Prepare:
    """`Flux2Pipeline`: by the autoencoder's batch norm, over channels of patches of 2x2."""
    mean, std = _batch_norm(vae, vae.config["batch_norm_eps"])
    return _by_patch(lambda patches, *place: patches * std(*place) + mean(*place))


def batch_norm_fixed(vae: Part) -> Prepare:
    """`ErnieImagePipeline`: as `batch_norm`, whatever epsilon the config has."""
    mean, std = _batch_norm(vae, 1e-5)
    return _by_patch(lambda patches, *place: patches * std(*place) + mean(*place))


def batch_norm_divided(vae: Part) -> Prepare:
    """`BriaFibo2Pipeline`: as `batch_norm`, by the reciprocal, and cast at the end."""
    mean, inverse = _batch_norm(vae, vae.config["batch_norm_eps"], inverse=True)
    by_patch = _by_patch(lambda patches, *place: patches / inverse(*place) + mean(*place))

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        return by_patch(latents, start, latents.dtype).to(dtype)

    return prepare


def _by_patch(
    formula: Callable[[torch.Tensor, torch.device, torch.dtype], torch.Tensor],
) -> Prepare:
    """Apply a formula to (B, C, h/2, 2, w/2, 2), where a patch's statistics are broadcast."""

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        batch, channels, height, width = latents.shape
        if height % 2 or width % 2:
            raise LatentsError(
                "expected latents in patches of 2x2, of which the autoencoder has statistics, got "
                f"height {height} and width {width}"
            )
        latents = latents.to(dtype)
        patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        return formula(patches, latents.device, dtype).reshape(latents.shape)

    return prepare


def _batch_norm(vae: Part, epsilon: float, *, inverse: bool = False) -> tuple[Constant, Constant]:
    """Mean and deviation (or one over it), as (1, C, 1, 2, 1, 2).

    Made when they are first asked for, in the stream that uses them, from weights of their own
    dtype, and only then cast.
    """
    norm = cast("Any", vae).bn

    @functools.cache
    def mean(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        value: torch.Tensor = norm.running_mean
        return value.to(device, dtype).view(1, -1, 1, 2, 1, 2)

    @functools.cache
    def deviation(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        value = torch.sqrt(norm.running_var + epsilon)
        return (1 / value if inverse else value).to(device, dtype).view(1, -1, 1, 2, 1, 2)

    return mean, deviation


def _statistics(vae: Part, shape: tuple[int, ...]) -> tuple[Constant, Constant]:
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        raise UsageError(
            f"expected latents_mean and latents_std in the config of {type(vae).__name__}, got None"
        )
    return constant(mean, shape), constant(std, shape)


def _factor(vae: Part) -> float:
    return _number(vae, "scaling_factor")


def _shift(vae: Part) -> float:
    return _number(vae, "shift_factor")


def _number(vae: Part, name: str) -> float:
    value: float | None = vae.config.get(name)
    if value is None:
        raise UsageError(
            f"expected {name} in the config of {type(vae).__name__}, which the pipeline decodes "
            "with, got None"
        )
    return value
