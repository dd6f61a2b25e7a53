"""A frame as it goes over a wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What frames are encoded as: a JPEG for each, or a fragment of H.264 in MP4 for each.
PacketFormat = Literal["jpeg", "mp4"]


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame, encoded; shared by all viewers of its format.

    Attributes:
        index: The frame's: a gap in it is what was dropped.
        time: The frame's: seconds from the start; None where there is no rate.
        data: A whole JPEG file, or one fragment (moof and mdat) of an MP4, which plays behind
            ``Subscription.header``.
        key: Whether one can begin to watch with it: always so for JPEG.
    """

    index: int
    time: float | None
    data: bytes
    key: bool = True
