"""What ``streamvae bench`` has found, for people at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table

from ._bench_chunks import ChunkTime
from ._bench_energy import Energy
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
    steps = facts.get("steps")
    for mode, step in steps.items() if isinstance(steps, dict) else ():
        yield f"streamvae, {mode}: {step}"
    if found.paths:
        yield _times("time of each path", found.paths)
        key = "frames equal vae.decode's, byte for byte"
        if key in facts:
            yield f"{key}: {'yes' if facts[key] else 'NO'}"
    if found.chunks:
        yield _chunks("time of a chunk, on the device alone", found.chunks)
    if found.energy:
        yield _energy("energy, into nothing", found.energy)
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


def _chunks(title: str, rows: tuple[ChunkTime, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("way", "step"):
        table.add_column(heading)
    for heading in ("first, ms", "steady, ms", "from", "to", "first/steady"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        first, steady = row.first, row.steady
        share = f"{first.median / steady.median:.3f}" if first and steady else "-"
        spread = ("-",) * 3
        if steady is not None:
            spread = (_ms(steady.median), _ms(steady.least), _ms(steady.most))
        table.add_row(
            row.way, row.step, "-" if first is None else _ms(first.median), *spread, share
        )
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def _energy(title: str, rows: tuple[Energy, ...]) -> Table:
    table = Table(title=f"{title}; idle: {rows[0].idle_watts:.0f} W", title_justify="left")
    table.add_column("way")
    for heading in ("frames", "J/frame", "above idle", "W"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        each = (row.joules_per_frame, row.joules_above_idle_per_frame)
        table.add_row(row.way, str(row.frames), *(f"{one:.3g}" for one in each), f"{row.watts:.0f}")
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
