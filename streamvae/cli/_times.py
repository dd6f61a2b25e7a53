"""``--timeline`` and ``--report``: where the time of a stream went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .._errors import UsageError
from .._merged import AVStats
from .._stats import StreamStats
from ..report import advice, check_timeline, write_timeline

#: Stands for the latents' name in the path of a timeline, as in that of an output.
STEM = "{stem}"

TimelineOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw when each chunk was launched, computed, copied and kept: .png, .html (alone), "
        ".json (opens in Perfetto). Replaced if it is there.",
    ),
]
ReportOption = Annotated[
    bool, typer.Option("--report", help="Tell where the time went, and what would help.")
]


@dataclass(frozen=True, slots=True)
class Times:
    """What is to be told of a stream's time.

    Attributes:
        timeline: Where to draw it.
        report: Whether to tell it.
    """

    timeline: Path | None = None
    report: bool = False

    def check(self, streams: int = 1) -> None:
        """Refuse, before anything is decoded, what cannot be drawn.

        Raises:
            UsageError: The file ends in something unknown, its folder is not there, or several
                streams would be drawn into one.
            MissingDependencyError: Pictures need matplotlib.
        """
        if self.timeline is None:
            return
        if streams > 1 and STEM not in self.timeline.name:
            raise UsageError(
                f"expected {STEM} in the name of --timeline for several latents, got "
                f"{self.timeline}"
            )
        check_timeline(self.timeline)

    def tell(
        self, stats: StreamStats | AVStats, stem: str, *, err: bool = False, quiet: bool = False
    ) -> None:
        """Draw it and tell it, as asked for.

        Args:
            stats: Of a stream that has ended.
            stem: The latents' name.
            err: Tell it on standard error.
            quiet: Do not tell where it was drawn.
        """
        if self.timeline is not None:
            name = self.timeline.name.replace(STEM, stem)
            drawn = write_timeline(stats, self.timeline.with_name(name))
            if not quiet:
                typer.echo(f"timeline: {drawn}", err=err)
        if self.report:
            for name, one in _each(stats).items():
                typer.echo("\n".join(filter(None, (name, advice(one)))), err=err)


def _each(stats: StreamStats | AVStats) -> dict[str, StreamStats]:
    if isinstance(stats, StreamStats):
        return {"": stats}
    return {"video:": stats.video, "sound:": stats.audio}
