"""A timeline as a picture, by matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from streamvae._errors import MissingDependencyError

from ._lanes import IDLE, LANES, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: More chunks than these in a panel are not numbered.
NUMBERED = 40


def figure_class() -> type[Figure]:
    """Matplotlib's figure.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "drawing a timeline", "plots") from error
    return Figure


def picture(panels: tuple[Panel, ...]) -> bytes:
    """The bytes of a PNG: a panel below the other, all on one scale."""
    lanes = sum(len(panel.lanes) for panel in panels)
    figure = figure_class()(
        figsize=(12, 0.55 * lanes + 0.85 * len(panels) + 0.5), dpi=120, layout="constrained"
    )
    long = max(panel.end - panel.begin for panel in panels) or 1.0
    axes = figure.subplots(
        len(panels),
        squeeze=False,
        sharex=True,
        gridspec_kw={"height_ratios": [len(panel.lanes) + 0.8 for panel in panels]},
    )[:, 0]
    for panel, ax in zip(panels, axes, strict=True):
        _draw(panel, ax)
    axes[-1].set_xlim(0, long * 1.005)
    axes[-1].set_xlabel("seconds")
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _draw(panel: Panel, ax: Axes) -> None:
    rows = {lane: -row for row, lane in enumerate(panel.lanes)}
    numbered = len({bar.chunk for bar in panel.bars}) <= NUMBERED
    least = 0.004 * (panel.end - panel.begin)
    for lane, row in rows.items():
        bars = [bar for bar in panel.bars if bar.lane == lane]
        ax.broken_barh(
            [(bar.begin - panel.begin, bar.end - bar.begin) for bar in bars],
            (row - 0.36, 0.72),
            facecolors=[_shade(LANES[lane], bar.chunk) for bar in bars],
            edgecolors="face",  # so that the shortest can be seen
            linewidth=0.6,
        )
        for bar in bars:
            if numbered and bar.end - bar.begin > 3 * least:
                middle = (bar.begin + bar.end) / 2 - panel.begin
                ax.text(middle, row, str(bar.chunk), ha="center", va="center", fontsize=7)
    for gap in panel.visible_gaps if "compute" in rows else ():
        ax.broken_barh(
            [(gap.begin - panel.begin, gap.seconds)],
            (rows["compute"] - 0.36, 0.72),
            facecolors="none",
            edgecolors=IDLE,
            hatch="/////",
            linewidth=0.6,
        )
    ax.set_yticks(list(rows.values()), list(rows))
    ax.set_ylim(-len(rows) + 0.5, 0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    idle = sum(gap.seconds for gap in panel.gaps)
    title = ": ".join(filter(None, (panel.name, panel.said)))
    ax.set_title(f"{title}; hatched: idle, {idle * 1e3:.0f} ms", loc="left", fontsize=10)


def _shade(colour: str, chunk: int) -> str:
    """Neighbours differ a little, so that chunks without a gap between them can be told apart."""
    return colour + ("ff" if chunk % 2 else "bb")
