from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from tests import tiny
from tests.codecs.walk import finish, noise, pieces, walk, whole

Make = Callable[[], torch.nn.Module]
FAMILIES = pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (2, 2, 3, 2), (1, 3, 3, 5), (1, 9, 2, 3)])
def test_equals_decode(make: Make, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Streamed frames equal vae.decode bit for bit, and are as many and as large as foretold."""
    vae = make().to(dtype)
    codec = codec_for(vae)
    batch, length, height, width = shape
    latents = noise(batch, codec.channels, length, height, width, dtype=dtype)
    expected = whole(vae, latents)

    assert torch.equal(walk(codec, latents), expected)
    assert codec.frames(length) == expected.shape[2] == 4 * (length - 1) + 1
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])


@FAMILIES
def test_slicing(make: Make) -> None:
    """With slicing on, clips are decoded one by one, bit for bit as vae.decode does it then."""
    vae = make()
    vae.enable_slicing()
    codec = codec_for(vae)
    latents = noise(3, codec.channels, 3, 3, 5)

    assert torch.equal(walk(codec, latents), whole(vae, latents))


@pytest.mark.parametrize(
    ("dim_mult", "in_time", "frames"),
    [([1, 2, 4, 4], [True, True, True], 17), ([1, 2], [True], 5), ([1, 1, 2], [False, False], 3)],
)
def test_other_compressions(dim_mult: list[int], in_time: list[bool], frames: int) -> None:
    """Frames and picture sizes follow the config, not the released models."""
    config = {"dim_mult": dim_mult, "temperal_downsample": in_time}
    vae = tiny.randomised(AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1, **config))
    codec = codec_for(vae)
    latents = noise(1, 16, 3, 2, 3)
    expected = whole(vae, latents)

    assert codec.frames(3) == expected.shape[2] == frames
    assert codec.picture((1, 16, 3, 2, 3)) == tuple(expected.shape[3:])
    assert torch.equal(walk(codec, latents), expected)


@FAMILIES
def test_fast_chunks_round(make: Make) -> None:
    """Chunks of several latents, for fast mode, differ from vae.decode by rounding alone."""
    vae = make()
    codec = codec_for(vae)
    latents = noise(1, codec.channels, 8, 2, 3)

    streamed = walk(codec, latents, 3, mode="fast")

    torch.testing.assert_close(streamed, whole(vae, latents), rtol=0, atol=1e-5)


def test_plan() -> None:
    """The first latent goes alone; exact mode takes one at a time and says why."""
    codec = codec_for(tiny.wan21())

    assert codec.cut(None, None, "exact") == codec.cut(None, 1, "exact") == ChunkPlan(1, 1)
    assert codec.cut(None, 4, "fast") == ChunkPlan(1, 4)
    assert codec.cut(None, None, "fast") == ChunkPlan(1, 1)
    with pytest.raises(UsageError, match=r"chunks of 4 differ .*rounding.*pass mode='fast'"):
        codec.cut(None, 4, "exact")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec.cut(None, 0, "fast")


@FAMILIES
@torch.no_grad()
def test_interleaved(make: Make) -> None:
    """Streams that take turns on one module equal streams alone, and so does vae.decode between."""
    vae = make()
    codec = codec_for(vae)
    clips = [noise(1, codec.channels, 3, 3, 2, seed=seed) for seed in (1, 2, 3)]
    expected = [whole(vae, clip) for clip in clips]
    decoders = [codec.decoder(), codec.decoder()]
    got: list[list[torch.Tensor]] = [[], []]

    for turn in zip(*(pieces(codec, clip) for clip in clips[:2]), strict=True):
        for k, piece in enumerate(turn):
            got[k].append(decoders[k].decode(piece))
            assert torch.equal(whole(vae, clips[2]), expected[2])

    for k in (0, 1):
        assert finish(codec, decoders[k], 3) == []
        assert torch.equal(torch.cat(got[k], 2), expected[k])


def test_leaves_the_module_alone() -> None:
    """A stream touches neither the module's own caches nor its weights nor global flags."""
    vae = tiny.wan21()
    vae.clear_cache()
    before = dict(vars(vae))
    weights = {key: value.clone() for key, value in vae.state_dict().items()}

    walk(codec_for(vae), noise(1, 4, 3, 2, 2))

    assert vars(vae) == before
    assert all(slot is None for slot in vae._feat_map)
    assert all(torch.equal(value, weights[key]) for key, value in vae.state_dict().items())
    assert torch.is_grad_enabled()


@torch.no_grad()
def test_giver_may_reuse_latents() -> None:
    """Latents overwritten after their chunk do not change later frames."""
    vae = tiny.wan21()
    codec = codec_for(vae)
    latents = noise(1, 4, 3, 2, 2)
    decoder, buffer, parts = codec.decoder(), torch.empty(1, 4, 1, 2, 2), []

    for piece in pieces(codec, latents):
        buffer.copy_(piece)
        parts.append(decoder.decode(buffer))
        buffer.fill_(torch.nan)

    assert torch.equal(torch.cat(parts, 2), whole(vae, latents))


@torch.no_grad()
def test_close_lets_go() -> None:
    """Closing drops the caches at once, twice is fine, and decoding afterwards raises."""
    codec = codec_for(tiny.wan21())
    decoder = codec.decoder()
    decoder.decode(noise(1, 4, 1, 2, 2))
    kept = decoder._clips[0]._walks[0][0]._cache
    slots = [weakref.ref(slot) for slot in kept if isinstance(slot, torch.Tensor)]
    assert slots
    assert decoder.drain() is None

    decoder.close()
    decoder.close()

    gc.collect()
    assert kept == []
    assert all(slot() is None for slot in slots)
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 1, 2, 2))


