"""The shortcut of Wan 2.2's up blocks: values repeated in time and space, and added."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Repeat:
    """Each pixel of an earlier level in each of the pixels that it became.

    Where that level has more channels, they are dealt out: channel c of pixel (a, b, d) of the
    ``time`` x 2 x 2 that come of one is channel c * n + (the first digits of (a, b, d)) of its n
    times as many.

    Attributes:
        time: Frames that come of one.
        channels: Of the later level.
    """

    time: int
    channels: int

    def add(self, source: torch.Tensor, to: torch.Tensor, *, first: bool) -> None:
        """Add to ``to``, in place, by one launch.

        Args:
            source: (frames, height, width, channels of the earlier level).
            to: (frames * time, 2 * height, 2 * width, channels).
            first: Of the first chunk's single frame, only what its last one would be is there.
        """
        frames, height, width, channels = source.shape
        digits, rest = [], channels // self.channels
        for size in (self.time, 2, 2):
            digits.append(size if rest > 1 else 1)
            rest = rest // size if rest > 1 else 1
        term = source.view(frames, height, width, self.channels, *digits)
        term = term.permute(0, 4, 1, 5, 2, 6, 3)
        time = self.time
        if first:
            term, time = term[:, -1:], 1
        to.view(frames, time, height, 2, width, 2, self.channels).add_(term)
