from __future__ import annotations

import diffusers
import pytest
import torch

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from tests import tiny
from tests.codecs.walk import noise, walk, whole
from tests.families import images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", [True, False])
def test_equals_sliced_decode(dtype: torch.dtype, quant: bool) -> None:
    """Pictures equal vae.decode with slicing on, bit for bit, whether or not it is on."""
    vae = tiny.kl(use_quant_conv=quant, use_post_quant_conv=quant).to(dtype)
    codec = codec_for(vae)
    latents = noise(3, 4, 5, 7, dtype=dtype)
    streamed = walk(codec, latents)
    vae.enable_slicing()
    expected = whole(vae, latents)

    assert torch.equal(streamed, expected)
    assert torch.equal(walk(codec, latents), expected)
    assert codec.frames(3) == len(expected)
    assert codec.picture((3, 4, 5, 7)) == tuple(expected.shape[2:])


@pytest.mark.parametrize(("tile", "pixels"), [(8, 16), (7, 14), (6, 13)])
@pytest.mark.parametrize("size", [(5, 7), (9, 20), (17, 6)])
def test_tiling(tile: int, pixels: int, size: tuple[int, int]) -> None:
    """With tiling on, pictures equal vae.decode's, and their size is foretold for any tile."""
    vae = tiny.kl()
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, pixels
    codec = codec_for(vae)
    latents = noise(1, 4, *size)
    expected = whole(vae, latents)

    assert torch.equal(walk(codec, latents), expected)
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[2:])


def test_several_items() -> None:
    """Several items a chunk, for fast mode, differ from one at a time by rounding alone."""
    vae = tiny.kl()
    codec = codec_for(vae)
    latents = noise(5, 4, 5, 7)

    streamed = walk(codec, latents, 2, mode="fast")

    torch.testing.assert_close(streamed, walk(codec, latents), rtol=0, atol=1e-5)


def test_plan() -> None:
    """Exact mode takes one item at a time and says why."""
    codec = codec_for(tiny.kl())

    assert codec.cut(None, None, "exact") == codec.cut(None, 1, "exact") == ChunkPlan(1, 1)
    assert codec.cut(None, 3, "fast") == ChunkPlan(3, 3)
    with pytest.raises(UsageError, match=r"rounding.*got 3; pass mode='fast'"):
        codec.cut(None, 3, "exact")
    with pytest.raises(UsageError, match="at least 1, got -1"):
        codec.cut(None, -1, "exact")


@pytest.mark.parametrize("shape", [(4, 5, 7), (1, 16, 5, 7), (1, 4, 0, 7), (1, 4, 1, 5, 7)])
def test_check(shape: tuple[int, ...]) -> None:
    """Latents of another rank, with other channels or empty ones are refused by name."""
    codec = codec_for(tiny.kl())
    codec.check((2, 4, 5, 7))

    with pytest.raises(LatentsError, match=r"\(B, C, H, W\) with C = 4.*got shape"):
        codec.check(shape)


@torch.no_grad()
def test_close() -> None:
    """A closed decoder decodes no more, has nothing left, and may be closed again."""
    decoder = codec_for(tiny.kl()).decoder()
    decoder.decode(noise(1, 4, 2, 2))

    assert decoder.drain() is None
    decoder.close()
    decoder.close()

    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denormalize(dtype: torch.dtype) -> None:
    """Latents are denormalised by the formulas of the SD, SDXL, SD3 and Flux pipelines."""
    latents = noise(2, 4, 3, 3, dtype=dtype)
    mean, std = [0.1, -0.2, 0.3, 0.4], [1.5, 2.0, 0.5, 3.0]
    by_statistics = tiny.kl(scaling_factor=0.13, latents_mean=mean, latents_std=std)
    m, s = (torch.tensor(values).view(1, 4, 1, 1).to(dtype) for values in (mean, std))

    plain = codec_for(tiny.kl(scaling_factor=0.18215)).denormalize(latents)
    shifted = codec_for(tiny.kl(scaling_factor=0.36, shift_factor=0.11)).denormalize(latents)

    assert torch.equal(plain, latents / 0.18215)
    assert torch.equal(shifted, (latents / 0.36) + 0.11)
    assert torch.equal(codec_for(by_statistics).denormalize(latents), latents * s / 0.13 + m)


def test_denormalize_needs_a_scale() -> None:
    """Without a scaling factor there is nothing to denormalise by, and it says so."""
    with pytest.raises(UsageError, match="expected scaling_factor"):
        codec_for(tiny.kl(scaling_factor=None)).denormalize(noise(1, 4, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", images.IMAGES, ids=lambda family: family.name)
def test_every_family(family: images.Image, dtype: torch.dtype) -> None:
    """Pictures of every family equal vae.decode with slicing on, bit for bit, of foretold size."""
    vae = family.make().to(dtype)
    codec = codec_for(vae)
    latents = noise(3, *family.latents, dtype=dtype)
    vae.enable_slicing()
    expected = whole(vae, latents)

    assert torch.equal(walk(codec, latents), expected)
    assert codec.family == type(vae).__name__
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[2:])


@pytest.mark.parametrize("size", [(3, 4), (5, 9), (8, 2), (7, 13)])
@pytest.mark.parametrize("family", images.IMAGES, ids=lambda family: family.name)
def test_every_family_tiled(family: images.Image, size: tuple[int, int]) -> None:
    """With tiling on, pictures of every family equal vae.decode's, and are of foretold size."""
    vae = family.make()
    family.tile(vae)
    codec = codec_for(vae)
    latents = noise(1, family.latents[0], *size)
    expected = whole(vae, latents)

    assert torch.equal(walk(codec, latents), expected)
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux2_denormalizes_patches(dtype: torch.dtype) -> None:
    """Flux2's latents are denormalised as its pipeline does it, by statistics of 2x2 patches."""
    vae = images.flux2().to(dtype)
    packed = noise(2, 16, 2, 3, dtype=dtype)
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    unpatchify = diffusers.Flux2Pipeline._unpatchify_latents  # the reference

    denormalized = codec_for(vae).denormalize(unpatchify(packed))

    assert torch.equal(denormalized, unpatchify(packed * std + mean))
    with pytest.raises(LatentsError, match="patches of 2x2, got height 3"):
        codec_for(vae).denormalize(noise(1, 4, 3, 2))


@pytest.mark.parametrize("family", images.IMAGES, ids=lambda family: family.name)
def test_bad_latents(family: images.Image) -> None:
    """Every family refuses latents of another rank, other channels or nothing in them."""
    codec = codec_for(family.make())
    good = (3, *family.latents)
    codec.check(good)

    for shape in (good[:-1], (*good, 1), (3, good[1] + 1, *good[2:]), (0, *good[1:])):
        with pytest.raises(LatentsError, match="expected .*got"):
            codec.check(shape)
