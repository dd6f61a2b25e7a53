"""The timeline of a stream as a picture, as a page, or as a trace for Perfetto."""

from __future__ import annotations

from pathlib import Path

from streamvae._errors import UsageError

from ._lanes import Timed, panels
from ._timeline_html import page
from ._timeline_json import trace
from ._timeline_png import picture

#: What a path may end in.
SUFFIXES = (".html", ".json", ".png")


def write_timeline(stats: Timed, path: str | Path) -> Path:
    """Draw what each chunk of a stream went through: launch, compute, copy and persist, over time.

    Idle times of the device between two chunks are marked, with what it was waiting for.

    Args:
        stats: ``stream.stats``; those of a video with sound; or several by name, drawn one below
            the other on the same scale.
        path: ``.html``: a page that needs nothing else. ``.json``: a trace in Chrome's format,
            which https://ui.perfetto.dev and ``chrome://tracing`` open. ``.png``: a picture.
            A file that is there is replaced.

    Returns:
        The path.

    Raises:
        UsageError: It ends in something else, or nothing has passed yet.
        MissingDependencyError: Pictures need matplotlib (``pip install 'streamvae[plots]'``).
    """
    path = Path(path)
    check_timeline(path)
    drawn = panels(stats)
    if not drawn:
        raise UsageError("expected stats of a stream that gave something, got an empty timeline")
    if path.suffix == ".png":
        path.write_bytes(picture(drawn))
    else:
        path.write_text((page if path.suffix == ".html" else trace)(drawn), encoding="utf-8")
    return path


def check_timeline(path: str | Path) -> None:
    """Refuse, before anything is decoded, a path that no timeline can be written to.

    Raises:
        UsageError: It ends in something unknown, or its folder is not there.
        MissingDependencyError: It is a picture, and matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"expected a timeline ending in {', '.join(SUFFIXES)}, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"expected {path} in a folder that is there, got none")
    if path.suffix == ".png":
        from ._timeline_png import figure_class

        figure_class()
