"""What every source of latents is, and the source that is there already: a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from .._errors import LatentsError
from .._events import Event

#: What an iterable of latents may give: full rank, any length along the cut axis.
Item = torch.Tensor | npt.NDArray[Any]

#: Records where the giver's stream stands; called on the thread that has just got the tensor.
Mark = Callable[[torch.Tensor], Event | None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Latents as they came: of full rank, one or more along the axis that is cut.

    Attributes:
        tensor: The latents, detached, on whatever device they were given.
        arrived: Happens when the giver's device has written them; None for host memory.
    """

    tensor: torch.Tensor
    arrived: Event | None


class LatentSource(Protocol):
    """Latents to be read once, in order. Used by one task; never blocks the loop."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of all latents, None where it is not known (yet)."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of all latents, None where it is not known (yet)."""
        ...

    async def open(self) -> None:
        """Find out what can be known beforehand. Idempotent.

        Raises:
            LatentsError: A file does not hold latents.
        """
        ...

    async def piece(self, axis: int, wanted: int) -> Piece | None:
        """Give the next piece, None after the last.

        Args:
            axis: The dimension that is cut; used by sources that know where to cut.
            wanted: How many latents are of use now; sources that cannot cut give what comes next.
        """
        ...

    async def aclose(self) -> None:
        """Let go of everything, at whatever moment. Idempotent."""
        ...


class TensorSource:
    """A tensor that is there already."""

    def __init__(self, tensor: torch.Tensor, mark: Mark) -> None:
        self._piece: Piece | None = Piece(tensor.detach(), mark(tensor))
        self.shape: tuple[int, ...] | None = tuple(tensor.shape)
        self.dtype: torch.dtype | None = tensor.dtype

    @classmethod
    def of(cls, piece: Piece) -> Self:
        """Make a source of a piece that holds all latents."""
        return cls(piece.tensor, lambda _: piece.arrived)

    async def open(self) -> None:
        """Do nothing: everything is known."""

    async def piece(self, axis: int, wanted: int) -> Piece | None:  # noqa: ARG002  # given whole
        """Give the whole tensor, once."""
        piece, self._piece = self._piece, None
        return piece

    async def aclose(self) -> None:
        """Let go of the tensor."""
        self._piece = None


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """The torch dtype of arrays of ``dtype``, in whatever byte order.

    Raises:
        LatentsError: torch has none.
    """
    try:
        return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
    except TypeError as error:
        raise LatentsError(
            f"expected latents of floating point, got an array of {dtype}"
        ) from error


def viewable(array: npt.NDArray[Any]) -> bool:
    """Whether torch can look at ``array`` as it is.

    Not at memory it must not write (it would warn), nor backwards, nor in foreign byte order. A
    memory map could be viewed, but the disk would be read by whoever touches it first.
    """
    return (
        array.flags.writeable
        and array.dtype.isnative
        and all(stride >= 0 for stride in array.strides)
        and not isinstance(array, np.memmap)
    )


def copied(array: npt.NDArray[Any]) -> torch.Tensor:
    """Copy ``array`` into a tensor. Costs time: for a thread, not for the loop."""
    dtype = array.dtype.newbyteorder("=")
    torch_dtype(dtype)
    return torch.from_numpy(np.array(array, dtype=dtype, order="C", copy=True, subok=False))


def to_tensor(item: object, number: int = 0) -> torch.Tensor:
    """Turn what was given into a tensor, copying what torch cannot view.

    Args:
        item: A tensor or an array.
        number: Which one it is of those that came, for the error.

    Raises:
        LatentsError: It is neither, or holds no numbers that torch knows.
    """
    if isinstance(item, torch.Tensor):
        return item.detach()
    if isinstance(item, np.ndarray):
        torch_dtype(item.dtype)
        return torch.from_numpy(item) if viewable(item) else copied(item)
    raise LatentsError(
        f"expected a tensor or a numpy array as piece {number} of the latents, "
        f"got {type(item).__name__}"
    )
