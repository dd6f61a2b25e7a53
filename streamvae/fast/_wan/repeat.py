"""The shortcut of Wan 2.2's up blocks: values repeated in time and space, and added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True, slots=True)
class Repeat:
    """Each pixel of an earlier level in each of the pixels that it became.

    Where that level has more channels, they are dealt out: channel c of pixel (a, b, d) of the
    ``time`` x 2 x 2 that come of one is channel c * share + (the first digits of (a, b, d)).

    Attributes:
        time: Frames that come of one.
        channels: Of the later level.
        share: Channels of the earlier level for each of these.
    """

    time: int
    channels: int
    share: int

    @property
    def is_fused(self) -> bool:
        """Whether a norm's kernel can add it."""
        return self.share == 1 or (self.share, self.time) == (2, 1)


class Shortcut(NamedTuple):
    """What is added to a chunk's frames.

    Attributes:
        repeat: How.
        source: (frames, height, width, channels of the earlier level).
        first: Whether it is a first chunk: of its frame, only the last in time is there.
    """

    repeat: Repeat
    source: torch.Tensor
    first: bool

    @property
    def time(self) -> int:
        """Frames that come of one in this chunk."""
        return 1 if self.first else self.repeat.time

    def add_to(self, sums: torch.Tensor) -> None:
        """Add it to (frames * time, 2 * height, 2 * width, channels), in place."""
        repeat = self.repeat
        frames, height, width, _ = self.source.shape
        digits, rest = [], repeat.share
        for size in (repeat.time, 2, 2):
            digits.append(size if rest > 1 else 1)
            rest = rest // size if rest > 1 else 1
        term = self.source.view(frames, height, width, repeat.channels, *digits)
        term = term.permute(0, 4, 1, 5, 2, 6, 3)
        if self.first:
            term = term[:, -1:]
        sums.view(frames, self.time, height, 2, width, 2, repeat.channels).add_(term)
