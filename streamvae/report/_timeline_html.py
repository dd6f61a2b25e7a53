"""A timeline as a page that stands alone: inline SVG, nothing to load, nothing to run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from html import escape

from ._lanes import IDLE, LANES, Panel, idle

#: Pixels: the names of the lanes, a lane, a bar, and the axis below.
LEFT, LANE, BAR, AXIS = 80, 34, 26, 26
#: Pixels that a typical chunk is wide at least, and the picture at least and at most.
CHUNK, NARROW, WIDE = 18, 1000, 60_000

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; }}
h2 {{ font-size: 1rem; margin: 1.5rem 0 0.25rem; }}
p {{ margin: 0.25rem 0; }}
div {{ overflow-x: auto; }}
svg {{ display: block; }}
svg text {{ fill: currentColor; font-size: 12px; }}
svg .tick {{ stroke: currentColor; opacity: 0.25; }}
svg rect:hover {{ stroke: currentColor; stroke-width: 2; }}
{colours}
</style>
<h1>{title}</h1>
<p>Each bar is a chunk; point at one for its numbers. {key}</p>
{panels}
</html>
"""


def page(panels: tuple[Panel, ...]) -> str:
    """The whole page; all panels on one scale."""
    long = max(panel.end - panel.begin for panel in panels)
    scale = _scale(panels, long)
    key = f'<span style="color:{IDLE}">Hatched</span>: the device had nothing to do.'
    return _PAGE.format(
        title="streamvae: where the time went",
        colours="\n".join(f"svg .{lane} {{ fill: {LANES[lane]}; }}" for lane in LANES),
        key=key,
        panels="\n".join(_panel(panel, number, scale, long) for number, panel in enumerate(panels)),
    )


def _scale(panels: tuple[Panel, ...], long: float) -> float:
    """Pixels a second."""
    typical = [
        bar.end - bar.begin for panel in panels for bar in panel.bars if bar.lane == "compute"
    ]
    median = statistics.median(typical) if typical else 0.0
    wanted = CHUNK / median if median else 0.0
    if not long:
        return 1.0
    return min(max(wanted, NARROW / long), WIDE / long)


def _panel(panel: Panel, number: int, scale: float, long: float) -> str:
    height = LANE * len(panel.lanes) + AXIS
    heading = escape(": ".join(filter(None, (panel.name, panel.said))))
    size = f'width="{LEFT + long * scale + 20:.0f}" height="{height}"'
    hatch = (
        f'<defs><pattern id="idle{number}" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="2.5" height="6" fill="{IDLE}"/>'
        "</pattern></defs>"
    )
    drawn = "\n".join((
        *_axis(panel, scale, long),
        *_bars(panel, scale),
        *_gaps(panel, number, scale),
    ))
    return (
        f'<h2>{heading}</h2>\n<div><svg role="img" aria-label="{heading}" {size}>\n'
        f"{hatch}\n{drawn}\n</svg></div>"
    )


def _bars(panel: Panel, scale: float) -> Iterator[str]:
    for row, lane in enumerate(panel.lanes):
        top = row * LANE + (LANE - BAR) / 2
        yield f'<text x="0" y="{top + BAR / 2 + 4:.0f}">{lane}</text>'
        for bar in panel.bars:
            if bar.lane == lane:
                shade = "" if bar.chunk % 2 else ' opacity="0.7"'  # to tell neighbours apart
                yield _rect(
                    f'class="{lane}"{shade}',
                    (LEFT + (bar.begin - panel.begin) * scale, top),
                    (bar.end - bar.begin) * scale,
                    bar.text,
                )


def _gaps(panel: Panel, number: int, scale: float) -> Iterator[str]:
    if "compute" not in panel.lanes:
        return
    top = panel.lanes.index("compute") * LANE + (LANE - BAR) / 2
    for gap in panel.gaps:
        yield _rect(
            f'class="gap" fill="url(#idle{number})"',
            (LEFT + (gap.begin - panel.begin) * scale, top),
            gap.seconds * scale,
            idle(gap),
        )


def _rect(attributes: str, at: tuple[float, float], width: float, text: str) -> str:
    return (
        f'<rect {attributes} x="{at[0]:.2f}" y="{at[1]:.1f}" width="{max(width, 0.5):.2f}" '
        f'height="{BAR}"><title>{escape(text)}</title></rect>'
    )


def _axis(panel: Panel, scale: float, long: float) -> Iterator[str]:
    bottom = LANE * len(panel.lanes)
    step = _step(long, long * scale)
    for tick in range(int(long / step) + 1):
        x = LEFT + tick * step * scale
        yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}">{tick * step:.6g} s</text>'


def _step(long: float, pixels: float) -> float:
    """A round number of seconds, so that ticks are some 100 pixels apart."""
    least = long * 100 / pixels if pixels else 1.0
    rounds = (factor * 10.0**power for power in range(-6, 7) for factor in (1, 2, 5))
    return next((step for step in rounds if step >= least), least or 1.0)
