"""A user's own step between the decoder's pixels and what consumers get, and what it may give."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ._errors import ShapeError, UsageError

#: Runs on the compute stream over a decoder's float pixels; may change height, width, channels.
Transform = Callable[[torch.Tensor], torch.Tensor]

#: What the pixel rule of `streamvae._pixels` can compute with.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class TransformChecker:
    """Refuse results of one stream's transform that would become wrong pixels without a word."""

    def __init__(self) -> None:
        #: By the size of what it got: a stream may be of pictures of several sizes.
        self._first: dict[tuple[int, ...], tuple[tuple[int, ...], torch.dtype]] = {}

    def check(self, result: object, decoded: torch.Tensor) -> torch.Tensor:
        """Return ``result`` if it is what the pixels of ``decoded`` may become.

        Args:
            result: What the transform gave.
            decoded: What it got, channels first: (B, C, T, H, W), (B, C, H, W) or (B, C, S).

        Raises:
            ShapeError: It is no tensor, has other dimensions, another batch or time, an empty
                axis, or another size than the chunks before.
            UsageError: It is not of a float dtype, lies on another device, is not dense, or its
                dtype is not that of the chunks before.
        """
        fixed = (0, 2) if decoded.ndim in {3, 5} else (0,)
        if not isinstance(result, torch.Tensor):
            raise ShapeError(f"{_expected(decoded, fixed)}, got {type(result).__name__}")
        shape = tuple(result.shape)
        if len(shape) != decoded.ndim or any(shape[one] != decoded.shape[one] for one in fixed):
            raise ShapeError(f"{_expected(decoded, fixed)}, got shape {shape}")
        if 0 in shape:
            raise ShapeError(f"expected transform to give pixels, got shape {shape}")
        if result.dtype not in DTYPES:
            raise UsageError(
                "expected transform to give float pixels in [-1, 1] "
                f"({', '.join(map(_name, DTYPES))}), got {_name(result.dtype)}"
            )
        if result.device != decoded.device or result.layout is not torch.strided:
            raise UsageError(
                f"expected transform to give a dense tensor on {decoded.device}, got "
                f"{_name(result.layout)} on {result.device}"
            )
        size, given = _without(shape, fixed), _without(tuple(decoded.shape), fixed)
        first = self._first.setdefault(given, (size, result.dtype))
        if size != first[0]:
            raise ShapeError(
                f"expected transform to give every chunk of a stream in one size, {first[0]} "
                f"without axes {fixed}, got {size}"
            )
        if result.dtype != first[1]:
            raise UsageError(
                "expected transform to give every chunk of a stream in one dtype, "
                f"{_name(first[1])}, got {_name(result.dtype)}"
            )
        return result


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for axis, length in enumerate(shape) if axis not in axes)


def _expected(decoded: torch.Tensor, fixed: tuple[int, ...]) -> str:
    return f"expected transform to keep the dimensions and axes {fixed} of {tuple(decoded.shape)}"


def _name(what: object) -> str:
    return str(what).removeprefix("torch.")
