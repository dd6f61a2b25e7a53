"""Video whose chunks are part of the function: a norm runs over each, a cache goes between them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import ClassVar, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan

from ._module import check_count, check_decode_is_own
from ._walk import State, Walk, WalkingCodec


class Partition(WalkingCodec):
    """Autoencoders that cut latents into segments of their own: (B, C, T, h, w) to frames.

    A chunk is one segment or several, and is decoded segment by segment. What a family says is
    where it cuts (`own`), how it decodes a segment (`segment`), and how its upsampling in time
    counts (`upsampled`).
    """

    exactness: ClassVar[str] = "equal bit for bit to vae.decode, whose segments are kept"
    #: By how much other segments differ, where that is no more than rounding.
    rounding: str | None = None

    _doublings: int  # of frames
    _scale: int  # pixels along a side of a latent

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)

    @abstractmethod
    def own(self, latents: int | None) -> ChunkPlan:
        """Where ``vae.decode`` cuts so many latents; None if they are not counted yet."""

    @abstractmethod
    def segment(self, latents: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """Decode a segment, given the state that the one before left; None for the first."""

    def upsampled(self, frames: int, *, first: bool) -> int:
        """Frames that one doubling makes of a segment's: the very first frame stays one."""
        return 2 * frames - first

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:
        """As ``vae.decode`` does, or several of its segments at a time."""
        check_count(latents_per_chunk)
        own = self.own(latents)
        size = latents_per_chunk or own.rest
        if size % own.rest and (mode == "exact" or self.rounding is None):
            expected = f"expected latents_per_chunk to be a multiple of {own.rest}"
            if self.rounding is None:
                raise UsageError(
                    f"{expected}, the latents that {self.family} decodes together and normalizes "
                    f"as one (others give other frames, not just other rounding), got {size}"
                )
            raise UsageError(
                f"{expected} in exact mode, since other chunks differ from vae.decode by rounding "
                f"({self.rounding} in float32), got {size}; pass mode='fast'"
            )
        return ChunkPlan(max(1, own.first - own.rest + size), size)

    def frames(self, latents: int) -> int:
        """As many as ``vae.decode`` gives: each of its segments has its own count."""
        total, first = 0, True
        for count in portions(latents, self.own(latents).sizes()):
            given = count
            for _ in range(self._doublings):
                given = self.upsampled(given, first=first)
            total, first = total + given, False
        return total

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: a power of two a latent; tiles may lose or gain some."""
        grid = self.grid(shape)
        if grid is not None:
            return grid.picture(shape, self._scale)
        return shape[3] * self._scale, shape[4] * self._scale

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's scaling factor, in the order of operations of diffusers' pipelines."""
        return 1 / cast("float", self.vae.config["scaling_factor"]) * latents

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _Segments(self)


def portions(total: int, sizes: Iterable[int]) -> Iterator[int]:
    """Cut ``total`` into ``sizes``, as far as they are needed; the last may be smaller."""
    for size in sizes:
        yield min(size, total)
        total -= size
        if total <= 0:
            return


class _Segments:
    """One walk's state: what the last segment left, if there was one."""

    def __init__(self, codec: Partition) -> None:
        self._codec = codec
        self._held: list[State] = []

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        own = self._codec.own(latents.shape[2])
        sizes = repeat(own.rest) if self._held else own.sizes()
        counts = list(portions(latents.shape[2], sizes))
        frames = [self._segment(part) for part in latents.split_with_sizes(counts, 2)]
        return frames[0] if len(frames) == 1 else torch.cat(frames, 2)

    def _segment(self, latents: torch.Tensor) -> torch.Tensor:
        frames, state = self._codec.segment(latents, self._held[0] if self._held else None)
        self._held[:] = [state]
        return frames

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        _empty(self._held)

    @property
    def state(self) -> State | None:
        """See `streamvae.codecs._walk.Steady`."""
        return self._held[0] if self._held else None

    def put(self, state: State) -> None:
        self._held[:] = [state]

    def is_step(self, latents: torch.Tensor) -> bool:
        return latents.shape[2] == self._codec.own(latents.shape[2]).rest

    def stepper(self) -> Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]:
        again = self._codec.renewal()
        return lambda latents, state: cast("Partition", again()).segment(latents, state)


def _empty(state: State | list[State]) -> None:
    """Let go of everything, also in the containers within: a kept traceback may know them."""
    for kept in state.values() if isinstance(state, dict) else state:
        if isinstance(kept, dict | list):
            _empty(kept)
    state.clear()
