"""Rows of pipelines whose autoencoder makes single pictures, some frames of a clip at a time.

Formulas and the order of casts are those of the pipelines' own code in diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from .._errors import LatentsError
from .._recipe import Preparation, Prepare
from ._row import Decoding, Part, View, argument, part
from ._upcast import upcast

#: Frames decoded together for pipelines that decode all at once; others are as good, to rounding.
_TOGETHER = 16


def frames_second(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`AnimateDiffPipeline`: (B, C, T, h, w), ``decode_chunk_size`` frames at a time."""
    together = cast("int | None", argument(pipe, call, "decode_chunk_size"))
    return _decoding(part(pipe), _frames_second, together or _TOGETHER)


def frames_second_at_once(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`AnimateDiffSparseControlNetPipeline`: all frames at a time."""
    return _decoding(part(pipe), _frames_second, _TOGETHER)


def frames_second_upcast(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`AnimateDiffSDXLPipeline`: all frames at a time, in float32 if float16 would overflow."""
    return _decoding(upcast(part(pipe)), _frames_second, _TOGETHER)


def frames_first(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`StableVideoDiffusionPipeline`: (B, T, C, h, w); frames decoded together are one clip."""
    together = cast("int | None", argument(pipe, call, "decode_chunk_size"))
    vae = part(pipe)
    arguments = {} if together is None else {"decode_chunk_size": together}
    return vae, arguments, Preparation(_scaled(vae), _frames_first, _in_float32)


def _decoding(vae: Part, view: View, together: int) -> Decoding:
    return vae, {"decode_chunk_size": together}, Preparation(_scaled(vae), view, _in_float32)


def _scaled(vae: Part) -> Prepare:
    factor: float = 1 / vae.config["scaling_factor"]

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        # Frames lie side by side before they are decoded, as they do in the pipeline.
        return (factor * latents).to(dtype).contiguous()

    return prepare


def _in_float32(frames: torch.Tensor) -> torch.Tensor:
    return frames.float()


def _frames_second(latents: torch.Tensor) -> torch.Tensor:
    return _only(latents, "(1, C, T, h, w)").transpose(0, 1)


def _frames_first(latents: torch.Tensor) -> torch.Tensor:
    return _only(latents, "(1, T, C, h, w)")


def _only(latents: torch.Tensor, layout: str) -> torch.Tensor:
    if latents.ndim != 5 or latents.shape[0] != 1:
        raise LatentsError(
            f"expected latents of one clip, {layout}, got shape {tuple(latents.shape)}; stream "
            "every clip of a batch on its own"
        )
    return latents[0]
