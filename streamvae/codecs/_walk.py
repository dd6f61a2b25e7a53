"""Streams over video codecs: clips of a batch and tiles of a picture, each on its own walk.

How one tile of one clip walks through time is a family's own affair (`Walk`). What is common is
here: private state for every stream, batches sliced where the autoencoder slices them, spatial
tiles side by side, and that everything is let go of on every way out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from typing import ClassVar, Protocol, runtime_checkable

import torch

from streamvae._errors import LatentsError
from streamvae._pixels import Kind
from streamvae.abc import Decoder

from ._decoder import StreamDecoder
from ._module import ModuleCodec, check_shape, clips
from ._overrides import is_compiled
from ._tiles import Grid


class Walk(Protocol):
    """One tile of one clip (or of a batch decoded together) on its way through time.

    Used on the launch thread only, without gradients. Frames come in order; all tiles of a clip
    must give equally many at each call.
    """

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next latents, (B, C, t, h, w), as `WalkingCodec.prologue` gave them.

        Returns:
            Frames (B, C', T, H, W), or None when there is nothing to give yet.
        """
        ...

    def drain(self) -> torch.Tensor | None:
        """Give the next frames of what is held after the last latent; None when there are none."""
        ...

    def clear(self) -> None:
        """Let go of all state, in place. Idempotent."""
        ...


#: What a walk keeps between chunks: tensors, nested as its family nests them.
State = dict[object, object] | list[object]


@runtime_checkable
class Steady(Walk, Protocol):
    """A walk whose chunks, after the first, are all the same function of latents and state."""

    @property
    def state(self) -> State | None:
        """What it keeps now; None before the first chunk, and where it grows."""
        ...

    def put(self, state: State) -> None:
        """Keep this instead."""
        ...

    def is_step(self, latents: torch.Tensor) -> bool:
        """Whether these latents are one step."""
        ...

    def stepper(self) -> Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]:
        """The function: latents and state to frames and state. It keeps no autoencoder alive.

        It may write to the containers of the state that it is given, not to the tensors.
        """
        ...


