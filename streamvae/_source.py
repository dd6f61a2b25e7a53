"""From whatever a user decodes with (an autoencoder, a pipeline, a path, nothing) to a codec."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ._errors import DeviceError
from ._recipe import Preparation
from .abc import Codec
from .codecs import codec_for
from .latents import SoundOf, is_pipeline, of_pipeline
from .models import default_vae
from .models._load import load_autoencoder


def resolve(
    source: object,
    *,
    normalized: bool,
    device: torch.device | None,
    call: Mapping[str, object],
) -> tuple[Codec, Preparation]:
    """The codec of ``source``, and what lies between the latents, it, and the pixels.

    Runs off the loop: it may load weights.

    Args:
        source: None (the embedded VAE), a path or hub id, a diffusers pipeline or autoencoder, or
            a `Codec`, or an autoencoder of mel spectrograms with its vocoder, as a pair.
        normalized: Whether latents for anything but a pipeline, which knows better, are in the
            diffusion model's space.
        device: Where weights loaded here go; weights of the user's own stay where they are.
        call: Keyword arguments of the pipeline's call or the autoencoder's decode.

    Raises:
        DeviceError: The user's own weights are not on ``device``.
        UnknownSourceError: Nobody knows how to decode with ``source``.
    """
    # Asking a module whether it is a codec reads all its properties, some of them slow.
    if not isinstance(source, torch.nn.Module) and isinstance(source, Codec):
        return source, _bare(source, normalized=normalized)
    if source is None:
        source = default_vae().to(device or "cpu")
    elif isinstance(source, (str, os.PathLike)):
        source = load_autoencoder(source).to(device or "cpu")
    preparation = None
    if isinstance(source, SoundOf):
        source, call, preparation = source.decoding(call)
    elif is_pipeline(source):
        source, call, preparation = of_pipeline(source, call)
    codec = codec_for(source, call)
    if device is not None and not _same(device, codec.device):
        raise DeviceError(
            f"expected the weights on {device}, got {codec.family} on {codec.device}; "
            f"move it first: vae.to('{device}')"
        )
    return codec, preparation or _bare(codec, normalized=normalized)


def _bare(codec: Codec, *, normalized: bool) -> Preparation:
    """What a bare autoencoder needs: the right dtype, and the decoder's space."""
    if not normalized:
        return Preparation()
    return Preparation(lambda latents, _, dtype: codec.denormalize(latents.to(dtype)))


def _same(wanted: torch.device, actual: torch.device) -> bool:
    return wanted.type == actual.type and wanted.index in {None, actual.index}
