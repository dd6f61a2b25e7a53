"""What the launch thread does with one chunk."""

from collections.abc import Callable

import pytest
import torch

from streamvae import ShapeError, UsageError
from streamvae._recipe import Preparation, Recipe
from streamvae._transforms import Transform
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


def twice(results: list[Callable[[torch.Tensor], object]], **options: object) -> list[object]:
    """Decode a chunk for each of ``results``, which say what the transform gives for it."""
    coming = iter(results)

    def transform(pixels: torch.Tensor) -> object:
        return next(coming)(pixels)

    made = recipe(transform=transform, **options)
    return [made.decode((tagged_latents(1),)) for _ in results]


@pytest.mark.parametrize(
    ("transform", "got"),
    [
        (lambda pixels: pixels > 0, "got bool"),
        (lambda pixels: ((pixels * 0.5 + 0.5) * 255).to(torch.uint8), "got uint8"),
        (lambda pixels: (pixels * 10).long(), "got int64"),
        (lambda pixels: pixels.to(torch.complex64), "got complex64"),
        (lambda pixels: pixels.to(torch.float8_e4m3fn), "got float8_e4m3fn"),
        (lambda pixels: pixels.to("meta"), "dense tensor on cpu, got strided on meta"),
        (lambda pixels: pixels.to_sparse(), "dense tensor on cpu, got sparse_coo on cpu"),
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["first", "second"])
def test_a_transform_that_gives_what_pixels_are_not_made_of(
    transform: Transform, got: str, later: bool
) -> None:
    """Only float pixels where the decoder's are: others would be quantised to a wrong picture."""
    with pytest.raises(UsageError, match=got):
        twice([torch.clone] * later + [transform])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_transform_that_gives_another_float_dtype(dtype: torch.dtype) -> None:
    """Any float dtype that the pixel rule computes with will do."""
    (made,) = twice([lambda pixels: pixels.to(dtype)])
    assert tags(made) == [0]


@pytest.mark.parametrize(
    "other",
    [
        lambda pixels: pixels[..., :1, :1],  # what broadcasts into an array of all frames
        lambda pixels: pixels[..., :-2],
        lambda pixels: pixels[..., 1:, :],
        lambda pixels: pixels[:, :1],
    ],
    ids=["one pixel", "width", "height", "channels"],
)
def test_a_transform_whose_size_changes(other: Transform) -> None:
    """All chunks of a stream are of one size, whichever that is."""
    with pytest.raises(ShapeError, match=r"in one size, \(3, 8, 8\) without axes \(0, 2\)"):
        twice([torch.clone, other])
    with pytest.raises(ShapeError, match="in one size"):
        twice([other, torch.clone])
    assert len(twice([other, other])) == 2


def test_pictures_of_two_sizes_are_transformed_each_by_its_own() -> None:
    """What must not change is what a transform makes of one size."""
    made = recipe(transform=lambda pixels: pixels[..., ::2, ::2])
    shapes = []
    for latents in (tagged_latents(1), tagged_latents(1, size=2), tagged_latents(1)):
        rendered = made.decode((latents,))
        assert rendered is not None
        shapes.append(tuple(rendered.pixels.shape[2:]))
    assert shapes == [(4, 4, 3), (8, 8, 3), (4, 4, 3)]


def test_a_transform_whose_dtype_changes() -> None:
    """Frames left on the device would change theirs on the way."""
    with pytest.raises(UsageError, match="in one dtype, float32, got float16"):
        twice([torch.clone, lambda pixels: pixels.half()])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_transform_that_makes_nan(value: float) -> None:
    """The flag of the pixels is about what consumers get, also where the decoder's are finite."""
    (made,) = twice([lambda pixels: pixels * value])
    assert made.finite.tolist() == [True, False]  # type: ignore[attr-defined]


@pytest.mark.parametrize("output", ["float32", "device"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transform_that_keeps_its_buffer(output: str, channels: int) -> None:
    """What was rendered stays as it is when the transform writes to what it gave before."""
    buffer = torch.empty(1, 1, 8, 8, channels).permute(0, 4, 1, 2, 3)
    codec = TagCodec()
    made = Recipe(codec, codec.decoder(), output, transform=lambda _: buffer)  # type: ignore[arg-type]
    rendered = []
    for value in (0.25, 0.5):
        buffer.fill_(value)
        rendered.append(made.decode((tagged_latents(1),)))
    assert [each.pixels.unique().tolist() for each in rendered if each] == [[0.25], [0.5]]


def test_a_transform_that_blends_into_the_first_chunk() -> None:
    """Nor may it change a chunk that it passed on as it was, which is the decoder's memory."""
    kept: list[torch.Tensor] = []

    def blend(pixels: torch.Tensor) -> torch.Tensor:
        kept.append(pixels[:, :1])
        return kept[0].mul_(0.5).add_(pixels[:, :1])

    codec = TagCodec()
    made = Recipe(codec, codec.decoder(), "float32", transform=blend)
    first = made.decode((tagged_latents(1),))
    assert first is not None
    before = first.pixels.clone()
    assert made.decode((tagged_latents(1),)) is not None
    assert torch.equal(first.pixels, before)
