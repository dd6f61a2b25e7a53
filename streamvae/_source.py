"""From whatever a user decodes with (an autoencoder, a pipeline, a path, nothing) to a codec."""

from __future__ import annotations

import os

import torch

from ._errors import DeviceError
from .abc import Codec
from .codecs import codec_for
from .latents import autoencoder_of, is_pipeline
from .models import default_vae
from .models._load import load_autoencoder


def resolve(source: object, *, normalized: bool, device: torch.device | None) -> tuple[Codec, bool]:
    """The codec of ``source``, and whether latents come in the diffusion model's space.

    Runs off the loop: it may load weights.

    Args:
        source: None (the embedded VAE), a path or hub id, a diffusers pipeline or autoencoder, or
            a `Codec`.
        normalized: What the user said; a pipeline knows better.
        device: Where weights loaded here go; weights of the user's own stay where they are.

    Raises:
        DeviceError: The user's own weights are not on ``device``.
        UnknownSourceError: Nobody knows how to decode with ``source``.
    """
    if isinstance(source, Codec):
        return source, normalized
    if source is None:
        return codec_for(default_vae().to(device or "cpu")), normalized
    if isinstance(source, (str, os.PathLike)):
        return codec_for(load_autoencoder(source).to(device or "cpu")), normalized
    if is_pipeline(source):
        source, normalized = autoencoder_of(source)
    codec = codec_for(source)
    if device is not None and not _same(device, codec.device):
        raise DeviceError(
            f"expected the weights on {device}, got {codec.family} on {codec.device}; "
            f"move it first: vae.to('{device}')"
        )
    return codec, normalized


def _same(wanted: torch.device, actual: torch.device) -> bool:
    return wanted.type == actual.type and wanted.index in {None, actual.index}
