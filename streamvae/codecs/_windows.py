"""Windows of time that overlap: each is decoded when its latents are there, and joined to the last.

diffusers walks some autoencoders this way by design and others on request. How windows lie is the
same for all of them (`Windows`), and so is the walk (`WindowWalk`); how the frames of two windows
are joined, and what becomes of the latents after the last whole window, is a family's own affair
(`Seam`). What cannot be walked at all is held until the end (`HeldWalk`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch

from streamvae.abc import ChunkPlan

from ._module import check_count


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows lie: the first at latent 0, and all that are whole.

    Attributes:
        size: Latents of a window.
        stride: Latents from the start of a window to that of the next; ``size`` at most.
    """

    size: int
    stride: int

    def cut(self, latents_per_chunk: int | None) -> ChunkPlan:
        """Chunks that make one window whole each; other sizes give the same bits.

        Raises:
            UsageError: ``latents_per_chunk`` is below one.
        """
        check_count(latents_per_chunk)
        rest = latents_per_chunk or self.stride
        return ChunkPlan(self.size - self.stride + rest, rest)

    def whole(self, latents: int) -> int:
        """How many windows ``latents`` latents make whole."""
        return max(0, (latents - self.size) // self.stride + 1)

    def left(self, latents: int) -> int:
        """How many latents lie from the start of the first window on that is not whole."""
        return latents - self.stride * self.whole(latents)


class Seam(Protocol):
    """How windows become frames; keeps one walk's edge between a window and the next."""

    def join(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a whole window, (B, C, size, h, w), and give the frames that are final now."""
        ...

    def end(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Give the next frames after the last whole window.

        Args:
            latents: All from the start of the next window on, fewer than a window has; possibly
                none. The call after this one gets them from one stride further on.
        """
        ...

    def clear(self) -> None:
        """Let go of all state, in place. Idempotent."""
        ...


class WindowWalk:
    """One walk over windows: holds the latents of one window, and whatever its seam keeps."""

    def __init__(self, windows: Windows, seam: Seam) -> None:
        self._windows = windows
        self._seam = seam
        self._held: list[torch.Tensor] = []  # at most one: room for the latents of a window
        self._count = 0

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """See `streamvae.codecs._walk.Walk.push`."""
        if not self._held:
            batch, channels, _, *picture = latents.shape
            self._held.append(latents.new_empty(batch, channels, self._windows.size, *picture))
        held = self._held[0]
        given = []
        taken = 0
        while taken < latents.shape[2]:
            count = min(self._windows.size - self._count, latents.shape[2] - taken)
            held.narrow(2, self._count, count).copy_(latents.narrow(2, taken, count))
            taken += count
            self._count += count
            if self._count == self._windows.size:
                given.append(self._seam.join(held))
                self._advance()
        return _in_time(given)

    def drain(self) -> torch.Tensor | None:
        """See `streamvae.codecs._walk.Walk.drain`."""
        if not self._held:
            return None
        frames = self._seam.end(self._held[0].narrow(2, 0, self._count))
        self._advance()
        return frames

    def clear(self) -> None:
        """See `streamvae.codecs._walk.Walk.clear`."""
        self._held.clear()
        self._seam.clear()

    def _advance(self) -> None:
        held, stride = self._held[0], self._windows.stride
        kept = max(0, self._count - stride)
        if kept:
            # Both ends may overlap, so not in one copy.
            held.narrow(2, 0, kept).copy_(held.narrow(2, stride, kept).clone())
        self._count = kept


class HeldWalk:
    """A walk that holds all latents, then gives frames part by part, one for each drain.

    Args:
        decode: Gives the frames of all latents, (B, C, T, h, w), in parts.
    """

    def __init__(
        self, decode: Callable[[torch.Tensor], Generator[torch.Tensor, None, None]]
    ) -> None:
        self._decode = decode
        self._latents: list[torch.Tensor] = []
        self._parts: list[Generator[torch.Tensor, None, None]] = []  # at most one

    def push(self, latents: torch.Tensor) -> None:
        """See `streamvae.codecs._walk.Walk.push`."""
        self._latents.append(latents.clone())

    def drain(self) -> torch.Tensor | None:
        """See `streamvae.codecs._walk.Walk.drain`."""
        if not self._parts:
            if not self._latents:
                return None
            whole = self._latents[0] if len(self._latents) == 1 else torch.cat(self._latents, 2)
            self._latents.clear()
            self._parts.append(self._decode(whole))
        return next(self._parts[0], None)

    def clear(self) -> None:
        """See `streamvae.codecs._walk.Walk.clear`."""
        self._latents.clear()
        for parts in self._parts:
            parts.close()
        self._parts.clear()


def cut_held(latents: int | None, latents_per_chunk: int | None) -> ChunkPlan:
    """Chunks for a `HeldWalk`: all latents in one, where they are known.

    Raises:
        UsageError: ``latents_per_chunk`` is below one.
    """
    check_count(latents_per_chunk)
    count = latents_per_chunk or latents or 1
    return ChunkPlan(count, count)


def _in_time(parts: list[torch.Tensor]) -> torch.Tensor | None:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
