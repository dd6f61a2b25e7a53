"""``streamvae bench``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import _terminal
from .._errors import UsageError
from ..report._bench import bench as measure
from ..report._bench_clip import RANDOM_WAN
from ..report._bench_found import PARTS, Benchmark, Settings, Size
from ..report._bench_plots import draw, expect_matplotlib
from ..report._bench_table import show
from ._options import DeviceOption, Dtype, OverwriteOption, device_of


class Part(StrEnum):
    """What can be measured alone."""

    paths = "paths"
    chunks = "chunks"
    energy = "energy"
    memory = "memory"
    sizes = "sizes"


def bench(
    *,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_ID",
            help="The autoencoder: a folder or hub id in diffusers' format, or "
            f"'{RANDOM_WAN}': Wan 2.1's in full size with random weights. By default the embedded "
            "one.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Of pictures of paths, chunks and energy, as in 720x1280.",
            show_default=False,
        ),
    ] = None,
    latents: Annotated[
        int | None, typer.Option(min=1, help="Of the clip of paths and energy.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Samples of every time; 5.", show_default=False)
    ] = None,
    only: Annotated[
        list[Part] | None,
        typer.Option(help="One part; may come several times.", show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The JSON with all samples.")
    ] = Path("streamvae-bench.json"),
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw plots there (extra 'plots').", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A rehearsal, whose figures mean nothing.")
    ] = False,
    device: DeviceOption = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare ways of decoding side by side: vae.decode and write, chunk loop, fastvae, streamvae.

    Five parts: every path into nothing, a raw file and MP4; first and steady chunks by every step;
    joules a frame (NVIDIA cards, extra 'energy'); memory over length; time over the size of the
    pictures. Without a GPU it takes a minute or two, with the embedded VAE.
    """
    if plots is not None:
        expect_matplotlib()
    _expect_place(out, overwrite=overwrite)
    settings = Settings.usual(source, torch.device(device_of(device)), quick=quick)
    settings = replace(
        settings,
        dtype=None if dtype is None else getattr(torch, dtype.value),
        parts=tuple(part for part in PARTS if only is None or part in only),
        size=settings.size if size is None else _size(size),
        latents=latents or settings.latents,
        rounds=rounds or settings.rounds,
    )
    labels = {"chunks": "first and steady chunks", "memory": "memory over length"}
    with _terminal.bars() as progress:
        found = measure(
            settings,
            progress=lambda what, done, total: progress(labels.get(what, what), done, total),
            part_done=lambda found: _write(found, out),
        )
    if quick:
        found.notes.append("a rehearsal: nothing follows from these figures")
        _write(found, out)
    show(found)
    typer.echo(f"wrote {out}")
    for path in [] if plots is None else draw(found, plots):
        typer.echo(f"wrote {path}")


def _size(said: str) -> Size:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", said)
    if found is None:
        raise UsageError(f"expected --size as in 720x1280 (height, width), got {said!r}")
    return int(found[1]), int(found[2])


def _expect_place(out: Path, *, overwrite: bool) -> None:
    """See that ``out`` may be written: results of an earlier run are replaced."""
    if not out.parent.is_dir():
        raise UsageError(f"expected a folder for {out}, found none")
    if out.exists() and not overwrite and not _is_ours(out):
        raise UsageError(f"{out} is there, and no earlier bench wrote it; pass --overwrite")


def _is_ours(out: Path) -> bool:
    try:
        said = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("what") == "streamvae bench"


def _write(found: Benchmark, out: Path) -> None:
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
    partial.replace(out)
