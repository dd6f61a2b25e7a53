"""The pixel conventions, against diffusers' own code."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from streamvae._pixels import all_finite, channels_last, quantise, render


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantise_is_diffusers_pil_rule(dtype: torch.dtype) -> None:
    """Every byte is the one that diffusers' PIL path gives, for any value, in and out of range."""
    values = torch.linspace(-1.5, 1.5, 3 * 64 * 64, dtype=torch.float64).to(dtype)
    pixels = values.view(1, 3, 64, 64)
    (image,) = VaeImageProcessor().postprocess(pixels, output_type="pil")
    ours = quantise(pixels)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, np.asarray(image))


def test_halves_are_rounded_to_even() -> None:
    """127.5 of 255 is 128; 0.5 and 2.5 go down: steps of 1 in a scale where they are exact."""
    assert quantise(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    halves = torch.tensor([0.5, 1.5, 2.5, 126.5, 127.5], dtype=torch.float64)
    scaled = (halves / 255 * 2 - 1).mul_(0.5).add_(0.5).float().mul_(255)
    exact = scaled == halves.float()  # those that survive the way there
    assert exact.any()
    made = quantise((halves / 255 * 2 - 1)[exact])
    assert made.tolist() == halves[exact].round().int().tolist()


def test_quantise_leaves_its_input_alone() -> None:
    """The decoder's tensor is not written to."""
    pixels = torch.zeros(4)
    quantise(pixels)
    assert pixels.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("video", (2, 3, 4, 5, 6), (2, 4, 5, 6, 3)),
        ("image", (2, 3, 5, 6), (2, 1, 5, 6, 3)),
        ("sound", (2, 3, 7), (2, 7, 3)),
    ],
)
def test_channels_last(kind, shape, expected) -> None:  # type: ignore[no-untyped-def]
    """Channels go last, as a view."""
    decoded = torch.rand(shape)
    view = channels_last(decoded, kind)
    assert view.shape == expected
    assert view.data_ptr() == decoded.data_ptr()


@pytest.mark.parametrize("kind", ["video", "image", "sound"])
@pytest.mark.parametrize("output", ["uint8", "float32", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_render(kind, output, dtype) -> None:  # type: ignore[no-untyped-def]
    """What consumers get is contiguous; sound is never quantised; the device keeps the dtype."""
    shape = {"video": (1, 3, 2, 4, 5), "image": (2, 3, 4, 5), "sound": (1, 2, 9)}[kind]
    decoded = torch.rand(shape).to(dtype) * 2 - 1
    made = render(decoded, kind, output)
    assert made.is_contiguous()
    expected = {"uint8": torch.uint8, "float32": torch.float32, "device": dtype}[output]
    if kind == "sound" and output == "uint8":
        expected = torch.float32
    assert made.dtype == expected
    last = channels_last(decoded, kind)
    if made.dtype == torch.uint8:
        last = quantise(last)
    assert torch.equal(made, last.to(made.dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_all_finite(bad: float) -> None:
    """One flag for a tensor, a tensor itself."""
    assert all_finite(torch.zeros(3, dtype=torch.bfloat16)).item() is True
    assert all_finite(torch.tensor([0.0, bad])).item() is False
