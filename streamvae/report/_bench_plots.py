"""Pictures of what ``streamvae bench`` has found, by matplotlib (extra ``plots``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .._errors import MissingDependencyError
from ._bench_found import Benchmark, named
from ._bench_loops import ALONE, EAGER, EXACT, FAST, FASTVAE, LOOP, OWN, PEOPLE
from ._steps import kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The same in all pictures, told apart also by those who see few colours (Okabe and Ito's).
_COLOURS = {
    ALONE: "#999999",
    PEOPLE: "#d55e00",
    LOOP: "#e69f00",
    FASTVAE: "#cc79a7",
    EXACT: "#0072b2",
    EAGER: "#56b4e9",
    FAST: "#009e73",
    OWN: "#d55e00",
}


def expect_matplotlib() -> None:
    """See that there is something to draw with.

    Raises:
        MissingDependencyError: There is not.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "drawing plots", "plots")


def draw(found: Benchmark, folder: Path) -> list[Path]:
    """Draw a picture of each part that was measured: ``paths.png``, ``chunks.png``, ...

    Args:
        found: What was measured.
        folder: Where to; made if it is not there. Pictures of these names are replaced.

    Returns:
        What was written.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    expect_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "paths": _paths,
        "chunks": _chunks,
        "energy": _energy,
        "memory": _memory,
        "sizes": _sizes,
    }
    written = []
    for name, make in made.items():
        if getattr(found, name):
            path = folder / f"{name}.png"
            make(found).savefig(path, dpi=144)
            written.append(path)
    return written


def _figure(found: Benchmark, title: str, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6 if rows == 1 else 1.2 + 1.9 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    facts = found.facts
    versions = facts["versions"]
    torch = versions.get("torch") if isinstance(versions, dict) else None
    said = (
        f"{facts['family']} ({facts['source']}), {facts['dtype']}, {facts['gpu'] or facts['cpu']}, "
        f"torch {torch}, {str(facts['date'])[:10]}\n{facts['command']}"
    )
    figure.supxlabel(said, x=0.01, ha="left", fontsize=7, color="#555555")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _paths(found: Benchmark) -> Figure:
    """Bars: seconds of a clip, a panel for each place that frames go to."""
    rows = found.paths
    targets = list(dict.fromkeys(row.into for row in rows))
    clip = f"{rows[0].frames} frames of {named(rows[0].size)}"
    figure, panels = _figure(found, f"Seconds for {clip}: median, least to most", len(targets))
    most = max((row.seconds.most for row in rows if row.seconds), default=1.0)
    for target, axes in zip(targets, panels, strict=True):
        here = [row for row in rows if row.into == target and row.seconds is not None]
        axes.set_title(f"into {target}", loc="left", fontsize=9)
        for place, row in enumerate(reversed(here)):
            took = row.seconds
            assert took is not None  # noqa: S101  # `here` has no others
            spread = [[took.median - took.least], [took.most - took.median]]
            axes.barh(place, took.median, xerr=spread, color=_COLOURS[row.way], capsize=2)
            axes.text(took.most + 0.01 * most, place, f"{took.median:.3f}", va="center", fontsize=8)
        axes.set_yticks(range(len(here)), [row.way for row in reversed(here)], fontsize=8)
        axes.set_xlim(0, most * 1.12)
    return figure


def _chunks(found: Benchmark) -> Figure:
    """Bars: milliseconds of a first and of a steady chunk, a panel each."""
    figure, panels = _figure(found, "Milliseconds of a chunk, on the device alone: medians", 2)
    for kind, axes in zip(("first", "steady"), panels, strict=True):
        spans = {row: getattr(row, kind) for row in reversed(found.chunks)}
        here = {row: took.median * 1000 for row, took in spans.items() if took is not None}
        axes.set_title(f"{kind} chunk", loc="left", fontsize=9)
        labels = [f"{row.way} ({kind_of(row.step)})" for row in here]
        _bars(axes, labels, list(here.values()), [_COLOURS[row.way] for row in here])
    return figure


def _energy(found: Benchmark) -> Figure:
    """Bars: joules a frame, what the card takes when idle among that."""
    rows = found.energy[::-1]
    size = found.facts["energy's pictures"]
    title = f"Joules a frame, {size}, into nothing"
    figure, (axes,) = _figure(found, title)
    labels = [row.way for row in rows]
    _bars(axes, labels, [row.joules_per_frame for row in rows], [_COLOURS[row.way] for row in rows])
    idle = [row.joules_per_frame - row.joules_above_idle_per_frame for row in rows]
    axes.barh(range(len(rows)), idle, color="#00000030", label="of it idle")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _bars(axes: Axes, labels: list[str], values: list[float], colours: list[str]) -> None:
    axes.barh(range(len(values)), values, color=colours)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.3g}", va="center", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(0, max(values, default=1.0) * 1.12)


def _memory(found: Benchmark) -> Figure:
    """Lines: memory over the number of latents."""
    rows, size = found.memory, found.facts["memory's pictures"]
    figure, (axes,) = _figure(found, f"Memory over length, {size}, above what lay there before")
    for way in dict.fromkeys(row.way for row in rows):
        here = [row for row in rows if row.way == way and row.nbytes is not None]
        taken = [(row.nbytes or 0) / 2**20 for row in here]
        axes.plot([row.latents for row in here], taken, "o-", color=_COLOURS[way], label=way)
    axes.set_xticks(sorted({row.latents for row in rows}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("latents")
    axes.set_ylabel("MiB")
    axes.legend(frameon=False)
    return figure


def _sizes(found: Benchmark) -> Figure:
    """Lines: milliseconds a frame over the size of the pictures."""
    rows = found.sizes
    figure, (axes,) = _figure(found, "Milliseconds a frame, into a raw file, over size")
    sizes = list(dict.fromkeys(row.size for row in rows))
    for way in dict.fromkeys(row.way for row in rows):
        here = [row for row in rows if row.way == way and row.seconds is not None]
        places = [sizes.index(row.size) for row in here]
        each = [row.seconds.median / row.frames * 1000 if row.seconds else 0.0 for row in here]
        axes.plot(places, each, "o-", color=_COLOURS[way], label=way)
    axes.set_xticks(range(len(sizes)), [named(size) for size in sizes])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_ylabel("ms a frame")
    axes.legend(frameon=False)
    return figure
