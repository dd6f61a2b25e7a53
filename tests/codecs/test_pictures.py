from __future__ import annotations

import pytest
import torch

from streamvae import LatentsError, UsageError, collect
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, walk, whole
from tests.families import pictures
from tests.families.pictures import Picture, one_by_one

#: One of each way; a rehearsal takes its time.
_PLANNED = {"tiny", "qwen_image21", "rae", "movq", "consistency"}

every_picture = pytest.mark.parametrize("family", pictures.PICTURES, ids=lambda family: family.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_picture
def test_equals_each_item_alone(family: Picture, dtype: torch.dtype) -> None:
    """Pictures equal vae.decode's of each item alone, bit for bit, and are of foretold size."""
    if dtype == torch.bfloat16 and not family.halves:
        pytest.skip("torch measures no distances in bfloat16 on a CPU")
    vae = family.make().to(dtype)
    codec = codec_for(vae, family.call())
    latents = noise(3, *family.latents, dtype=dtype)
    codec.check(tuple(latents.shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = one_by_one(family, vae, latents)
        torch.manual_seed(0)
        streamed = walk(codec, latents)
        torch.manual_seed(0)
        decoded = codec_for(vae, family.call()).whole(latents)

    assert torch.equal(streamed, expected)
    assert torch.equal(decoded, expected)
    assert streamed.dtype == dtype
    assert codec.family == type(vae).__name__
    assert codec.frames(3) == 3
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family", [one for one in pictures.PICTURES if one.sliced], ids=lambda family: family.name
)
def test_equals_sliced_decode(family: Picture, dtype: torch.dtype) -> None:
    """Pictures equal vae.decode's of the whole batch with slicing on, whether or not it is on."""
    vae = family.make().to(dtype)
    latents = noise(3, *family.latents, dtype=dtype)
    streamed = walk(codec_for(vae), latents)
    vae.enable_slicing()
    expected = whole(vae, latents)

    assert torch.equal(streamed, expected[:, :, 0] if expected.ndim == 5 else expected)
    assert torch.equal(walk(codec_for(vae), latents), streamed)
    assert torch.equal(walk(codec_for(vae), latents, 3, "fast"), streamed)


@pytest.mark.parametrize(
    "family",
    [one for one in pictures.PICTURES if "consistency" not in one.name],
    ids=lambda family: family.name,
)
def test_several_items(family: Picture) -> None:
    """Several items a chunk are for fast mode, and differ from one at a time by rounding alone."""
    codec = codec_for(family.make().double(), family.call())
    latents = noise(3, *family.latents, dtype=torch.float64)

    with pytest.raises(UsageError, match="got 2; pass mode='fast'"):
        codec.cut(3, 2, "exact")
    several = walk(codec, latents, 2, "fast")
    torch.testing.assert_close(several, walk(codec, latents), rtol=0, atol=1e-12)


@every_picture
def test_the_whole_way(family: Picture) -> None:
    """Through queues, threads and copies pictures are the same, one latent after the other too."""
    vae = family.make()
    latents = noise(3, *family.latents)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = one_by_one(family, vae, latents).movedim(1, -1)
        for given in (latents, list(latents.split(1)), latents.mT.contiguous().mT):
            torch.manual_seed(0)
            streamed = collect(given, vae, output="float32", call=family.call())
            assert torch.equal(torch.as_tensor(streamed), expected)


@pytest.mark.parametrize(
    "family",
    [one for one in pictures.PICTURES if "tiny" in one.name or "qwen" in one.name],
    ids=lambda family: family.name,
)
@pytest.mark.parametrize("size", [(2, 3), (8, 13), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles(family: Picture, size: tuple[int, int], dtype: torch.dtype) -> None:
    """With tiling on, pictures equal vae.decode's, dtype included, and are of foretold size."""
    vae = family.make().to(dtype)
    if "tiny" in family.name:
        vae.enable_tiling()
        vae.tile_latent_min_size = 7
        vae.tile_overlap_factor = 0.3
        vae.spatial_scale_factor = codec_for(vae).scale
    else:
        ratio = vae.spatial_compression_ratio
        vae.enable_tiling(6 * ratio, 5 * ratio, 4 * ratio, 3 * ratio)
    codec = codec_for(vae)
    latents = noise(1, *family.latents[:-2], *size, dtype=dtype)
    codec.check(tuple(latents.shape))
    expected = whole(vae, latents)
    expected = expected[:, :, 0] if expected.ndim == 5 else expected
    streamed = walk(codec, latents)

    assert torch.equal(streamed, expected)
    assert streamed.dtype == expected.dtype
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[2:])
    says = [note for note in codec.notes(tuple(latents.shape)) if "float32" in note]
    assert bool(says) == (expected.dtype != dtype)


@pytest.mark.parametrize(
    "family",
    [one for one in pictures.PICTURES if one.name in _PLANNED],
    ids=lambda family: family.name,
)
def test_plan(family: Picture) -> None:
    """A plan foretells every picture, its memory too where it can rehearse, and draws nothing."""
    codec = codec_for(family.make(), family.call())
    shape = (3, *family.latents)
    state = torch.random.get_rng_state()
    plan = codec.plan(shape)

    assert plan.frames == (1, 1, 1)
    assert (plan.device_bytes is None) == ("consistency" in family.name)
    assert torch.equal(torch.random.get_rng_state(), state)


@every_picture
def test_bad_latents(family: Picture) -> None:
    """Latents of another rank, other channels or nothing in them are refused, naming what came."""
    codec = codec_for(family.make(), family.call())
    good = (3, *family.latents)
    codec.check(good)

    for shape in (good[:-1], (*good, 1), (3, good[1] + 1, *good[2:]), (0, *good[1:])):
        with pytest.raises(LatentsError, match="expected .*got"):
            codec.check(shape)
