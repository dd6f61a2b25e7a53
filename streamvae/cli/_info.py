"""``streamvae info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__, _info
from ._options import VaeOption, autoencoder


def info(
    latents: Annotated[
        Path | None, typer.Argument(metavar="[LATENTS]", help="What decoding it would give.")
    ] = None,
    *,
    vae: VaeOption = None,
) -> None:
    """Show versions, devices, families and sinks; of LATENTS, what decoding would give."""
    for line in _info.versions(__version__):
        typer.echo(line)
    if latents is None and vae is None:
        return
    shape = None if latents is None else _info.latents(latents)
    for line in _info.plan(shape, autoencoder(vae, "cpu", None), embedded=vae is None):
        typer.echo(line)
