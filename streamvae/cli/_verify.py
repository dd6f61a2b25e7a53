"""``streamvae verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import _terminal
from .._errors import UsageError
from ._options import (
    ChunkOption,
    DeviceOption,
    DtypeOption,
    Mode,
    NormalizedOption,
    autoencoder,
    device_of,
    look_into,
)


def verify(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="The autoencoder: a folder or hub id in diffusers' format, its own or of a "
            "pipeline that has it in 'vae'. 'embedded', or nothing: the embedded one.",
        ),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Argument(
            metavar="LATENTS", help=".safetensors, .pt or .npy. By default a little noise."
        ),
    ] = None,
    *,
    normalized: NormalizedOption = False,
    mode: Annotated[Mode, typer.Option(help="How the stream decodes.")] = Mode.exact,
    latents_per_chunk: ChunkOption = None,
    tiling: Annotated[
        bool, typer.Option("--tiling", help="Call the autoencoder's enable_tiling() first.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    device: DeviceOption = None,
    reference_device: Annotated[
        str | None,
        typer.Option(
            help="Where fast mode's reference in float32 decodes, which takes twice the memory. By "
            "default where the autoencoder does.",
            show_default=False,
        ),
    ] = None,
    dtype: DtypeOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code.")] = False,
) -> None:
    """Decode LATENTS as a stream and by the autoencoder's own decode, and compare.

    With --mode fast, the errors of both against a decode in float32 as well.

    Exit code 0: every value is equal, or fast mode's error is accepted. 3: equal but for rounding.
    1: different.
    """
    if latents is not None:
        look_into(latents)
    vae = autoencoder(None if source == "embedded" else source, device_of(device), dtype)
    if tiling:
        _enable_tiling(vae)
    found = _terminal.run_verify(
        vae,
        latents,
        normalized=normalized,
        mode=mode.value,
        latents_per_chunk=latents_per_chunk,
        seed=seed,
        reference_device=reference_device,
    )
    if not quiet:
        typer.echo(str(found))
    raise typer.Exit(_terminal.VERDICTS[found.verdict])


def _enable_tiling(vae: torch.nn.Module) -> None:
    enable = getattr(vae, "enable_tiling", None)
    if enable is None:
        raise UsageError(f"expected no --tiling, as {type(vae).__name__} knows none, got it")
    try:
        enable()
    except NotImplementedError:  # of diffusers' AutoencoderMixin
        raise UsageError(f"expected no --tiling with {type(vae).__name__}, got it") from None
