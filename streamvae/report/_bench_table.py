"""What ``streamvae bench`` has found, for people at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table

from ._bench_found import Benchmark, Timing, named
from ._bench_memory import Peak


def show(found: Benchmark) -> None:
    """Print it to standard output: a table for each part that was measured, and the notes."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    for part in _parts(found):
        console.print(part)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _parts(found: Benchmark) -> Iterator[RenderableType]:
    facts = found.facts
    place = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} threads"
    yield f"{facts['family']} ({facts['source']}), {facts['dtype']} on {place}"
    if found.paths:
        yield _times("time of each path", found.paths)
        key = "frames equal vae.decode's, byte for byte"
        if key in facts:
            yield f"{key}: {'yes' if facts[key] else 'NO'}"
    if found.memory:
        size = facts["memory's pictures"]
        yield _memory(f"memory over length, {size}, above what lay there before", found.memory)
    if found.sizes:
        yield _times("time over size", found.sizes)


def _times(title: str, rows: tuple[Timing, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("size", "into", "way"):
        table.add_column(heading)
    for heading in ("frames", "median", "from", "to", "frames/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = rows[0]
    for row in rows:
        if (row.size, row.into) != (before.size, before.into):
            table.add_section()
        before, took = row, row.seconds
        figures = (
            ("no memory", "", "", "")
            if took is None
            else (
                f"{took.median:.3f} s",
                f"{took.least:.3f}",
                f"{took.most:.3f}",
                f"{row.frames / took.median:.1f}",
            )
        )
        table.add_row(named(row.size), row.into, row.way, str(row.frames), *figures)
    return table


def _memory(title: str, rows: tuple[Peak, ...]) -> Table:
    ways = list(dict.fromkeys(row.way for row in rows))
    table = Table(title=title, title_justify="left")
    for heading in ("latents", "frames", *ways):
        table.add_column(heading, justify="right")
    for latents in dict.fromkeys(row.latents for row in rows):
        here = {row.way: row for row in rows if row.latents == latents}
        frames = next(iter(here.values())).frames
        table.add_row(str(latents), str(frames), *(_bytes(here.get(way)) for way in ways))
    return table


def _bytes(row: Peak | None) -> str:
    if row is None or row.nbytes is None:
        return "-"
    return f"{row.nbytes / 2**20:.0f} MiB"
