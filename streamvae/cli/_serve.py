"""``streamvae serve``."""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from .._errors import MissingDependencyError, UsageError
from ._options import DeviceOption, DtypeOption, NormalizedOption, autoencoder, device_of


def serve(
    *,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_ID",
            help="The autoencoder, as for decode --vae. Without it, the embedded one.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; another address than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="STREAMVAE_TOKEN",
            show_envvar=True,
            help="What every request needs. Better not here, where others may read it.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where videos are kept. Without it, until the end only."),
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, metavar="MIB", help="Of one upload.")] = 1024,
    max_streams: Annotated[int, typer.Option(min=1, help="Jobs decoded at once.")] = 4,
    max_waiting: Annotated[int, typer.Option(min=0, help="Jobs that may wait.")] = 32,
    fps: Annotated[
        float, typer.Option(min=1, max=240, help="Frames a second where nothing else says.")
    ] = 16.0,
    normalized: NormalizedOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    grace: Annotated[
        float, typer.Option(min=0.5, help="Seconds until the end once it is told to end.")
    ] = 10.0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page and an API: latents in, frames out while they are decoded.

    Loopback only, unless told otherwise; the page's address is printed.
    """
    for package in ("starlette", "uvicorn", "websockets"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "streamvae serve", "live")
    from ..live._app import create_app
    from ..live._security import checked_token, is_loopback
    from ..live._server import listening, run, url_of

    if checked_token(token) is None and not is_loopback(host):
        raise UsageError(
            f"expected a token with --host {host}, got none: set STREAMVAE_TOKEN, for example to "
            "$(python -c 'import secrets; print(secrets.token_urlsafe())')"
        )
    with contextlib.closing(listening(host, port)) as listener:  # before weights are loaded
        page = url_of(listener)

        def ready() -> None:
            # Standard output may be a log: the token is not said.
            typer.echo(f"serving on {page}" + ("" if token is None else "?token=..."))
            if open_page:
                webbrowser.open(page if token is None else f"{page}?token={quote(token)}")

        app = create_app(
            autoencoder(source, device_of(device), dtype),
            token=token,
            folder=folder,
            max_upload=max_upload << 20,
            max_streams=max_streams,
            max_waiting=max_waiting,
            normalized=normalized,
            fps=fps,
        )
        if not run(app, listener, grace=grace, ready=ready):
            sys.stdout.flush()
            os._exit(0)
