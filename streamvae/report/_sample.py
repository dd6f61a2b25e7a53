"""Small latents of noise, to try an autoencoder with that nobody gave latents for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .._errors import LatentsError, UsageError
from .._pixels import Kind
from ..abc import Codec

#: Latents in time or items, at first and at most: enough for a few chunks of most families.
_LENGTHS: dict[Kind, tuple[int, int]] = {"video": (9, 24), "image": (3, 8), "sound": (9, 160)}

#: Height and width, the first that the family takes: small, and not square if it can be.
_SIZES = ((4, 6), (4, 4), (8, 12), (16, 24), (40, 48), (64, 80))


def sample(codec: Codec, seed: int) -> torch.Tensor:
    """Make seeded noise of one item, small, with a few chunks in time.

    It is standard normal in the diffusion model's space, where the family's formula to leave that
    needs no more than the config; else in the decoder's.

    Returns:
        Latents on the host, float32, in the layout of ``codec``.

    Raises:
        LatentsError: No small latents are taken: give your own.
    """
    noise = torch.randn(_shape(codec), generator=torch.Generator().manual_seed(seed))
    try:
        return codec.denormalize(noise.to(codec.device)).cpu()
    except (UsageError, LatentsError):
        return noise


def _shape(codec: Codec) -> tuple[int, ...]:
    refused: LatentsError | None = None
    for shape in _shapes(codec):
        try:
            codec.check(shape)
            codec.cut(shape[codec.axis], None, "exact")
        except LatentsError as error:
            refused = error
            continue
        return shape
    raise LatentsError(
        f"expected latents to try {codec.family} with, as small noise does not suit it: {refused}"
    )


def _shapes(codec: Codec) -> Iterator[tuple[int, ...]]:
    for size in _SIZES:
        for length in _lengths(codec):
            yield tuple(_extent(codec, name, length, size) for name in codec.layout)


def _extent(codec: Codec, name: str, length: int, size: tuple[int, int]) -> int:
    """How far latents reach along a dimension of ``codec.layout``."""
    if codec.layout.index(name) == codec.axis:
        return length
    bins: int = getattr(codec, "bins", size[1])  # of spectrograms, which vocoders take
    return {"B": 1, "T": 1, "C": codec.channels, "H": size[0], "W": size[1], "F": bins}[name]


def _lengths(codec: Codec) -> Iterator[int]:
    """Three chunks if those are not too much, then lengths that more families can decode."""
    least, most = _LENGTHS[codec.kind]
    try:
        cut = codec.cut(least, None, "exact")
    except LatentsError:  # too few for it, or not as many as it groups
        yield from (12, 17, most)
        return
    if not codec.needs_length:
        yield min(max(least, cut.first + 2 * cut.rest), most)
    yield from (least, 12, 17, most)
