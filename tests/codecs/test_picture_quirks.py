from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from torch import nn

from streamvae import LatentsError, UsageError, collect, stream_decode
from streamvae._errors import ClosedError, DeviceError
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, walk, whole
from tests.families import pictures
from tests.families.pictures import Picture, one_by_one


def test_tiny_tiles_that_cannot_be_joined() -> None:
    """Where diffusers mistakes the pixels a latent, tiling is refused with what to set."""
    two = pictures.tiny(blocks=2)
    four = pictures.tiny(out_channels=4, in_channels=4)
    shape = (1, 4, 9, 9)
    for vae, match in ((two, r"spatial_scale_factor=2,.*got 8"), (four, "out_channels=4")):
        codec = codec_for(vae)
        codec.check(shape)
        vae.enable_tiling()
        with pytest.raises(UsageError, match=match):
            codec.check(shape)
        with pytest.raises(RuntimeError):
            whole(vae, noise(*shape))
    two.spatial_scale_factor = 2
    codec_for(two).check(shape)


def test_refiner_tiles() -> None:
    """The refiner is refused where diffusers would crop its tiles, and only there."""
    vae = pictures.refiner()
    codec = codec_for(vae)
    vae.enable_tiling(16, 16, 12, 12)

    codec.check((2, 4, 1, 4, 4))
    with pytest.raises(UsageError, match=r"latents of 5x4; call disable_tiling\(\)"):
        codec.check((2, 4, 1, 5, 4))
    assert whole(vae, noise(1, 4, 1, 5, 4)).shape[-2:] != codec.picture((1, 4, 1, 5, 4))
    vae.disable_tiling()
    codec.check((2, 4, 1, 5, 4))


@pytest.mark.parametrize("make", [pictures.refiner, pictures.qwen_image21])
def test_single_frames(make: Callable[[], nn.Module]) -> None:
    """Items of more frames than one, or without any, are refused by shape."""
    codec = codec_for(make())

    with pytest.raises(LatentsError, match=r"one frame an item, got shape \(1, 4, 2, 3, 3\)"):
        codec.check((1, 4, 2, 3, 3))
    with pytest.raises(LatentsError, match=r"\(B, C, T, H, W\) with C = 4"):
        codec.check((1, 4, 3, 3))


def test_two_threads_and_one_cache() -> None:
    """QwenImage21's caches belong to a call: streams are right while vae.decode runs elsewhere."""
    vae = pictures.qwen_image21()
    latents = noise(2, 4, 1, 6, 6)
    codec = codec_for(vae)
    expected = walk(codec, latents)
    stop = threading.Event()

    def decode() -> None:
        while not stop.is_set():
            whole(vae, latents[:1])

    other = threading.Thread(target=decode)
    other.start()
    try:
        for _ in range(5):
            assert torch.equal(walk(codec, latents), expected)
    finally:
        stop.set()
        other.join()


def test_rgba() -> None:
    """Four channels come through as RGBA, to PIL too, by diffusers' rule."""
    vae = pictures.qwen_image21()
    latents = noise(1, 4, 1, 3, 4)
    pixels = (whole(vae, latents)[0, :, 0] * 0.5 + 0.5).clamp(0, 1)
    expected = (pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)

    given = collect(latents, vae)

    assert given.dtype == np.uint8
    assert np.array_equal(given[0], expected)
    assert Image.fromarray(given[0]).mode == "RGBA"


async def test_rgba_frames() -> None:
    """A frame of four channels becomes an RGBA picture."""
    async with stream_decode(noise(2, 4, 1, 3, 4), pictures.qwen_image21()) as frames:
        modes = [(frame.to_pil().mode, frame.to_pil().size) async for frame in frames]

    assert modes == [("RGBA", (8, 6))] * 2


@pytest.mark.parametrize("size", [(2, 8), (1, 4), (3, 4)])
def test_rae_takes_squares(size: tuple[int, int]) -> None:
    """Latents that are not square are refused, also those that decode would mistake for others."""
    with pytest.raises(LatentsError, match="square latents of AutoencoderRAE, 4x4"):
        codec_for(pictures.rae()).check((1, 64, *size))


def test_rae_says() -> None:
    """RAE's range of pixels and its resizing are said; one that takes tokens is refused."""
    vae = pictures.rae()
    codec = codec_for(vae)
    (pixels,) = codec.notes((1, 64, 4, 4))

    assert "[0, 1]" in pixels
    assert "transform" in pixels
    assert "resizes latents of 3x3 to 4x4" in codec.notes((1, 64, 3, 3))[1]
    vae.reshape_to_2d = False
    with pytest.raises(UsageError, match="set vae.reshape_to_2d = True"):
        codec.check((1, 64, 4, 4))


def test_rae_transform() -> None:
    """With the transform that its note names, RAE's pictures get the bytes they stand for."""
    vae, latents = pictures.rae(), noise(1, 64, 4, 4)
    expected = whole(vae, latents).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255

    given = collect(latents, vae, transform=lambda pixels: pixels.float() * 2 - 1)

    assert np.abs(given - expected).max() <= 0.501


