"""Draws ``docs/images/fused_decode.svg``: the kernel of ``docs/fused_decode.md`` in one picture.

python tools/draw_fused_decode.py           # writes it
python tools/draw_fused_decode.py --check   # only whether it is what this program draws
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "fused_decode.svg"
WIDTH, HEIGHT = 900, 470
#: Colours that can be told apart on white and on black, by everybody.
INK, HALO, TILE, TAP, WEIGHTS, SUMS = (
    "#4a5568",
    "#cfe3f5",
    "#5b9bd5",
    "#d1495b",
    "#e9b44c",
    "#7fb685",
)
#: Pixels of a tile and of its halo.
TILE_SIZE, HALO_SIZE = (16, 8), (18, 10)


class Drawing:
    """Elements of an SVG, in order."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def box(
        self, place: tuple[float, float], size: tuple[float, float], fill: str, stroke: str = INK
    ) -> None:
        """A rectangle."""
        (x, y), (width, height) = place, size
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self, x: float, y: float, *lines: str, anchor: str = "start", bold: bool = False
    ) -> None:
        """Lines of text, 17 apart."""
        weight = ' font-weight="bold"' if bold else ""
        for number, line in enumerate(lines):
            self.parts.append(
                f'<text x="{x:g}" y="{y + 17 * number:g}" text-anchor="{anchor}"{weight}>'
                f"{escape(line)}</text>"
            )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A line with a head."""
        self.parts.append(
            f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" stroke="{INK}" fill="none" '
            'stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        """All of it."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="13" fill="#1a202c">\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker>\n'
            f"{body}\n</svg>\n"
        )


def draw_halo(drawing: Drawing, x: float, y: float) -> None:
    """The halo of a tile, the tile, and one tap's view."""
    cell = 13
    for row in range(HALO_SIZE[1]):
        for column in range(HALO_SIZE[0]):
            inside = 0 < row <= TILE_SIZE[1] and 0 < column <= TILE_SIZE[0]
            place = (x + column * cell, y + row * cell)
            drawing.box(place, (cell, cell), TILE if inside else HALO, "white")
    drawing.parts.append(
        f'<rect x="{x + 2 * cell:g}" y="{y:g}" width="{16 * cell}" height="{8 * cell}" '
        f'fill="none" stroke="{TAP}" stroke-width="3"/>'
    )
    drawing.text(x, y - 26, "A halo: 18 x 10 pixels, 32 channels", bold=True)
    drawing.text(x, y - 9, "read once from memory, zeros outside of the picture")
    drawing.text(
        x,
        y + HALO_SIZE[1] * cell + 20,
        "blue: the 16 x 8 pixels that a block computes",
        "red: what one of the 27 taps sees, which is only",
        "another address in the same halo",
    )


def draw_block(drawing: Drawing, x: float, y: float) -> None:
    """What a block of threads does: loads, rings, products, epilogue."""
    drawing.text(x, y - 14, "A block of threads", bold=True)
    for number, (name, fill, below) in enumerate((
        ("halos", HALO, "one thread, by TMA"),
        ("weights", WEIGHTS, "one thread, in reading order"),
    )):
        top = y + 88 * number
        drawing.box((x, top), (96, 34), fill)
        drawing.text(x + 48, top + 22, name, anchor="middle")
        drawing.text(x, top + 52, below)
        for place in range(4):
            drawing.box((x + 128 + 24 * place, top + 5), (22, 24), fill)
        drawing.arrow(x + 98, top + 17, x + 124, top + 17)
        drawing.arrow(x + 226, top + 17, x + 268, y + 62)
    drawing.text(x + 128, y + 52 + 17, "rings of places")
    drawing.box((x + 272, y + 22), (130, 84), SUMS)
    drawing.text(
        x + 337, y + 46, "two groups multiply,", "64 pixels each,", "sums in fp32", anchor="middle"
    )
    drawing.arrow(x + 337, y + 108, x + 337, y + 140)
    drawing.box((x + 232, y + 144), (210, 88), "white")
    drawing.text(
        x + 337,
        y + 165,
        "+ bias, + residual",
        "write the sum",
        "norm, gamma, SiLU: write it where",
        "the next convolution reads",
        anchor="middle",
    )


def draw_pool(drawing: Drawing, x: float, y: float) -> None:
    """A pool of frames before and after a convolution."""
    drawing.text(
        x, y - 14, "A pool of frames: history stays where it is, and nothing is copied", bold=True
    )
    rows = (
        ("before", ["zeros", "history", "history", "new", "new", "new", "new", "free", "free"]),
        ("after", ["zeros", "free", "free", "free", "free", "history", "history", "free", "free"]),
    )
    fills = {"zeros": "white", "history": TILE, "new": SUMS, "free": "#edf2f7"}
    for number, (name, slots) in enumerate(rows):
        top = y + 64 * number
        drawing.text(x, top + 21, name)
        for place, slot in enumerate(slots):
            drawing.box((x + 60 + 84 * place, top), (78, 32), fills[slot])
            drawing.text(x + 99 + 84 * place, top + 21, slot, anchor="middle")
    drawing.text(
        x + 60,
        y + 52,
        "the convolution reads history and new frames, wherever they are; "
        "then the two newest are its history",
    )


def picture() -> str:
    """The SVG."""
    drawing = Drawing()
    draw_halo(drawing, 30, 70)
    draw_block(drawing, 400, 58)
    draw_pool(drawing, 30, 352)
    return drawing.svg()


def main() -> None:
    """Draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        PICTURE.write_text(picture(), encoding="utf-8")
    sys.exit(PICTURE.read_text(encoding="utf-8") != picture())


if __name__ == "__main__":
    main()
