"""From whatever the user has to a source of latents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._errors import LatentsError
from ._iterate import AsyncIterableSource, IterableSource
from ._read import STORES, ReadSource, array_source
from ._source import Item, LatentSource, Mark, TensorSource, to_tensor, viewable

#: What latents may come as.
LatentsLike = (
    torch.Tensor | npt.NDArray[Any] | str | os.PathLike[str] | Iterable[Item] | AsyncIterable[Item]
)


def open_latents(given: LatentsLike, mark: Mark) -> LatentSource:
    """Make a source of what was given. Cheap: looks at its type, for a file at its name.

    Args:
        given: All latents (a tensor, an array, the path of a ``.safetensors``, ``.pt``, ``.pth`` or
            ``.npy`` file), or a sync or async iterable of runs of them. Each is of full rank,
            floating point; files with several tensors hold theirs under ``"latents"``. A list or
            tuple is an iterable.
        mark: Called for each tensor given, on the thread that has just got it: here for a tensor,
            on the reader thread for an iterable, on the loop for an async one. Its event travels
            with every chunk the tensor is part of.

    Raises:
        LatentsError: It is none of these, or the file is not there.
    """
    if isinstance(given, torch.Tensor):
        return TensorSource(given, mark)
    if isinstance(given, np.ndarray):
        if viewable(given):
            return TensorSource(to_tensor(given), mark)
        return array_source(given)
    if isinstance(given, (str, os.PathLike)):
        return _file_source(Path(given))
    if isinstance(given, AsyncIterable):
        return AsyncIterableSource(given, mark)
    other: object = given  # whatever the annotation says
    # A pipeline's output is a mapping: iterating it would give names.
    if isinstance(other, Iterable) and not isinstance(other, (bytes, bytearray, Mapping)):
        return IterableSource(other, mark)
    raise LatentsError(
        "expected latents as a tensor, a numpy array, the path of a file "
        f"({', '.join(STORES)}), an iterable or an async iterable, got {type(given).__name__}"
    )


def _file_source(path: Path) -> ReadSource:
    store = STORES.get(path.suffix.lower())
    if store is None:
        raise LatentsError(f"expected a file of latents ({', '.join(STORES)}), got {str(path)!r}")
    if not path.is_file():
        raise LatentsError(f"expected a file of latents, found none at {str(path)!r}")
    return ReadSource(lambda: store(path))