def test_unquantized_is_another_picture() -> None:
    """The argument decides whether latents are quantized, and is checked."""
    vae, latents = pictures.vq(), noise(1, 4, 3, 4)
    plain, forced = (
        walk(codec_for(vae, {"force_not_quantize": forced}), latents) for forced in (False, True)
    )

    assert torch.equal(plain, walk(codec_for(vae), latents))
    assert not torch.equal(plain, forced)
    with pytest.raises(UsageError, match="True or False, got 1"):
        codec_for(vae, {"force_not_quantize": 1})
    with pytest.raises(UsageError, match="numbers of codebook vectors"):
        codec_for(pictures.vq(lookup_from_codebook=True), {"force_not_quantize": True})


def test_codebook_that_is_away() -> None:
    """Where offloading leaves decode without its codebook, that is refused, not decoded wrongly."""
    vae, shape = pictures.vq(), (1, 4, 3, 4)
    expected = walk(codec_for(vae, pictures.unquantized()), noise(*shape))
    cpu_offload(vae, execution_device=torch.device("cpu"))

    with pytest.raises(DeviceError, match="enable_model_cpu_offload"):
        codec_for(vae).check(shape)
    unquantized = codec_for(vae, pictures.unquantized())
    unquantized.check(shape)
    assert torch.equal(walk(unquantized, noise(*shape)), expected)


def test_no_conditions() -> None:
    """A picture and a mask to decode by, which belong to a batch, are refused by name."""
    with pytest.raises(UsageError, match="got image, mask"):
        codec_for(pictures.asymmetric(), {"image": None, "mask": None})


def test_generators() -> None:
    """With a generator each, pictures equal those of one call; without, a note says they do not."""
    vae, latents = pictures.consistency(), noise(3, 4, 3, 4)

    def each() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    with torch.no_grad():
        batch = vae.decode(latents, generator=each(), return_dict=False)[0]
    codec = codec_for(vae, {"generator": each()})
    streamed = walk(codec, latents)

    torch.testing.assert_close(streamed, batch, rtol=0, atol=2e-5)
    assert torch.equal(codec_for(vae, {"generator": each()}).whole(latents), streamed)
    assert codec.notes((3, 4, 3, 4)) == ()
    with pytest.raises(UsageError, match="a generator for each item, got 3 for 4"):
        codec.cut(4, None, "exact")
    with pytest.raises(UsageError, match="got 3 for 4"):  # one by one they cannot be counted
        walk(codec, noise(4, 4, 3, 4))
    assert "one call for all of them" in codec_for(vae).notes((3, 4, 3, 4))[0]
    assert codec_for(vae).notes((1, 4, 3, 4)) == ()
    with pytest.raises(UsageError, match="other noise, got 2"):
        codec.cut(4, 2, "fast")
    with pytest.raises(UsageError, match="to be a torch.Generator"):
        codec_for(vae, {"generator": 7})


def test_generator_moves_on() -> None:
    """A stream leaves its generator where decode leaves it; two in turns do not disturb it."""
    vae, latents = pictures.consistency(), noise(2, 4, 3, 4)
    family = Picture("consistency", pictures.consistency, (4, 3, 4), call=pictures.generator)
    expected = one_by_one(family, vae, latents)
    left = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for item in latents.split(1):
            vae.decode(item, generator=left)
    given = torch.Generator().manual_seed(7)
    codec = codec_for(vae, {"generator": given})
    before = given.get_state()
    assert codec.plan((2, 4, 3, 4)).frames == (1, 1)
    assert torch.equal(given.get_state(), before)

    with torch.no_grad():
        first, second = codec.decoder(), codec.decoder()
        drawn = [(first.decode(item), second.decode(item)) for item in latents.split(1)]
        first.close()
        second.close()

    for number in (0, 1):
        assert torch.equal(torch.cat([pair[number] for pair in drawn]), expected)
    assert torch.equal(given.get_state(), left.get_state())
    with pytest.raises(ClosedError), torch.no_grad():
        first.decode(latents[:1])


def test_ignored_flags() -> None:
    """Tiling and slicing of the consistency decoder, which decode ignores, are said to be."""
    vae = pictures.consistency()
    vae.enable_tiling()
    vae.enable_slicing()

    (note,) = codec_for(vae).notes((1, 4, 90, 90))
    assert "no notice of enable_tiling() and enable_slicing()" in note


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denormalize(dtype: torch.dtype) -> None:
    """Latents are denormalized as the families' pipelines do it, or it is said why not."""
    latents = noise(2, 4, 1, 3, 3, dtype=dtype)
    vae = pictures.qwen_image21()
    mean, std = (
        torch.tensor(values).view(1, 4, 1, 1, 1).to(dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )

    assert torch.equal(codec_for(vae).denormalize(latents), latents * std + mean)
    assert torch.equal(codec_for(pictures.refiner()).denormalize(latents), latents / 1.03682)
    flat = latents[:, :, 0]
    for make, scale in (
        (pictures.asymmetric, 0.18215),
        (pictures.consistency, 0.18215),
        (pictures.tiny, 1.0),
        (pictures.rae, 1.0),
    ):
        assert torch.equal(codec_for(make()).denormalize(flat), flat / scale)
    for make in (pictures.vq, pictures.kvae):
        with pytest.raises(UsageError, match="pass normalized=False"):
            codec_for(make()).denormalize(flat)