@torch.no_grad()
def test_failure_closes() -> None:
    """After a failed chunk the caches are gone and no frame comes out of half a step."""
    vae = tiny.wan21()
    decoder = codec_for(vae).decoder()
    decoder.decode(noise(1, 4, 1, 2, 2))
    hook = vae.decoder.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        decoder.decode(noise(1, 4, 1, 2, 2))

    hook.remove()
    assert decoder._clips == []
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 1, 2, 2))


@torch.no_grad()
def test_wrong_chunks() -> None:
    """A first chunk of two latents and a chunk of another size are refused, not decoded wrongly."""
    codec = codec_for(tiny.wan21())
    with pytest.raises(UsageError, match="a first chunk of 1 latent, got 2"):
        codec.decoder().decode(noise(1, 4, 2, 2, 2))

    decoder = codec.decoder()
    decoder.decode(noise(1, 4, 1, 2, 2))
    with pytest.raises(LatentsError, match=r"\(1, 4, 2, 2\), got \(2, 4, 2, 2\)"):
        decoder.decode(noise(2, 4, 1, 2, 2))


@pytest.mark.parametrize(
    "shape", [(4, 3, 2, 2), (1, 16, 3, 2, 2), (1, 4, 0, 2, 2), (0, 4, 1, 2, 2), (1, 4, 1, 2, 0)]
)
def test_check(shape: tuple[int, ...]) -> None:
    """Latents of another rank, with other channels or empty ones are refused by name."""
    codec = codec_for(tiny.wan21())
    codec.check((1, 4, 3, 2, 2))

    with pytest.raises(LatentsError, match=r"\(B, C, T, H, W\) with C = 4.*got shape") as caught:
        codec.check(shape)

    assert str(shape) in str(caught.value)


@FAMILIES
@torch.no_grad()
def test_tiling(make: Make) -> None:
    """With tiling on, frames equal those of tiled_decode, tile sizes dividing or not."""
    vae = make()
    vae.enable_tiling(64, 64, 48, 48)
    codec = codec_for(vae)
    tile = 64 // vae.spatial_compression_ratio
    for batch, height, width in [(1, tile, tile), (2, tile + 1, 2 * tile), (1, 2 * tile - 1, 1)]:
        latents = noise(batch, codec.channels, 3, height, width)
        expected = whole(vae, latents)
        assert torch.equal(walk(codec, latents), expected)
        assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])


@torch.no_grad()
def test_tiles_with_slicing() -> None:
    """Sliced and tiled at once: every clip has tiles of its own."""
    vae = tiny.wan21()
    vae.enable_tiling(16, 16, 8, 8)
    vae.enable_slicing()
    latents = noise(2, 4, 3, 3, 5)

    assert torch.equal(walk(codec_for(vae), latents), whole(vae, latents))


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_denormalize(make: Make, dtype: torch.dtype) -> None:
    """Latents are denormalised by the formula of diffusers' pipelines, to the bit."""
    vae = make()
    codec = codec_for(vae)
    latents = noise(2, codec.channels, 3, 2, 2, dtype=dtype)
    mean = torch.tensor(vae.config.latents_mean).view(1, vae.config.z_dim, 1, 1, 1).to(dtype)
    std = torch.tensor(vae.config.latents_std).view(1, vae.config.z_dim, 1, 1, 1).to(dtype)

    for _ in range(2):
        assert torch.equal(codec.denormalize(latents), latents / (1.0 / std) + mean)


def test_denormalize_needs_statistics() -> None:
    """Without statistics in the config there is nothing to denormalise by, and it says so."""
    vae = tiny.wan21()
    vae.register_to_config(latents_mean=None)

    with pytest.raises(UsageError, match="expected latents_mean and latents_std"):
        codec_for(vae).denormalize(noise(1, 4, 1, 2, 2))


def test_older_diffusers() -> None:
    """Modules without the count of convolutions (older diffusers) are streamed all the same."""
    vae = tiny.qwen_image()
    latents = noise(1, 4, 3, 2, 2)
    expected = whole(vae, latents)
    del vae._cached_conv_counts

    assert torch.equal(walk(codec_for(vae), latents), expected)
