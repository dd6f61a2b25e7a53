"""The description of an array that zarr's format, version 3, wants in the array's directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from streamvae._pixels import Kind

from ._durable import sync_data
from ._left import damaged, read_object, sizes

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


def described(
    directory: Path, kind: Kind
) -> tuple[tuple[int, ...], np.dtype[np.generic], int, object] | None:
    """Read the description in ``directory`` of a stream of ``kind``.

    Returns:
        Of its pieces the shape (B, t, ...), the dtype, how long the array is, and the codecs; None
        where there is no description yet.

    Raises:
        UsageError: It is none that `metadata` has made.
    """
    path = directory / ABOUT
    about = read_object(path)
    if about is None:
        return None
    layout = _layout(about, kind)
    if layout is None or layout[1].name != about["data_type"]:
        raise damaged(path, "the description of another array")
    piece, dtype, length = layout
    ours = metadata(piece, dtype, length, kind, None)
    other = [name for name, value in ours.items() if name != "codecs" and about.get(name) != value]
    if other:
        raise damaged(path, f"another {' and '.join(other)}")
    return piece, dtype, length, about.get("codecs")


def _layout(
    about: Mapping[str, object], kind: Kind
) -> tuple[tuple[int, ...], np.dtype[np.generic], int] | None:
    """Shape of the pieces, dtype and length as they are said to be, if that makes sense."""
    grid = about.get("chunk_grid")
    regular = grid.get("configuration") if isinstance(grid, dict) else None
    piece = sizes(regular.get("chunk_shape")) if isinstance(regular, dict) else None
    shape, name, axes = sizes(about.get("shape")), about.get("data_type"), len(AXES[kind])
    if not piece or not shape or 0 in piece or name not in {"uint8", "float32"}:
        return None
    if len(piece) != len(shape) or len(shape) not in {axes, axes + 1}:
        return None
    batch = shape[0] if len(shape) > axes else 1
    each = (batch, *piece[-axes:])
    return each, np.dtype(str(name)), shape[-axes]


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
