"""``streamvae demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import _terminal
from .._demo import is_exact, lines, run_demo
from ._options import DeviceOption, device_of
from ._times import ReportOption, TimelineOption, Times


def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")] = Path(),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no demo has written, too.")
    ] = False,
    device: DeviceOption = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Only so much of the clip.", show_default="all")
    ] = None,
    timeline: TimelineOption = None,
    report: ReportOption = False,
) -> None:
    """Stream a clip with the embedded VAE into demo.mp4 and demo.png; compare with vae.decode.

    An earlier demo's files are replaced.
    """
    times = Times(timeline, report)
    times.check()
    done = run_demo(out, overwrite=overwrite, device=device_of(device), limit=seconds)
    for line in lines(done):
        typer.echo(line)
    times.tell(done.stats, "demo")
    if not is_exact(done.whole, done.stats.frames):
        raise typer.Exit(_terminal.FAILED)
