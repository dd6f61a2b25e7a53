"""Latents that have to be read: files, and arrays that torch cannot view."""

from __future__ import annotations

import pickle
import weakref
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .._errors import ClosedError, LatentsError
from .._threads import Worker, outcome
from ._source import Piece, copied, torch_dtype

#: Of several tensors in a file, the one that is meant.
KEY = "latents"


class Store(Protocol):
    """Something that slices can be read from. Made and used on the reader thread."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, index: tuple[slice, ...]) -> torch.Tensor:
        """Copy a slice into memory of its own."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class ArrayStore:
    """An array in memory or mapped from a file."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array: npt.NDArray[Any] | None = array
        self.shape = array.shape
        self.dtype = torch_dtype(array.dtype)

    @classmethod
    def of_file(cls, path: Path) -> ArrayStore:
        """Map a ``.npy`` file."""
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise _unreadable(path, error) from error
        if not isinstance(array, np.ndarray):  # an archive of several, under the wrong name
            array.close()
            raise LatentsError(f"expected one array in {str(path)!r}, got an .npz archive")
        return cls(array)

    def read(self, index: tuple[slice, ...]) -> torch.Tensor:
        """Copy a slice into memory of its own."""
        assert self._array is not None  # noqa: S101  # calls are serialised, closing is the last
        return copied(self._array[index])

    def close(self) -> None:
        """Let go of the array, and with it of its map."""
        self._array = None


class TorchStore:
    """A tensor in a ``.pt`` file, mapped where the file's format allows."""

    def __init__(self, path: Path) -> None:
        try:
            held = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except pickle.UnpicklingError as error:
            raise LatentsError(
                f"expected only tensors in {str(path)!r}, got something else, or it is damaged"
            ) from error
        except (RuntimeError, ValueError, EOFError) as error:
            raise _unreadable(path, error) from error
        tensor = _only_tensor(path, held)
        self._tensor: torch.Tensor | None = tensor.detach()
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype

    def read(self, index: tuple[slice, ...]) -> torch.Tensor:
        """Copy a slice into memory of its own."""
        assert self._tensor is not None  # noqa: S101  # calls are serialised, closing is the last
        return self._tensor[index].clone()

    def close(self) -> None:
        """Let go of the tensor, and with it of its map."""
        self._tensor = None


class SafetensorsStore:
    """A tensor in a ``.safetensors`` file."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        with ExitStack() as stack:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise _unreadable(path, error) from error
            self._slice = file.get_slice(_only_key(path, list(file.keys())))
            self.shape = tuple(self._slice.get_shape())
            if not self.shape:
                raise LatentsError(f"expected latents in {str(path)!r}, got a single number")
            self.dtype: torch.dtype = self._slice[0:0].dtype
            self._stack = stack.pop_all()

    def read(self, index: tuple[slice, ...]) -> torch.Tensor:
        """Copy a slice into memory of its own."""
        tensor: torch.Tensor = self._slice[index]
        return tensor

    def close(self) -> None:
        """Close the file."""
        self._slice = None
        self._stack.close()


#: Which file names are known, and what opens them.
STORES: dict[str, Callable[[Path], Store]] = {
    ".safetensors": SafetensorsStore,
    ".pt": TorchStore,
    ".pth": TorchStore,
    ".npy": ArrayStore.of_file,
}


class ReadSource:
    """Latents read chunk by chunk on a thread of their own.

    The thread starts with the first call and ends with `aclose`, or when the source is collected.
    """

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self._store: Store | None = None
        self._position = 0
        self._used = False
        self._closed = False
        self._worker = Worker("streamvae-latents")
        weakref.finalize(self, self._worker.close).atexit = False
        self.shape: tuple[int, ...] | None = None
        self.dtype: torch.dtype | None = None

    async def open(self) -> None:
        """Read the header."""
        if self.shape is None and not self._closed:
            self._used = True
            self.shape, self.dtype = await outcome(self._worker.submit(self._header))

    async def piece(self, axis: int, wanted: int) -> Piece | None:
        """Read the next ``wanted`` latents, fewer at the end."""
        await self.open()
        if self._closed or self.shape is None or self._position >= self.shape[axis]:
            return None
        self._used = True
        start = self._position
        self._position = min(start + wanted, self.shape[axis])
        index = (*[slice(None)] * axis, slice(start, self._position))
        return Piece(await outcome(self._worker.submit(self._read, index)), None)

    async def aclose(self) -> None:
        """Close the file and end the thread."""
        used, self._used, self._closed = self._used, False, True
        if used:
            closing = self._worker.submit(self._close)
            self._worker.close()
            # Kept: should this wait be broken, the file is closed all the same.
            await outcome(closing, keep=True)

    def _opened(self) -> Store:
        if self._store is None:  # a wait that was broken may have opened it
            self._store = self._make()
        return self._store

    def _header(self) -> tuple[tuple[int, ...], torch.dtype]:
        store = self._opened()
        return store.shape, store.dtype

    def _read(self, index: tuple[slice, ...]) -> torch.Tensor:
        return self._opened().read(index)

    def _close(self) -> None:
        store, self._store = self._store, None
        self._make = _closed
        if store is not None:
            store.close()


def array_source(array: npt.NDArray[Any]) -> ReadSource:
    """The source of an array whose slices must be copied before torch can see them."""
    store = ArrayStore(array)
    source = ReadSource(lambda: store)
    source.shape, source.dtype = store.shape, store.dtype
    return source


def _closed() -> Store:
    raise ClosedError("expected an open source of latents, got a closed one")


def _unreadable(path: Path, error: Exception) -> LatentsError:
    return LatentsError(f"expected {str(path)!r} to be a {path.suffix} file, but: {error}")


def _only_key(path: Path, keys: list[str]) -> str:
    if KEY in keys:
        return KEY
    if len(keys) == 1:
        return keys[0]
    raise LatentsError(
        f"expected one tensor in {str(path)!r}, or one named {KEY!r}, got {sorted(keys)}"
    )


def _only_tensor(path: Path, held: object) -> torch.Tensor:
    if isinstance(held, Mapping):
        named = {str(key): value for key, value in held.items()}
        if KEY not in named:
            named = {key: each for key, each in named.items() if isinstance(each, torch.Tensor)}
        held = named[_only_key(path, list(named))]
    if not isinstance(held, torch.Tensor):
        raise LatentsError(f"expected a tensor in {str(path)!r}, got {type(held).__name__}")
    return held
