"""Latents that a pipeline keeps as tokens, (B, S, K): each a patch of the picture's latents.

Taking them apart means copying, which is for the launch thread. So that everybody before it sees
what the codec expects, the view only relabels the tokens' memory as (B, C, h, w): that many numbers
they are, though not yet in that order. What prepares a chunk then puts them into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._errors import LatentsError
from .._recipe import Preparation, Prepare


@dataclass(frozen=True, slots=True)
class Tokens:
    """How the latents of one picture are cut into tokens, row by row.

    Attributes:
        rows: Tokens from top to bottom.
        columns: Tokens from left to right.
        patch: Latents along a side of a token.
        video: Whether the codec takes (B, C, 1, h, w).
        channels_last: Whether the numbers of a token are (y, x, C), not (C, y, x).
    """

    rows: int
    columns: int
    patch: int = 2
    video: bool = False
    channels_last: bool = False

    def around(self, formula: Prepare) -> Preparation:
        """What unpacks the chunks of one stream, and applies ``formula`` to each."""
        unpacking = _Unpacking(self)

        def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
            if self.video and start:
                raise LatentsError(
                    "expected the latents of all pictures at once, as the pipeline gives them, "
                    "got another piece of them"
                )
            return formula(unpacking.unpack(latents), start, dtype)

        return Preparation(prepare, unpacking.view)


class _Unpacking:
    """One stream's tokens. They lie one after the other, or (Flux2's) one channel after another."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._by_channel: bool | None = None

    def view(self, latents: torch.Tensor) -> torch.Tensor:
        """Relabel tokens as (B, C, h, w) or (B, C, 1, h, w); no copy, also on ``meta``.

        Raises:
            LatentsError: They are no tokens, not as many as the picture has, or neither way dense.
        """
        cut = self._tokens
        area = cut.patch**2
        if (
            latents.ndim != 3
            or latents.shape[1] != cut.rows * cut.columns
            or latents.shape[2] % area
        ):
            raise LatentsError(
                f"expected latents (B, S, C) with S = {cut.rows} x {cut.columns} tokens and C a "
                f"multiple of {area}, got shape {tuple(latents.shape)}; if the pipeline was called "
                "with another height and width, pass them: call={'height': ..., 'width': ...}"
            )
        by_channel = not latents.is_contiguous()
        if not latents.is_meta:  # there it is only asked for the shape
            if self._by_channel not in {None, by_channel}:
                raise LatentsError(
                    "expected every piece of the latents to lie in memory as the first, got one "
                    "that does not; make them contiguous"
                )
            self._by_channel = by_channel
        channels = latents.shape[2] // area
        time = (1,) if cut.video else ()
        dense = latents.transpose(1, 2) if by_channel else latents
        sides = (cut.rows * cut.patch, cut.columns * cut.patch)
        return dense.view(latents.shape[0], channels, *time, *sides)

    def unpack(self, relabelled: torch.Tensor) -> torch.Tensor:
        """Put what `view` gave into the order of a picture: a copy of the same shape."""
        cut = self._tokens
        token: dict[str, int] = {"c": relabelled.shape[1], "y": cut.patch, "x": cut.patch}
        inside = "yxc" if cut.channels_last else "cyx"
        names = f"b{inside}rl" if self._by_channel else f"brl{inside}"
        sizes = token | {"b": relabelled.shape[0], "r": cut.rows, "l": cut.columns}
        tokens = relabelled.reshape([sizes[name] for name in names])
        return tokens.permute([names.index(name) for name in "bcrylx"]).reshape(relabelled.shape)
