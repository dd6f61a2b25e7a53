"""What people do without streamvae: decode the whole clip, make pictures of it, write them."""

from __future__ import annotations

import functools

from _loops import Case, on_launch_thread
from _measure import Json, alternate

from streamvae.report._bench_loops import people


def ways(case: Case, rounds: int) -> dict[str, Json]:
    """Seconds into an MP4, with the streams' preset.

    Without a run beforehand: the clip has been decoded in one piece before, to compare bits.
    """
    runs = {
        "mp4, what people do, veryfast": functools.partial(
            on_launch_thread, case, lambda this: people(this, "mp4")
        )
    }
    return alternate(runs, rounds, warm=False)
