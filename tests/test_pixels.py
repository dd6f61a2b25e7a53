"""The pixel conventions, against diffusers' own code."""

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from diffusers.image_processor import VaeImageProcessor

from streamvae._pixels import all_finite, channels_last, quantise, render, yuv420p


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


Pictures = npt.NDArray[np.uint8]


def _noise(height: int, width: int) -> Pictures:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _smooth(height: int, width: int) -> Pictures:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 13)]
    pictures: Pictures = np.rint(np.stack(waves, -1) * 127 + 128).astype(np.uint8)
    return pictures


def _primaries(height: int, width: int) -> Pictures:
    """Eight saturated stripes, whose edges lie between two chroma samples and on one."""
    colours = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)], np.uint8) * 255
    stripes: Pictures = np.repeat(colours[np.arange(width) // 5 % 8][None], height, 0)
    return stripes


def _swscale(picture: Pictures) -> Pictures:
    """What FFmpeg makes of it, (3 * H / 2, W); sizes are even."""
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BILINEAR
        | Interpolation.ACCURATE_RND
        | Interpolation.FULL_CHR_H_INP,
    )
    planes: Pictures = frame.to_ndarray()
    return planes


@pytest.mark.parametrize("size", [(48, 64), (256, 448), (63, 95), (47, 64), (48, 33), (16, 18)])
@pytest.mark.parametrize("make", [_noise, _smooth, _primaries])
def test_planes_are_swscale_s_within_a_level(make, size) -> None:  # type: ignore[no-untyped-def]
    """Luma and chroma are within one level of FFmpeg's; an odd last row or column is repeated."""
    picture = make(*size)
    height, width = size
    even: Pictures = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    made = yuv420p(torch.from_numpy(picture)[None, None])
    assert made.shape == (1, 1, 3 * even.shape[0] // 2, even.shape[1])
    assert made.is_contiguous()
    expected = _swscale(even)
    assert np.abs(made[0, 0].numpy().astype(int) - expected.astype(int)).max() <= 1


def test_planes_of_grey_and_of_several_pictures() -> None:
    """Grey is shown as RGB would be, and each picture of each clip is on its own."""
    pictures = torch.from_numpy(np.stack([_noise(8, 6), _smooth(8, 6)] * 3).reshape(2, 3, 8, 6, 3))
    each = torch.stack([
        torch.stack([yuv420p(picture[None, None])[0, 0] for picture in clip]) for clip in pictures
    ])
    assert torch.equal(yuv420p(pictures), each)
    grey = pictures[..., :1]
    assert torch.equal(yuv420p(grey), yuv420p(grey.expand(-1, -1, -1, -1, 3)))
