"""Sources over a source: latents seen in another layout, and latents gathered to be counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from .._errors import LatentsError
from ..abc import Codec
from ._source import LatentSource, Piece

View = Callable[[torch.Tensor], torch.Tensor]


def viewed(source: LatentSource, view: View | None) -> LatentSource:
    """``source``, every piece of it through ``view``."""
    return source if view is None else _Viewed(source, view)


async def gathered(source: LatentSource, codec: Codec) -> LatentSource:
    """``source`` if the number of its latents is known; else all of its pieces, once all came."""
    await source.open()
    if source.shape is not None:
        return source
    pieces = deque[Piece]()
    while (piece := await source.piece(codec.axis, 1)) is not None:
        pieces.append(piece)
    return _Gathered(source, pieces, codec.axis)


class _Viewed:
    """A source in another layout. It is given whole, so that a view may join or drop latents."""

    def __init__(self, source: LatentSource, view: View) -> None:
        self._source = source
        self._view = view
        self._given = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        shape = self._source.shape
        return None if shape is None else tuple(self._see(torch.empty(shape, device="meta")).shape)

    @property
    def dtype(self) -> torch.dtype | None:
        return self._source.dtype

    async def open(self) -> None:
        await self._source.open()

    async def piece(self, axis: int, wanted: int) -> Piece | None:
        shape = self._source.shape
        if shape is None:  # they come one by one
            piece = await self._source.piece(axis, wanted)
        elif self._given:
            piece = None
        else:
            self._given = True
            piece = await self._source.piece(0, shape[0])
        return None if piece is None else Piece(self._see(piece.tensor), piece.arrived)

    async def aclose(self) -> None:
        await self._source.aclose()

    def _see(self, latents: torch.Tensor) -> torch.Tensor:
        try:
            return self._view(latents)
        except RuntimeError as error:
            raise LatentsError(
                "expected latents as the pipeline gives them with output_type='latent', got shape "
                f"{tuple(latents.shape)}: {error}"
            ) from None


class _Gathered:
    """All pieces of a source that did not know how many there would be."""

    def __init__(self, source: LatentSource, pieces: deque[Piece], axis: int) -> None:
        self._source = source
        self._pieces = pieces
        self.shape: tuple[int, ...] | None = None
        self.dtype: torch.dtype | None = None
        if pieces:
            first = pieces[0].tensor
            sizes = [p.tensor.shape[axis] if p.tensor.ndim > axis else 0 for p in pieces]
            self.dtype = first.dtype
            if first.ndim > axis:
                self.shape = (*first.shape[:axis], sum(sizes), *first.shape[axis + 1 :])

    async def open(self) -> None:
        """Everything is there."""

    async def piece(self, axis: int, wanted: int) -> Piece | None:  # noqa: ARG002  # as they came
        return self._pieces.popleft() if self._pieces else None

    async def aclose(self) -> None:
        self._pieces.clear()
        await self._source.aclose()
