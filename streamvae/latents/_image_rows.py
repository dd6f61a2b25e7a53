"""Rows of image pipelines: pictures, pictures that are resized, and pictures as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from .._errors import LatentsError
from .._recipe import Preparation, Prepare
from . import _image_space as space
from . import _picture_ends as ends
from . import _picture_sizes as sizes
from ._by_channel import divided, statistics
from ._row import Decoding, Part, Row, part
from ._tokens import Tokens
from ._upcast import upcast


def pictures(
    formula: space.Formula,
    end: ends.End | None = None,
    *,
    in_float32: bool = False,
) -> Row:
    """A row of a pipeline whose latents are pictures, (B, C, h, w).

    Args:
        formula: Takes them to the decoder's space.
        end: What is done to decoded pictures.
        in_float32: Whether a float16 autoencoder that asks for it (``force_upcast``) is upcast.
    """

    def row(pipe: object, call: Mapping[str, object]) -> Decoding:
        vae = part(pipe)
        ends.refuse_overlay(pipe, call)
        vae = upcast(vae) if in_float32 else vae
        return vae, {}, Preparation(formula(vae), finish=None if end is None else end(pipe))

    return row


def binned(formula: space.Formula) -> Row:
    """A row of a pipeline whose pictures are of a size of its own, and resized to that asked for.

    Args:
        formula: Takes latents (B, C, h, w) to the decoder's space.
    """

    def row(pipe: object, call: Mapping[str, object]) -> Decoding:
        vae = part(pipe)
        resized = ends.resized(pipe, call)
        if resized is None:
            return vae, {}, Preparation(formula(vae))
        finish, size = resized
        return vae, {}, Preparation(formula(vae), ends.binned(pipe, call, size), finish, size)

    return row


def tokens(
    formula: space.Formula,
    size: sizes.Sizing = sizes.asked,
    *,
    video: bool = False,
    whole: bool = False,
) -> Row:
    """A row of a pipeline whose latents are tokens, (B, S, C): patches of a picture, row by row.

    Args:
        formula: Takes (B, C, h, w), or (B, C, 1, h, w), to the decoder's space.
        size: Finds the picture's height and width.
        video: Whether the autoencoder is one of videos, here of one frame.
        whole: Whether the pipeline's ``vae_scale_factor`` is of patches, not of latents.
    """

    def row(pipe: object, call: Mapping[str, object]) -> Decoding:
        vae = part(pipe)
        ends.refuse_overlay(pipe, call)
        height, width = size(pipe, call)
        patch = _patch(pipe)
        token = cast("Any", pipe).vae_scale_factor * (1 if whole else patch)
        cut = Tokens(height // token, width // token, patch, video=video)
        return vae, {}, cut.around(formula(vae))

    return row


def of_one_frame(vae: Part) -> Prepare:
    """`QwenImagePipeline`: as `WanPipeline`."""
    return divided(*statistics(vae))


def patched(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`ErnieImagePipeline`: pictures whose channels are those of patches of 2x2."""
    vae = part(pipe)
    formula = space.batch_norm_fixed(vae)

    def view(latents: torch.Tensor) -> torch.Tensor:
        if latents.ndim != 4 or latents.shape[1] % 4:
            raise LatentsError(
                "expected latents (B, C, h, w) with C a multiple of 4, as the pipeline gives "
                f"them, got shape {tuple(latents.shape)}"
            )
        batch, channels, height, width = latents.shape
        # Only relabels the memory, as tokens do: whoever prepares them puts them in order.
        return latents.view(batch, channels // 4, 2 * height, 2 * width)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        batch, channels, height, width = latents.shape
        patches = latents.reshape(batch, channels, 2, 2, height // 2, width // 2)
        ordered = patches.permute(0, 1, 4, 2, 5, 3).reshape(latents.shape)
        return formula(ordered, start, dtype)

    return vae, {}, Preparation(prepare, view)


def channels_last(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`Kandinsky5T2IPipeline`: pictures as (B, 1, h, w, C)."""
    vae = part(pipe)
    view = lambda latents: latents.permute(0, 4, 1, 2, 3).squeeze(2)  # noqa: E731
    return vae, {}, Preparation(space.scaled(vae), view)


def _patch(pipe: object) -> int:
    if type(pipe).__name__ == "NucleusMoEImagePipeline":
        return int(part(pipe, "transformer").config["patch_size"])
    return int(getattr(pipe, "patch_size", 2))
