"""What several commands ask for, and the same of each: device, autoencoder, mode, latents."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import _info
from .._errors import UsageError
from ..backends import for_device
from ..codecs import codec_for
from ..models import DEFAULT_VAE
from ..models._load import load_autoencoder


class Mode(StrEnum):
    """As `streamvae.stream_decode` has it."""

    exact = "exact"
    fast = "fast"


class Dtype(StrEnum):
    """What weights may be cast to."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


VaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="DIR_OR_ID",
        help="The autoencoder: a folder or hub id in diffusers' format, its own or of a pipeline "
        "that has it in 'vae'. Without it, the embedded one.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Where to decode. By default CUDA if there is any, else the CPU."),
]
DtypeOption = Annotated[
    Dtype | None, typer.Option(help="Dtype of the weights.", show_default="float32")
]
NormalizedOption = Annotated[
    bool, typer.Option("--normalized", help="Latents are in the diffusion model's space.")
]
ChunkOption = Annotated[int | None, typer.Option(min=1, help="Latents decoded at once.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def device_of(wanted: str | None) -> str:
    """The device asked for, or the default one, seen to work.

    Raises:
        DeviceError: It does not.
        UsageError: It is no name of a device.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(name)
    except RuntimeError:
        raise UsageError(f"expected --device as in cpu, cuda or cuda:1, got {name!r}") from None
    return str(for_device(name).device)


def autoencoder(source: str | None, device: str, dtype: Dtype | None) -> torch.nn.Module:
    """Load the autoencoder asked for, by default the embedded one.

    Raises:
        UnknownSourceError: There is none.
    """
    wanted = None if dtype is None else getattr(torch, dtype.value)
    return load_autoencoder(DEFAULT_VAE if source is None else source, wanted).to(device)


def sound_decoder(source: str, device: str, dtype: Dtype | None) -> object:
    """Load what decodes a pipeline's sound: its ``audio_vae``, of mel its ``vocoder`` as well.

    Raises:
        UnknownSourceError: It has no such part.
    """
    wanted = None if dtype is None else getattr(torch, dtype.value)
    audio_vae = load_autoencoder(source, wanted, "audio_vae").to(device)
    if not hasattr(codec_for(audio_vae), "mel"):
        return audio_vae
    return audio_vae, load_autoencoder(source, wanted, "vocoder").to(device)


def look_into(latents: Path) -> None:
    """See that there are latents in a file: loading weights may take minutes.

    Raises:
        LatentsError: There are none.
    """
    _info.latents(latents)
