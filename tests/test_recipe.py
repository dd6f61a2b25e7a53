"""What the launch thread does with one chunk."""

import pytest
import torch

from streamvae import ShapeError
from streamvae._recipe import Preparation, Recipe, Transform
from streamvae.testing import TagCodec, tagged_latents


def recipe(codec: TagCodec | None = None, **options: object) -> Recipe:
    """A recipe for a fresh stream."""
    codec = codec or TagCodec(2)
    return Recipe(codec, codec.decoder(), "uint8", **options)  # type: ignore[arg-type]


def tags(made: object) -> list[int]:
    """First bytes of the frames rendered."""
    return made.pixels[0, :, 0, 0, 0].tolist()  # type: ignore[attr-defined,no-any-return]


def test_pieces_are_joined_and_counted() -> None:
    """Latents in pieces are one chunk; their number is kept for the end."""
    made = recipe()
    latents = tagged_latents(5)
    first = made.decode((latents[:, :, :1],))
    second = made.decode((latents[:, :, 1:2], latents[:, :, 2:]))
    assert tags(first) + tags(second) == TagCodec(2).expected(latents)
    assert made.latents == 5
    assert first is not None
    assert first.finite.tolist() == [True, True]


def test_latents_are_cast_to_the_weights_dtype() -> None:
    """As diffusers' pipelines do."""
    made = recipe().decode((tagged_latents(1).double(),))
    assert tags(made) == [0]


def test_normalized() -> None:
    """Latents in the diffusion model's space are taken to the decoder's first."""
    prepared = recipe(preparation=Preparation(lambda latents, start, _: latents + start + 1))
    assert tags(prepared.decode((tagged_latents(1),))) == [1]


@pytest.mark.parametrize(("value", "flags"), [(torch.nan, [False, False]), (1.0, [True, True])])
def test_flags(value: float, flags: list[bool]) -> None:
    """Latents and pixels have a flag each."""
    made = recipe().decode((torch.full((1, 1, 1, 1, 1), value),))
    assert made is not None
    assert made.finite.tolist() == flags


class Overflowing(TagCodec):
    """A codec whose decoder makes infinity of finite latents."""

    def decoder(self):  # type: ignore[no-untyped-def]
        decoder = super().decoder()
        decode = decoder.decode
        decoder.decode = lambda latents: decode(latents) * torch.inf  # type: ignore[method-assign,operator]
        return decoder


def test_the_decoder_overflows() -> None:
    """Finite latents and bad pixels tell who did it."""
    made = recipe(Overflowing()).decode((tagged_latents(1),))
    assert made is not None
    assert made.finite.tolist() == [True, False]


def test_bad_latents_that_are_held_back() -> None:
    """The flag of latents that gave nothing yet goes with the next pixels; then it is clean."""
    made = recipe(TagCodec(held=1))
    assert made.decode((torch.full((1, 1, 1, 1, 1), torch.inf),)) is None
    second = made.decode((tagged_latents(1),))
    third = made.drain()
    assert second is not None
    assert third is not None
    assert second.finite.tolist()[0] is False
    assert third.finite.tolist() == [True, True]


def test_transform() -> None:
    """Runs over float pixels before they are quantised, and may change the size."""

    def smaller(pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.is_floating_point()
        return pixels[..., :4, :2] * 0

    made = recipe(transform=smaller).decode((tagged_latents(1),))
    assert made is not None
    assert made.pixels.shape == (1, 1, 4, 2, 3)
    assert made.pixels.unique().tolist() == [128]


@pytest.mark.parametrize(
    ("transform", "got"),
    [
        (lambda pixels: pixels[:, :, :0], r"got shape \(1, 3, 0, 8, 8\)"),
        (lambda pixels: pixels[0], r"got shape \(3, 1, 8, 8\)"),
        (lambda pixels: None, "got NoneType"),
    ],
)
def test_a_transform_that_changes_too_much(transform: Transform, got: str) -> None:
    """Batch and time stay what they are, and a tensor a tensor."""
    with pytest.raises(ShapeError, match=got):
        recipe(transform=transform).decode((tagged_latents(1),))
