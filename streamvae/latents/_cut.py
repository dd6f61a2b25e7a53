"""Cutting latents to a codec's chunk plan: views only, so that the loop does no tensor's work."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

import torch

from .._chunks import LatentChunk
from .._errors import LatentsError
from ..abc import ChunkPlan, Codec
from ._source import LatentSource, Piece

#: What latents may be made of.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


async def cut(
    source: LatentSource, plan: ChunkPlan, codec: Codec
) -> AsyncGenerator[LatentChunk, None]:
    """Cut the latents of ``source`` into numbered chunks along ``codec.axis``.

    A chunk is given as soon as its latents are there; the last may be short. Pictures may be of
    several sizes: a chunk ends where another size begins. The source is not closed: that is for who
    opened it.

    Raises:
        LatentsError: What came is not what ``codec`` decodes, none came, or a piece does not go on
            where the first began. The chunks before it were given.
    """
    await source.open()
    check_known(source, codec)
    cutter = _Cutter(source, codec)
    try:
        for index, size in enumerate(plan.sizes()):
            if not await cutter.fill(size):
                break
            yield cutter.chunk(index)
        cutter.end()
    finally:
        cutter.clear()  # a kept traceback must not keep latents


async def whole(source: LatentSource, codec: Codec) -> Piece | None:
    """Read all latents at once where their number is known; None where they come one by one.

    Raises:
        LatentsError: They are not what ``codec`` decodes.
    """
    await source.open()
    check_known(source, codec)
    if source.shape is None:
        return None
    return await source.piece(codec.axis, source.shape[codec.axis])


def check_known(source: LatentSource, codec: Codec) -> None:
    """Check what is known of ``source`` before it is read.

    Raises:
        LatentsError: Naming what was expected and what is there.
    """
    if source.dtype is not None:
        _check_dtype(source.dtype)
    if source.shape is not None:
        _check_shape(source.shape, codec)


class _Cutter:
    """The latents at hand: what is left of the last piece, and what the next chunk is made of."""

    def __init__(self, source: LatentSource, codec: Codec) -> None:
        self._source = source
        self._codec = codec
        self._axis = codec.axis
        self._first: _Kind | None = None
        self._sizes_vary = codec.kind == "image"
        self._pieces = 0
        self._rest: Piece | None = None
        self._taken: list[Piece] = []

    async def fill(self, size: int) -> bool:
        """Take latents for a chunk of ``size``, fewer at the end; false when there are none."""
        missing = size
        while missing and (self._rest is not None or await self._receive(missing)):
            if self._taken and not self._fits():
                break
            missing -= self._take(missing)
        return bool(self._taken)

    def chunk(self, index: int) -> LatentChunk:
        """Give what was taken as a chunk, and let go of it."""
        taken, self._taken = self._taken, []
        events = {id(piece.arrived): piece.arrived for piece in taken}  # once, if shared
        return LatentChunk(
            index,
            tuple(piece.tensor for piece in taken),
            tuple(event for event in events.values() if event is not None),
        )

    def end(self) -> None:
        """Refuse a source that gave nothing."""
        if not self._pieces:
            raise LatentsError("expected at least one latent, but none came")

    def clear(self) -> None:
        """Let go of all latents."""
        self._rest = None
        self._taken = []

    async def _receive(self, wanted: int) -> bool:
        piece = await self._source.piece(self._axis, wanted)
        if piece is None:
            return False
        self._check(piece.tensor)
        self._pieces += 1
        self._rest = piece
        return True

    def _check(self, tensor: torch.Tensor) -> None:
        if self._first is None:
            _check_tensor(tensor)
            if self._source.shape is None:  # else the whole was checked, and this is a part of it
                _check_shape(tuple(tensor.shape), self._codec)
            self._first = _Kind.of(tensor, self._axis)
            return
        kind = _Kind.of(tensor, self._axis)
        if self._sizes_vary and replace(kind, shape=()) == replace(self._first, shape=()):
            _check_shape(tuple(tensor.shape), self._codec)
            return
        if kind != self._first:
            raise LatentsError(
                f"expected piece {self._pieces} of the latents to go on as the first began, with "
                f"{self._first}, got {kind}"
            )
        if not tensor.shape[self._axis]:
            raise LatentsError(
                f"expected at least one latent in piece {self._pieces}, got shape "
                f"{tuple(tensor.shape)}"
            )

    def _fits(self) -> bool:
        """Whether what is left can be joined to what was taken."""
        assert self._rest is not None  # noqa: S101  # the caller has seen it
        rest, taken = self._rest.tensor, self._taken[0].tensor
        return not self._sizes_vary or rest.shape[1:] == taken.shape[1:]

    def _take(self, wanted: int) -> int:
        piece, self._rest = self._rest, None
        assert piece is not None  # noqa: S101  # the caller has seen it
        length = piece.tensor.shape[self._axis]
        if length <= wanted:
            self._taken.append(piece)
            return length
        part = Piece(piece.tensor.narrow(self._axis, 0, wanted), piece.arrived)
        rest = Piece(piece.tensor.narrow(self._axis, wanted, length - wanted), piece.arrived)
        self._taken.append(part)
        self._rest = rest
        return wanted


@dataclass(frozen=True, slots=True)
class _Kind:
    """What pieces must have in common to be joined."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor, axis: int) -> _Kind:
        shape: list[int | None] = list(tensor.shape)
        if axis < len(shape):
            shape[axis] = None
        return cls(tuple(shape), tensor.dtype, tensor.device)

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"shape ({sizes}), {self.dtype} on {self.device}"


def _check_tensor(tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise LatentsError(f"expected dense latents, got {tensor.layout}")
    if tensor.is_meta:
        raise LatentsError("expected latents that hold numbers, got latents on the meta device")
    _check_dtype(tensor.dtype)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        known = ", ".join(str(each) for each in DTYPES)
        raise LatentsError(f"expected latents in one of {known}, got {dtype}")


def _check_shape(shape: tuple[int, ...], codec: Codec) -> None:
    if len(shape) == len(codec.layout) and shape[codec.axis] == 0:
        raise LatentsError(f"expected at least one latent ({codec.layout}), got shape {shape}")
    codec.check(shape)