class WalkingCodec(ModuleCodec, ABC):
    """A video codec made of walks: (B, C, T, h, w) to (B, C', T', H, W).

    A family says how one walk goes (`walk`), and overrides what differs from these defaults.
    """

    kind: ClassVar[Kind] = "video"
    layout: ClassVar[str] = "BCTHW"
    axis: ClassVar[int] = 2
    sample_rate: int | None = None  # of sound

    channels: int

    #: What goes between a walk and its clip: other ways to launch the same kernels.
    between: Callable[[Walk], Walk] | None = None

    @abstractmethod
    def walk(self) -> Walk:
        """A new walk from the first latent on."""

    def new_walk(self) -> Walk:
        """A new walk, and what goes between."""
        walk = self.walk()
        return walk if self.between is None else self.between(walk)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:  # noqa: ARG002
        """How latents of ``shape`` are cut into spatial tiles now; None if they are not."""
        return None

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """What ``vae.decode`` does to latents before it walks: to all of a clip, or of a tile."""
        return latents

    def epilogue(self, frames: torch.Tensor, *, tiled: bool) -> torch.Tensor:  # noqa: ARG002
        """What ``vae.decode`` does to the frames of whole pictures, after tiles were blended."""
        return frames

    @property
    def wants_all(self) -> bool:
        """Whether the prologue's rounding depends on how many latents there are."""
        return False

    #: Whether ``vae.decode`` has the prologue over all latents of a tile too, not chunk by chunk.
    tiles_want_all: ClassVar[bool] = False

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length, any size."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Whether there is compiled code that is not run."""
        if not any(map(is_compiled, self.entered())):
            return ()
        note = (
            f"streams call the layers of {self.family}'s decoder one by one: what was compiled is "
            "not used (single layers would be)"
        )
        return (note,)

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Nothing is held back."""
        return 0

    def decoder(self) -> Decoder:
        """A stream with state of its own."""
        return WalkDecoder(self)


class WalkDecoder(StreamDecoder):
    """One stream's walks: one for each tile, and for each clip where the autoencoder slices."""

    def __init__(self, codec: WalkingCodec) -> None:
        self._codec = codec
        self._clips: list[_Clip] = []
        self._hidden: list[torch.Tensor] = []  # at most one: the prologue's of all latents
        self._clip: tuple[int, ...] = ()
        self._done = 0

    def begin(self, latents: torch.Tensor) -> None:
        """See `streamvae.abc.Decoder.begin`."""
        self._require_open()
        self._codec.check(tuple(latents.shape))
        self._codec.onload()
        if self._codec.grid(tuple(latents.shape)) is None:
            self._hidden[:] = [self._by_clip(latents, self._codec.prologue)]
        elif self._codec.tiles_want_all:
            self._start(latents, (*latents.shape[:2], *latents.shape[3:]))
            for clip, item in zip(self._clips, self._items(latents), strict=True):
                clip.begin(item)

    def _clear(self) -> None:
        self._hidden.clear()
        for clip in self._clips:
            clip.clear()
        self._clips.clear()

    def _push(self, latents: torch.Tensor) -> torch.Tensor | None:
        self._codec.onload()
        clip = (*latents.shape[:2], *latents.shape[3:])
        if not self._clips:
            self._start(latents, clip)
        elif clip != self._clip:
            raise LatentsError(
                "expected every chunk to have the batch, channels, height and width of the first, "
                f"{self._clip}, got {clip}"
            )
        hidden = self._next(latents)
        pairs = zip(self._clips, self._items(hidden), strict=True)
        return _joined([one.push(item) for one, item in pairs])

    def _items(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return clips(latents) if len(self._clips) > 1 else (latents,)

    def _rest(self) -> torch.Tensor | None:
        self._codec.onload()
        return _joined([clip.drain() for clip in self._clips])

    def _start(self, latents: torch.Tensor, clip: tuple[int, ...]) -> None:
        shape = tuple(latents.shape)
        self._codec.check(shape)
        self._clip = clip
        grid = self._codec.grid(shape)
        count = shape[0] if self._sliced(latents) else 1
        self._clips.extend(_Clip(self._codec, grid, shape) for _ in range(count))

    def _next(self, latents: torch.Tensor) -> torch.Tensor:
        """What the prologue makes of these latents, or made of them when it had all."""
        if self._hidden:
            length = latents.shape[2]
            hidden = self._hidden[0].narrow(2, self._done, length)
            self._done += length
            return hidden
        if self._clips[0].grid is not None:
            return latents
        return self._by_clip(latents, self._codec.prologue)

    def _by_clip(
        self, latents: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        if not self._sliced(latents):
            return function(latents)
        return torch.cat([function(clip) for clip in clips(latents)])

    def _sliced(self, latents: torch.Tensor) -> bool:
        return bool(getattr(self._codec.vae, "use_slicing", False)) and latents.shape[0] > 1


class _Clip:
    """One clip's walks: one, or one for each spatial tile, blended as they go."""

    def __init__(self, codec: WalkingCodec, grid: Grid | None, shape: tuple[int, ...]) -> None:
        self._codec = codec
        self.grid = grid
        self._windows = [] if grid is None else grid.windows(shape)
        self._walks = (
            [[codec.new_walk()]]
            if grid is None
            else [[codec.new_walk() for _ in row] for row in self._windows]
        )
        self._hidden: list[list[torch.Tensor]] = []  # the prologue's of all latents of every tile
        self._done = 0

    def walks(self) -> Iterator[Walk]:
        """Its walks, of all tiles."""
        return chain.from_iterable(self._walks)

    def begin(self, latents: torch.Tensor) -> None:
        """Have the prologue over all latents of every tile."""
        self._hidden[:] = [
            [self._codec.prologue(latents[..., top, left]) for top, left in row]
            for row in self._windows
        ]

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        if self.grid is None:
            return self._whole(self._walks[0][0].push(latents))
        tiles = self._tiles(latents)
        return self._blended([
            [walk.push(tile) for walk, tile in zip(walks, row, strict=True)]
            for walks, row in zip(self._walks, tiles, strict=True)
        ])

    def _tiles(self, latents: torch.Tensor) -> list[list[torch.Tensor]]:
        if not self._hidden:
            prologue = self._codec.prologue
            return [
                [prologue(latents[..., top, left]) for top, left in row] for row in self._windows
            ]
        start, length = self._done, latents.shape[2]
        self._done += length
        return [[tile.narrow(2, start, length) for tile in row] for row in self._hidden]

    def drain(self) -> torch.Tensor | None:
        if self.grid is None:
            return self._whole(self._walks[0][0].drain())
        return self._blended([[walk.drain() for walk in row] for row in self._walks])

    def clear(self) -> None:
        self._hidden.clear()
        for walk in self.walks():
            walk.clear()

    def _whole(self, frames: torch.Tensor | None) -> torch.Tensor | None:
        return None if frames is None else self._codec.epilogue(frames, tiled=False)

    def _blended(self, rows: list[list[torch.Tensor | None]]) -> torch.Tensor | None:
        given = [[tile for tile in row if tile is not None] for row in rows]
        if not given[0]:
            return None
        assert self.grid is not None  # noqa: S101  # the caller has seen it
        return self._codec.epilogue(self.grid.blend_tiles(given, self._codec.module), tiled=True)


def _joined(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    return given[0] if len(given) == 1 else torch.cat(given)
