"""Rows of pipelines whose latents are normalised by the statistics of each channel (Wan's VAE).

Formulas and the order of casts are those of the pipelines' own code in diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from .._errors import UsageError
from .._recipe import Preparation, Prepare
from ._row import Constant, Decoding, Part, View, argument, constant, needed, once, part

#: Statistics of each channel, beside latents (B, C, T, h, w).
BY_CHANNEL = (1, -1, 1, 1, 1)


def divided(mean: Constant, std: Constant) -> Prepare:
    """Cast, then divide by the reciprocal of the rounded deviation, as `WanPipeline` does."""

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        latents = latents.to(dtype)
        # Not latents * std: that rounds otherwise.
        inverse = 1.0 / std(latents.device, dtype)
        return latents / inverse + mean(latents.device, dtype)

    return prepare


def statistics(vae: Part) -> tuple[Constant, Constant]:
    """Mean and deviation of each channel, of the config; (1, C, 1, 1, 1).

    Raises:
        UsageError: The config has none.
    """
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        raise UsageError(
            "expected latents_mean and latents_std in the config of the autoencoder, a "
            f"{type(vae).__name__}, got None"
        )
    return constant(mean, BY_CHANNEL), constant(std, BY_CHANNEL)


def buffers(vae: Part) -> tuple[Constant, Constant]:
    """As `statistics`, of an autoencoder that has them as buffers (LTX and LTX-2)."""
    return constant(vae.latents_mean, BY_CHANNEL), constant(vae.latents_std, BY_CHANNEL)


def normalised(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`WanPipeline`, and all that end as it does."""
    vae = part(pipe)
    return vae, {}, Preparation(divided(*statistics(vae)))


def multiplied(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`MotifVideoPipeline`: cast, then multiply by the deviation."""
    vae = part(pipe)
    mean, std = statistics(vae)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        latents = latents.to(dtype)
        return latents * std(latents.device, dtype) + mean(latents.device, dtype)

    return vae, {}, Preparation(prepare)


def after_references(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`WanVACEPipeline`: a latent for each reference image comes first and is not decoded."""
    vae = part(pipe)
    count = _references(argument(pipe, call, "reference_images"))
    view: View | None = once(lambda latents: latents[:, :, count:], pipe) if count else None
    return vae, {}, Preparation(divided(*statistics(vae)), view)


def before_last_image(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`SkyReelsV2DiffusionForcingImageToVideoPipeline`: a last image's latent is not decoded."""
    vae = part(pipe)
    view: View | None = None
    if argument(pipe, call, "last_image") is not None:
        history, base, frames = (
            cast("int | None", argument(pipe, call, name))
            for name in ("overlap_history", "base_num_frames", "num_frames")
        )
        if history is not None and base is not None and (frames or 0) > base:
            # It cuts as many latents as its last section took over, rounded to whole blocks.
            raise UsageError(
                f"expected a video of one section (num_frames of at most {base}) where last_image "
                f"is given, got num_frames={frames}; cut the latents of the last image off "
                "yourself and pass pipe.vae with normalized=True"
            )
        view = once(lambda latents: latents[:, :, :-1], pipe)
    return vae, {}, Preparation(divided(*statistics(vae)), view)


def without_reasoning(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`ChronoEditPipeline`, where it decodes its latents in one go."""
    vae = part(pipe)
    view: View | None = None
    if argument(pipe, call, "enable_temporal_reasoning"):
        view = _of_one_decode
    return vae, {}, Preparation(divided(*statistics(vae)), view)


def in_buckets(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`SanaVideoPipeline`: over Wan's or LTX-2's autoencoder, resized to what was asked for.

    The scaling factor of LTX-2's is passed over, as the pipeline does.
    """
    vae = part(pipe)
    # LTX-2's statistics are buffers, which are cast along with the weights.
    ltx = type(vae).__name__ == "AutoencoderKLLTX2Video"
    mean, std = buffers(vae) if ltx else statistics(vae)
    prepare = divided(mean, std)
    if not argument(pipe, call, "use_resolution_binning"):
        return vae, {}, Preparation(prepare)
    height, width = needed(pipe, call, "height", "width")
    resize = cast("Any", pipe).video_processor.resize_and_crop_tensor
    return (
        vae,
        {},
        Preparation(
            prepare, finish=lambda frames: resize(frames, width, height), picture=(height, width)
        ),
    )


def _references(images: object) -> int:
    """Reference images of the first video, counted as the pipeline's preprocessing counts them."""
    if isinstance(images, (list, tuple)):
        first = images[0] if images else None
        listed = first if isinstance(first, (list, tuple)) else images
        return sum(image is not None for image in listed)
    return 0 if images is None else 1


def _of_one_decode(latents: torch.Tensor) -> torch.Tensor:
    if latents.ndim == 5 and latents.shape[2] > 2:
        raise UsageError(
            "expected latents of a reasoning that was ended (num_temporal_reasoning_steps below "
            f"num_inference_steps), got {latents.shape[2]} latents: the pipeline decodes them twice"
            ", and joins the videos. Stream latents[:, :, :-1] and latents[:, :, [0, -1]] with "
            "pipe.vae and normalized=True, and leave the second one's first frame out"
        )
    return latents
