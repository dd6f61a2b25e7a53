"""Rows of LTX and LTX-2: packed tokens, and noise that is mixed in before decoding.

Formulas and the order of casts are those of the pipelines' own code in diffusers 0.42.1.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from .._errors import LatentsError, UsageError
from .._recipe import Preparation
from ._by_channel import buffers
from ._row import Decoding, Part, View, argument, needed, once, part


def packed(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`LTXPipeline`: (B, T h w, C), one token for each latent pixel."""
    names = ("transformer_temporal_patch_size", "transformer_spatial_patch_size")
    patches = [getattr(pipe, name) for name in names]
    if patches != [1, 1]:
        raise UsageError(
            f"expected a transformer with patches of 1 latent, got {patches} (time, space): unpack "
            "the latents yourself and pass pipe.vae with normalized=True"
        )
    height, width = needed(pipe, call, "height", "width")
    scale: int = cast("Any", pipe).vae_spatial_compression_ratio
    return _decoding(pipe, call, _unpacked(height // scale, width // scale))


def unpacked(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`LTXConditionPipeline`: (B, C, T, h, w), normalised."""
    return _decoding(pipe, call, _as_it_is)


def denormalised(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`LTX2Pipeline`: (B, C, T, h, w), denormalised, which the pipeline itself does last of all.

    Before that it casts as the prompt's embeddings are, and mixes noise in: where either changes
    anything the latents are normalised again. That rounds in float32, so that in bfloat16 some 2
    of 100,000 latents are a unit in the last place off, and all others the pipeline's own.
    """
    return _renormalising(pipe, call, None)


def denormalised_padded(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`LTX2DFRPipeline`: as above, filled up at the end to a whole number of segments."""
    (frames,) = needed(pipe, call, "num_frames")
    length = (frames - 1) // cast("Any", pipe).vae_temporal_compression_ratio + 1
    return _renormalising(pipe, call, lambda latents: latents[:, :, :length])


def upsampled(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`LTX2LatentUpsamplePipeline`: (B, C, T, h, w), ready but for noise."""
    vae = part(pipe)
    if not vae.config["timestep_conditioning"]:
        return vae, {}, Preparation()
    noise = _Noise(pipe, call, None)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        return noise.mixed(latents, start).to(dtype)

    return vae, noise.arguments, Preparation(prepare, noise.measuring(_as_it_is))


def upsampled_normalised(pipe: object, call: Mapping[str, object]) -> Decoding:
    """`LTXLatentUpsamplePipeline`: normalises for ``output_type="latent"`` alone.

    Undone here, which rounds: the frames are the pipeline's within about 1e-6.
    """
    return _decoding(pipe, call, _as_it_is, embedded=False)


def scaled_first(pipe: object, call: Mapping[str, object]) -> Decoding:  # noqa: ARG001
    """`SanaWMPipeline`: cast, divide by the factor, then multiply by the deviation."""
    vae = part(pipe)
    mean, std = buffers(vae)
    factor: float = vae.config["scaling_factor"]

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        latents = latents.to(dtype)
        return latents / factor * std(latents.device, dtype) + mean(latents.device, dtype)

    return vae, {}, Preparation(prepare)


def _decoding(
    pipe: object, call: Mapping[str, object], view: View, *, embedded: bool = True
) -> Decoding:
    """Denormalise in the latents' dtype, cast as the prompt's embeddings are, mix, cast."""
    vae = part(pipe)
    _, denormalise = _space(vae)
    between = _of_embeddings(pipe, call) if embedded else None
    noise = _Noise(pipe, call, between) if vae.config["timestep_conditioning"] else None

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        latents = denormalise(latents)
        if between is not None:
            latents = latents.to(between)
        if noise is not None:
            latents = noise.mixed(latents, start)
        return latents.to(dtype)

    if noise is None:
        return vae, {}, Preparation(prepare, view)
    return vae, noise.arguments, Preparation(prepare, noise.measuring(view))


def _renormalising(pipe: object, call: Mapping[str, object], cropped: View | None) -> Decoding:
    """Cast as the prompt's embeddings are, mix, denormalise in that dtype, cast."""
    vae = part(pipe)
    normalise, denormalise = _space(vae)
    between = _of_embeddings(pipe, call)
    noise = _Noise(pipe, call, between) if vae.config["timestep_conditioning"] else None
    view = None if cropped is None else once(cropped, pipe)

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
        if noise is None and latents.dtype == between:
            return latents.to(dtype)
        latents = normalise(latents).to(between)
        if noise is not None:
            latents = noise.mixed(latents, start)
        return denormalise(latents).to(dtype)

    if noise is None:
        return vae, {}, Preparation(prepare, view)
    return vae, noise.arguments, Preparation(prepare, noise.measuring(cropped or _as_it_is))


def _space(vae: Part) -> tuple[View, View]:
    """Into the diffusion model's space, and back; in the dtype of the latents."""
    mean, std = buffers(vae)
    factor: float = vae.config["scaling_factor"]

    def normalise(latents: torch.Tensor) -> torch.Tensor:
        place = latents.device, latents.dtype
        return (latents - mean(*place)) * factor / std(*place)

    def denormalise(latents: torch.Tensor) -> torch.Tensor:
        place = latents.device, latents.dtype
        return latents * std(*place) / factor + mean(*place)

    return normalise, denormalise


class _Noise:
    """What one stream mixes into its latents: drawn once, for all of them, then taken in slices."""

    def __init__(self, pipe: object, call: Mapping[str, object], dtype: torch.dtype | None) -> None:
        self._pipe = pipe
        count = _prompts(call)
        timestep = _listed(argument(pipe, call, "decode_timestep"), count)
        scale = argument(pipe, call, "decode_noise_scale")
        self._scale = timestep if scale is None else _listed(scale, count)
        #: For the codec.
        self.arguments: Mapping[str, object] = {"temb": torch.tensor(timestep, dtype=dtype)}
        self._generator = argument(pipe, call, "generator")
        self._length = 0
        self._drawn: list[torch.Tensor] = []  # the scale and the noise, once they are needed

    def measuring(self, view: View) -> View:
        """``view`` that takes the number of latents down: the noise of each depends on it."""

        def measured(latents: torch.Tensor) -> torch.Tensor:
            seen = view(latents)
            if seen.ndim == 5:  # else the codec refuses them
                self._length = seen.shape[2]
            return seen

        return once(measured, self._pipe)

    def mixed(self, latents: torch.Tensor, start: int) -> torch.Tensor:
        """``latents``, the first of them the ``start``-th, with their part of the noise."""
        if not self._drawn:
            self._draw(latents)
        scale, noise = self._drawn
        return (1 - scale) * latents + scale * noise.narrow(2, start, latents.shape[2])

    def _draw(self, latents: torch.Tensor) -> None:
        place: Mapping[str, Any] = {"device": latents.device, "dtype": latents.dtype}
        shape = (*latents.shape[:2], self._length, *latents.shape[3:])
        randn = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
        noise = randn(shape, generator=self._generator, **place)
        scale = torch.tensor(self._scale, **place)[:, None, None, None, None]
        self._drawn += [scale, noise]


def _unpacked(height: int, width: int) -> View:
    def view(latents: torch.Tensor) -> torch.Tensor:
        if latents.ndim != 3 or latents.shape[1] % (height * width):
            raise LatentsError(
                f"expected packed latents (B, T * {height} * {width}, C) for the height and width "
                f"in call, got shape {tuple(latents.shape)}"
            )
        shape = (latents.shape[0], -1, height, width, latents.shape[2])
        return latents.view(shape).permute(0, 4, 1, 2, 3)

    return view


def _as_it_is(latents: torch.Tensor) -> torch.Tensor:
    return latents


def _of_embeddings(pipe: object, call: Mapping[str, object]) -> torch.dtype:
    """Dtype of the prompt's embeddings: as given, else the text encoder's."""
    given = call.get("prompt_embeds")
    if isinstance(given, torch.Tensor):
        return given.dtype
    encoder: Part | None = getattr(pipe, "text_encoder", None)
    return (encoder or part(pipe, "transformer")).dtype


def _prompts(call: Mapping[str, object]) -> int:
    """How many prompts the pipeline was called with."""
    prompt, embeddings = call.get("prompt"), call.get("prompt_embeds")
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        return len(prompt)
    return embeddings.shape[0] if isinstance(embeddings, torch.Tensor) else 1


def _listed(value: object, count: int) -> list[float]:
    return [float(each) for each in value] if isinstance(value, list) else [float(value)] * count  # type: ignore[arg-type]
