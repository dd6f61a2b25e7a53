"""What a test must know of a family of video autoencoders to hold it to its promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tests.codecs.walk import noise

#: What diffusers itself gives: (autoencoder, latents, call) to frames (B, C, T, H, W).
Reference = Callable[[nn.Module, torch.Tensor, Mapping[str, object]], torch.Tensor]


@torch.no_grad()
def decode(vae: nn.Module, latents: torch.Tensor, call: Mapping[str, object]) -> torch.Tensor:
    """``vae.decode``, the reference of most families."""
    decoded: torch.Tensor = vae.decode(latents, return_dict=False, **call)[0]
    return decoded


@dataclass(frozen=True)
class Family:
    """A tiny autoencoder and what streaming it promises.

    Attributes:
        name: Names the tests.
        make: Builds it: a real class, seeded, in eval mode, constant parameters re-randomised
            (`tests.tiny.randomised`).
        latents: C, h, w of its tiny latents.
        lengths: Numbers of latents to test; the first few steps of a walk differ.
        chunks: ``latents_per_chunk`` to test in exact mode.
        fast_chunks: Those that only fast mode takes (within ``tolerance``).
        tolerance: Greatest difference to diffusers in float32; 0 means equal bit for bit.
        wide: Greatest difference in float64, which tells rounding from error.
        half: Greatest difference in bfloat16; None if bfloat16 is not to be tested.
        batched: Whether a batch of two can be decoded.
        tile: Turns spatial tiling on, with tiles smaller than ``tiled``.
        tiled: h, w of latents for that.
        tiled_tolerance: As ``tolerance``, with tiling on.
        call: Keyword arguments of ``decode`` for a number of latents.
        reference: What diffusers gives.
        growing: Whether its state grows with the length, by design (keys and values).
    """

    name: str
    make: Callable[[], nn.Module]
    latents: tuple[int, int, int]
    lengths: tuple[int, ...]
    chunks: tuple[int | None, ...] = (None,)
    fast_chunks: tuple[int, ...] = ()
    tolerance: float = 0.0
    wide: float = 1e-13
    half: float | None = 0.0
    batched: bool = True
    tile: Callable[[nn.Module], None] | None = None
    tiled: tuple[int, int] = (5, 7)
    tiled_tolerance: float = 0.0
    call: Callable[[int], Mapping[str, object]] = field(default=lambda _: {})
    reference: Reference = decode
    growing: bool = False

    def noise(
        self,
        length: int,
        *,
        batch: int = 1,
        seed: int = 1,
        dtype: torch.dtype = torch.float32,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Seeded latents (batch, C, length, h, w)."""
        channels, *own = self.latents
        return noise(batch, channels, length, *(size or own), seed=seed, dtype=dtype)
