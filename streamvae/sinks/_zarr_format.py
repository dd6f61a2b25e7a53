"""The description of an array that zarr's format, version 3, wants in the array's directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from streamvae._pixels import Kind

from ._durable import sync_data

#: The description's file.
ABOUT = "zarr.json"

#: What the axes are called, behind the batch's; the first one grows.
AXES = {
    "video": ("time", "height", "width", "channel"),
    "image": ("item", "height", "width", "channel"),
    "sound": ("time", "channel"),
}


def metadata(
    piece: tuple[int, ...], dtype: np.dtype[np.generic], length: int, kind: Kind, zstd: int | None
) -> dict[str, object]:
    """Describe an array, all but its attributes.

    Args:
        piece: (B, t, ...): what lies in one file for each of the batch. A batch of 1 has no axis.
        dtype: Of its numbers.
        length: How long the array is along its growing axis.
        kind: Of the stream; says what the axes are called.
        zstd: Level of the compression; None for none.

    The format: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
    """
    batch, steps, *each = piece
    first = 0 if batch > 1 else 1
    shape = [batch, length, *each][first:]
    order = {"configuration": {"endian": sys.byteorder}} if dtype.itemsize > 1 else {}
    codecs: list[object] = [{"name": "bytes"} | order]
    if zstd is not None:
        codecs.append({"name": "zstd", "configuration": {"level": zstd, "checksum": False}})
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [1, steps, *each][first:]},
        },
        # Dots keep all pieces in one directory: nothing to make on the way, and one to sync.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": codecs,
        "dimension_names": ["batch", *AXES[kind]][first:][: len(shape)],
    }


def writer() -> str | None:
    """The version of streamvae; None where it was not installed but is run from its source."""
    try:
        return version("streamvae")
    except PackageNotFoundError:
        return None


def described(directory: Path) -> dict[str, Any] | None:
    """The description in ``directory``; None where there is none that can be read."""
    try:
        about: dict[str, Any] = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about


def describe(directory: Path, about: Mapping[str, object], *, sync: bool) -> None:
    """Replace the description in ``directory``, at once and whole.

    Args:
        directory: The array's.
        about: The description.
        sync: Whether its bytes are to be on the disk first.
    """
    fresh = directory / f"{ABOUT}.new"
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps(about, indent=1) + "\n")
        if sync:
            file.flush()
            sync_data(file.fileno())
    fresh.replace(directory / ABOUT)
