"""The memory of a cached decoder at fixed addresses, so that its kernels can be recorded.

diffusers' cached decoders put a new tensor into their list of caches wherever a convolution has
run, a copy (``clone``) of the last frames that it got. A graph needs the same memory every time. So
the list that we hand in writes what it is given into buffers of its own, and while a graph is
recorded those copies are left out: the buffer is written from where the copy would have been made.
That is right as long as nobody writes to that place in between, which its version counter tells.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import SupportsIndex, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

Entry = torch.Tensor | str | None


class StaticCache(list[Entry]):
    """A list of caches (``feat_cache``) over buffers that stay where they are.

    Args:
        buffers: What a steady chunk left in the list: tensors become the buffers, in place.
    """

    def __init__(self, buffers: Iterable[Entry]) -> None:
        super().__init__(buffers)
        self._buffers = tuple(entry if isinstance(entry, torch.Tensor) else None for entry in self)
        self.lent: Lent | None = None

    @property
    def nbytes(self) -> int:
        """Of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers if buffer is not None)

    @property
    def filled(self) -> bool:
        """Whether every buffer holds something."""
        return all(
            buffer is None or entry is buffer
            for buffer, entry in zip(self._buffers, self, strict=True)
        )

    def refill(self) -> None:
        """Count every buffer as holding something: their values are what they were."""
        for index, buffer in enumerate(self._buffers):
            if buffer is not None:
                super().__setitem__(index, buffer)

    def rewind(self) -> None:
        """Be as empty as for a first chunk; the buffers stay."""
        for index in range(len(self)):
            super().__setitem__(index, None)

    def __setitem__(self, index: SupportsIndex | slice, value: object) -> None:
        """Write what a convolution is to remember into its buffer.

        Raises:
            TypeError: It is nothing that diffusers' decoders remember.
        """
        if isinstance(index, slice):
            raise TypeError("expected one place of the cache, got a slice")
        buffer = self._buffers[index]
        if buffer is None:
            if not (value is None or isinstance(value, (torch.Tensor, str))):
                raise TypeError(f"expected a tensor, a mark or None, got {type(value).__name__}")
            super().__setitem__(index, value)
            return
        if self.lent is not None:
            self.lent.returned(value)
        if isinstance(value, torch.Tensor):
            # The first chunk has fewer frames; what is before them is the padding, zeros.
            missing = buffer.shape[2] - value.shape[2]
            if missing:
                buffer[:, :, :missing].zero_()
            buffer[:, :, missing:].copy_(value)
        else:
            buffer.zero_()  # a mark: nothing to remember yet, which is padding too
        super().__setitem__(index, buffer)


class Copies(TorchFunctionMode):
    """Counts a chunk's copies, to tell which of them end in the cache."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., T],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> T:
        """Let everything happen as ever."""
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.clone and isinstance(result, torch.Tensor):
            self._made.append(weakref.ref(result))
        return result

    def kept(self, cache: Iterable[Entry]) -> frozenset[int]:
        """Which of them, by number, are in ``cache`` now."""
        inside = {id(entry) for entry in cache if isinstance(entry, torch.Tensor)}
        return frozenset(n for n, copy in enumerate(self._made) if id(copy()) in inside)


class Lent(TorchFunctionMode):
    """Leaves these copies out: gives what would have been copied itself.

    Args:
        numbers: As `Copies` counted them.
    """

    def __init__(self, numbers: frozenset[int]) -> None:
        super().__init__()
        self._numbers = numbers
        self._count = 0
        self._out: dict[int, tuple[torch.Tensor, int]] = {}

    def __torch_function__(
        self,
        func: Callable[..., T],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> T:
        """Let everything but the copies happen as ever."""
        source = self._to_lend(args) if func is torch.Tensor.clone else None
        if source is None:
            return func(*args, **(kwargs or {}))
        self._out[id(source)] = (source, source._version)
        return source  # type: ignore[return-value]  # clone() gives a tensor

    def _to_lend(self, args: tuple[object, ...]) -> torch.Tensor | None:
        number, self._count = self._count, self._count + 1
        source = args[0]
        return source if number in self._numbers and isinstance(source, torch.Tensor) else None

    def returned(self, value: object) -> None:
        """Note that the cache is about to read ``value``.

        Raises:
            RuntimeError: Somebody has written to it since it was to be copied.
        """
        source, version = self._out.pop(id(value), (None, 0))
        if source is not None and source._version != version:
            raise RuntimeError("a decoder wrote to what it was to remember")

    def settle(self) -> None:
        """Check at the end of the chunk that all of them went into the cache.

        Raises:
            RuntimeError: Some did not.
        """
        if self._out:
            raise RuntimeError(f"{len(self._out)} of a decoder's copies did not go to its cache")
