"""Draws what `benchmarks/graphs_h200.py` has measured: times, launching, memory over length.

python benchmarks/graphs_plot.py            # results/graphs_h200.json, docs/images/graphs_h200.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
#: Graphs, eager, and the device by itself; Okabe and Ito's, as in ``streamvae bench``.
GRAPH, EAGER, ALONE = "#0072b2", "#56b4e9", "#999999"


def bars(axes: Axes, title: str, rows: Mapping[str, tuple[Mapping[str, float], str]]) -> None:
    """Medians, with the least and the most of their samples.

    Args:
        axes: Where.
        title: What, with its unit.
        rows: What is told of each, and its colour.
    """
    most = max(row["max"] for row, _ in rows.values())
    for place, (row, colour) in enumerate(reversed(rows.values())):
        median = row["median"]
        spread = [[median - row["min"]], [row["max"] - median]]
        axes.barh(place, median, xerr=spread, color=colour, capsize=2)
        axes.text(row["max"] + 0.01 * most, place, f"{median:.4g}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)
    axes.set_xlim(0, most * 1.12)
    axes.set_title(title, loc="left", fontsize=9)


def in_thousandths(row: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of seconds."""
    return {name: row[name] * 1000 for name in ("median", "min", "max")}


def lengths(axes: Axes, told: Mapping[str, Mapping[str, float]]) -> None:
    """Lines: the allocator's peak and what it took of the card, over the number of latents."""
    counts = sorted(map(int, told))
    for name, colour in (("reserved", GRAPH), ("allocated", EAGER)):
        peaks = [told[str(count)][name] / 2**30 for count in counts]
        axes.plot(counts, peaks, "o-", color=colour, label=name)
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.set_title("GiB of device memory at most, over latents", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="center")


def drawn(found: Mapping[str, Any]) -> Figure:
    """All of it, with the command, machine and date below."""
    figure = Figure(figsize=(8, 8.2), layout="constrained")
    panels = [figure.add_subplot(4, 1, row + 1) for row in range(4)]
    size = "x".join(map(str, found["size"]))
    figure.suptitle(
        f"Wan 2.1's VAE, {size}, {found['latents']} latents, chunks as CUDA graphs",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    said = (
        f"random weights, {found['dtype']}, {found['gpu']}, "
        f"torch {found['versions']['torch']}, {found['date'][:10]}\n{found['command']}"
    )
    figure.supxlabel(said, x=0.01, ha="left", fontsize=7, color="#555555")
    walls = found["walls"]
    clips, chunks = walls["clips"], walls["steady chunk, s"]
    launches = walls["launch thread, ms a steady chunk"]
    both = {"graph": GRAPH, "eager": EAGER}
    bars(
        panels[0],
        "seconds of the clip",
        {
            "the device alone, as graphs": (clips["device alone"], ALONE),
            "streamvae into a raw file": (clips["raw"], GRAPH),
        },
    )
    steady = {name: (in_thousandths(chunks[name]), colour) for name, colour in both.items()}
    bars(panels[1], "ms from one steady chunk's end on the device to the next", steady)
    launched = {name: (launches[name], colour) for name, colour in both.items()}
    bars(panels[2], "ms of the launch thread's processor time, a steady chunk", launched)
    lengths(panels[3], found["lengths"])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "graphs_h200.json")
    images = HERE.parent / "docs" / "images"
    parser.add_argument("--out", type=Path, default=images / "graphs_h200.png")
    said = parser.parse_args()
    drawn(json.loads(said.results.read_text(encoding="utf-8"))).savefig(said.out, dpi=144)
    print(f"wrote {said.out}")


if __name__ == "__main__":
    main()
