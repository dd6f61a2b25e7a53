"""What a file of latents says of itself, read from its first bytes, from whoever sent them.

Nothing here trusts a byte: no evaluation, no allocation by a number that was sent, no library that
would. Two formats are known, by content and not by name; whatever can run code when it is loaded
(pickles, and the archives that hold them) is refused by its first bytes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch

from ._problems import Problem

#: Bytes that a header may have: of .npy as numpy itself has it, and far more than a few tensors.
MAX_NPY_HEADER = 10_000
MAX_SAFETENSORS_HEADER = 1 << 18

#: Dimensions that latents may have at most, and how far one may reach.
_MAX_RANK, _MAX_LENGTH = 8, 1 << 31

_NPY = b"\x93NUMPY"
_KEY = "latents"
_WANTED = "expected latents as a .safetensors or .npy file"

_NPY_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}
_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_FLOATS = "float16, bfloat16, float32 or float64"

#: What other files begin with, and what they are.
_OTHERS = {
    b"PK\x03\x04": "a zip archive (.npz, .pt)",
    b"PK\x05\x06": "a zip archive (.npz, .pt)",
    b"\x80": "a pickle",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}

_ITEM = (
    r"'(?:descr'\s*:\s*'(?P<d>[^'\\]{1,64})"
    r"'|fortran_order'\s*:\s*(?P<f>True|False)"
    r"|shape'\s*:\s*\((?P<s>[0-9, ]*)\))"
)
_NPY_HEADER_ITEM = re.compile(_ITEM)
_PLAIN = re.sub(r"\?P<.>", "?:", _ITEM)
_NPY_HEADER = re.compile(rf"\{{\s*{_PLAIN}\s*(?:,\s*{_PLAIN}\s*){{2}},?\s*\}}\s*")


@dataclass(frozen=True, slots=True)
class LatentsHeader:
    """What a file of latents says of itself.

    Attributes:
        format: Of the file; ``"raw"``: nothing but the numbers.
        shape: Of the latents.
        dtype: Of the latents.
        size: Bytes of the whole file.
        fps: Frames a second, where its metadata say so.
    """

    format: Literal["npy", "safetensors", "raw"]
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int
    fps: float | None = None


def parse_header(head: bytes, *, complete: bool) -> LatentsHeader | None:
    """Read the header at the beginning of a file of latents.

    Args:
        head: The first bytes; no more than `header_bound` are ever needed.
        complete: Whether that is the whole file.

    Returns:
        The header; None where more bytes are needed to tell.

    Raises:
        Problem: 415: it is no file of latents. 400: it is damaged. 413: its header is too long.
            422: it holds something else than latents.
    """
    is_npy = head[: len(_NPY)] == _NPY[: len(head)]
    header = _npy(head) if is_npy else _safetensors(head)
    if header is None and complete:
        got = "nothing" if not head else f"one that ends within its header, {len(head)} bytes"
        raise Problem(400, f"{_WANTED}, got {got}")
    return header


def declared_header(dtype: object, shape: object) -> LatentsHeader:
    """What raw latents are, as their giver says.

    Args:
        dtype: ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``.
        shape: A list of numbers.

    Raises:
        Problem: 422: it is something else.
    """
    known = {str(each).removeprefix("torch."): each for each in _SAFETENSORS_DTYPES.values()}
    chosen = known.get(dtype) if isinstance(dtype, str) else None
    if chosen is None:
        raise Problem(422, f"expected dtype {_FLOATS}, got {str(dtype)[:32]!r}")
    if not isinstance(shape, list):
        raise Problem(422, f"expected a shape as a list of numbers, got {str(shape)[:32]!r}")
    sizes = _shape(shape)
    return LatentsHeader("raw", sizes, chosen, math.prod(sizes) * chosen.itemsize)


def header_bound() -> int:
    """How many bytes `parse_header` needs at most."""
    return MAX_SAFETENSORS_HEADER + 8


def _npy(head: bytes) -> LatentsHeader | None:
    if len(head) < 12:
        return None
    version = head[6]
    if version not in {1, 2, 3}:
        raise Problem(415, f"expected .npy of version 1, 2 or 3, got {version}")
    width = 2 if version == 1 else 4
    start = 8 + width
    length = int.from_bytes(head[8:start], "little")
    if length > MAX_NPY_HEADER:
        raise Problem(
            413, f"expected a .npy header of {MAX_NPY_HEADER} bytes at most, got {length}"
        )
    if len(head) < start + length:
        return None
    text = head[start : start + length].decode("latin-1")
    if not _NPY_HEADER.fullmatch(text):
        _damaged("a .npy header with descr, fortran_order and shape of one array of floats", text)
    found = [match.groupdict() for match in _NPY_HEADER_ITEM.finditer(text)]
    told = {key: value for each in found for key, value in each.items() if value is not None}
    if len(told) != 3:
        _damaged("each of descr, fortran_order and shape once in a .npy header", text)
    dtype = _NPY_DTYPES.get(told["d"].lstrip("<>=|"))
    if dtype is None:
        raise Problem(422, f"expected latents of float16, float32 or float64, got {told['d']!r}")
    sizes = told["s"].replace(" ", "").removesuffix(",")
    shape = _shape([_number(each) for each in sizes.split(",")] if sizes else [])
    size = start + length + math.prod(shape) * dtype.itemsize
    return LatentsHeader("npy", shape, dtype, size)


def _number(text: str) -> int:
    if not 1 <= len(text) <= 12:
        _damaged("a shape of numbers in a .npy header", text)
    return int(text)


def _safetensors(head: bytes) -> LatentsHeader | None:
    if len(head) < 9:
        return None
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{":  # asked first: a length may look like any magic number
        name = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
        raise Problem(415, f"{_WANTED}, got {name or 'something else'}")
    if length > MAX_SAFETENSORS_HEADER:
        raise Problem(
            413,
            f"expected a .safetensors header of {MAX_SAFETENSORS_HEADER} bytes at most, "
            f"got one of {length}",
        )
    if len(head) < 8 + length:
        return None
    tensors = _json(head[8 : 8 + length])
    metadata = tensors.pop("__metadata__", {})
    end = 0
    told: dict[str, tuple[str, list[object]]] = {}
    for name, entry in tensors.items():
        dtype, shape, (begin, stop) = _entry(name, entry)
        told[name] = dtype, shape
        if begin > stop or stop > 1 << 62:
            _damaged(f"data_offsets of {name!r} in order", f"{begin}, {stop}")
        end = max(end, stop)
    name = _KEY if _KEY in told else next(iter(told)) if len(told) == 1 else None
    if name is None:
        got = ", ".join(sorted(told)[:8])[:200] or "none"
        raise Problem(422, f"expected one tensor, or one named {_KEY!r}, got {got}")
    _contiguous(tensors)
    kind, listed = told[name]
    if kind not in _SAFETENSORS_DTYPES:
        raise Problem(422, f"expected latents of {_FLOATS}, got {kind[:32]!r}")
    chosen, sizes = _SAFETENSORS_DTYPES[kind], _shape(listed)
    begin, stop = _entry(name, tensors[name])[2]
    if stop - begin != math.prod(sizes) * chosen.itemsize:
        _damaged(f"{math.prod(sizes) * chosen.itemsize} bytes of {name!r}", str(stop - begin))
    return LatentsHeader("safetensors", sizes, chosen, 8 + length + end, _fps(metadata))


def _json(text: bytes) -> dict[str, object]:
    try:
        told = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):  # damaged, nested too deep, a number too long
        _damaged("JSON in the .safetensors header", text[:40].decode("latin-1"))
    if not isinstance(told, dict):
        _damaged("an object in the .safetensors header", type(told).__name__)
    return told


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a key that comes twice")
    return told


def _entry(name: str, entry: object) -> tuple[str, list[object], tuple[int, int]]:
    if isinstance(entry, dict):
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list):
            match offsets:
                case [int(begin), int(stop)] if begin >= 0:
                    return dtype, shape, (begin, stop)
    return _damaged(f"dtype, shape and data_offsets of {name[:64]!r}", "something else")


def _contiguous(tensors: dict[str, object]) -> None:
    """Refuse tensors that overlap or leave holes, as the format's own reader does."""
    at = 0
    for begin, stop in sorted(_entry(name, entry)[2] for name, entry in tensors.items()):
        if begin != at:
            _damaged(f"a tensor that begins at byte {at} of the data", f"one at {begin}")
        at = stop


def _shape(sizes: list[object] | list[int]) -> tuple[int, ...]:
    if not 1 <= len(sizes) <= _MAX_RANK:
        raise Problem(422, f"expected latents of 1 to {_MAX_RANK} dimensions, got {len(sizes)}")
    shape: list[int] = []
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < _MAX_LENGTH:
            raise Problem(422, f"expected a shape of whole numbers, got {str(size)[:32]}")
        shape.append(size)
    return tuple(shape)


def _fps(metadata: object) -> float | None:
    """Frames a second as the demo's latents have them; None where that is no such number."""
    told = metadata.get("fps") if isinstance(metadata, dict) else None
    try:
        fps = float(told) if isinstance(told, str) and len(told) < 32 else math.nan
    except ValueError:
        return None
    return fps if 1 <= fps <= 240 else None


def _damaged(expected: str, got: str) -> NoReturn:
    raise Problem(400, f"expected {expected}, got {got[:80]!r}")
