from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable

import accelerate
import pytest
import torch
from torch import nn

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, pieces, walk, whole
from tests.families.causal import cosmos, hunyuan15, mochi

Make = Callable[..., nn.Module]
each = pytest.mark.parametrize("make", [mochi, hunyuan15, cosmos])


def assert_close(given: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding in float32, where frames reach 5."""
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


@each
def test_plan(make: Make) -> None:
    """One latent at a time unless asked otherwise; any number is as exact, so all modes take it."""
    codec = codec_for(make())

    assert codec.cut(None, None, "exact") == ChunkPlan(1, 1)
    assert codec.cut(7, 3, "exact") == codec.cut(None, 3, "fast") == ChunkPlan(3, 3)
    assert codec.drains(7) == 0
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec.cut(None, 0, "exact")


@each
def test_chunks_of_any_size_are_one_function(make: Make) -> None:
    """Cutting latents differently does not even change more than the last bits, at any frame."""
    vae = make().double()
    codec = codec_for(vae)
    latents = noise(1, 4, 5, 2, 2, dtype=torch.float64)
    decoder = codec.decoder()
    with torch.no_grad():
        uneven = [decoder.decode(chunk.clone()) for chunk in latents.split([2, 1, 2], 2)]

    one_by_one = walk(codec, latents)

    assert [part.shape[2] for part in uneven] == [codec.frames(2), *_later(codec.frames, 1, 2)]
    torch.testing.assert_close(torch.cat(uneven, 2), one_by_one, rtol=0, atol=1e-13)


def _later(frames: Callable[[int], int], *counts: int) -> list[int]:
    return [frames(1 + count) - frames(1) for count in counts]


@pytest.mark.parametrize(
    ("make", "config", "frames", "scale"),
    [
        (mochi, {"temporal_expansions": (1, 2, 2), "spatial_expansions": (1, 2, 2)}, 9, 4),
        (mochi, {"temporal_expansions": (1, 1, 1)}, 3, 8),
        (hunyuan15, {"temporal_compression_ratio": 8, "spatial_compression_ratio": 8}, 17, 8),
        (hunyuan15, {"upsample_match_channel": False, "block_out_channels": (8,) * 5}, 9, 16),
        (cosmos, {"temporal_compression_ratio": 4}, 9, 8),
        (cosmos, {"patch_size": 2, "temporal_compression_ratio": 4}, 9, 8),
        # Too few blocks for its ratios: what counts is what they do.
        (cosmos, {"patch_size": 2, "patch_type": "rearrange"}, 9, 4),
    ],
)
def test_other_compressions(make: Make, config: dict[str, object], frames: int, scale: int) -> None:
    """Frames and picture sizes follow the config, not the released models."""
    vae = make(**config)
    codec = codec_for(vae)
    latents = noise(1, 4, 3, 2, 3)
    expected = whole(vae, latents)

    assert codec.frames(3) == expected.shape[2] == frames
    assert codec.picture((1, 4, 3, 2, 3)) == tuple(expected.shape[3:]) == (2 * scale, 3 * scale)
    assert_close(walk(codec, latents), expected)
    assert_close(walk(codec, latents, 2), expected)


@pytest.mark.parametrize("length", [1, 3])
def test_mochi_keeps_all_frames(length: int) -> None:
    """With drop_last_temporal_frames off, six frames come for the first latent, too."""
    vae = mochi()
    vae.drop_last_temporal_frames = False
    codec = codec_for(vae)
    latents = noise(1, 4, length, 2, 2)
    expected = whole(vae, latents)

    assert codec.frames(length) == expected.shape[2] == 6 * length
    assert_close(walk(codec, latents), expected)


@pytest.mark.parametrize("switch", ["_enable_framewise_decoding", "_enable_framewise_encoding"])
def test_mochi_framewise(switch: str) -> None:
    """Switches that take the padding from diffusers' convolutions are named, with a way out."""
    vae = mochi()
    getattr(vae, switch)()
    latents = noise(1, 4, 2, 2, 2)
    with pytest.raises(RuntimeError):
        whole(vae, latents)

    with pytest.raises(UsageError, match=r"framewise coding was enabled.*load it anew"):
        codec_for(vae).check(tuple(latents.shape))


@pytest.mark.parametrize("switch", ["use_tiling", "use_framewise_decoding"])
def test_cosmos_ignores_switches(switch: str) -> None:
    """What vae.decode ignores is ignored, and said."""
    vae = cosmos()
    latents = noise(1, 4, 2, 5, 3)
    codec = codec_for(vae)
    assert codec.notes(tuple(latents.shape)) == ()
    vae.enable_tiling(16, 16, 1, 8, 8)
    vae.use_tiling = vae.use_framewise_decoding = False
    setattr(vae, switch, True)

    (note,) = codec.notes(tuple(latents.shape))

    assert switch in note
    assert "ignores it" in note
    assert_close(walk(codec, latents), whole(vae, latents))


def test_hunyuan15_batch() -> None:
    """A batch that vae.decode fails over is decoded as each clip alone, and that is said."""
    vae = hunyuan15()
    codec = codec_for(vae)
    latents = noise(2, 4, 2, 2, 2)
    with pytest.raises(RuntimeError):
        whole(vae, latents)
    (note,) = codec.notes(tuple(latents.shape))
    assert "enable_slicing" in note
    streamed = walk(codec, latents)

    vae.enable_slicing()

    assert codec.notes(tuple(latents.shape)) == ()
    assert_close(streamed, whole(vae, latents))
    assert_close(walk(codec, latents), whole(vae, latents))


@pytest.mark.parametrize("make", [mochi, hunyuan15])
@pytest.mark.parametrize("size", [(4, 4), (5, 4), (4, 9), (7, 6)])
def test_tiles(make: Make, size: tuple[int, int]) -> None:
    """Tiles that fit, that divide and that do not: the picture is that of tiled_decode."""
    vae = make()
    side = 4 * vae.spatial_compression_ratio
    vae.enable_tiling(side, side)
    if make is mochi:
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 3 * side // 4
    else:
        vae.tile_latent_min_height = vae.tile_latent_min_width = 4
    codec = codec_for(vae)
    latents = noise(1, 4, 2, *size)
    expected = whole(vae, latents)

    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])
    assert_close(walk(codec, latents), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_denormalize(dtype: torch.dtype) -> None:
    """Latents are denormalised by the formulas of diffusers' pipelines, to the bit."""
    latents = noise(2, 4, 3, 2, 2, dtype=dtype)
    vae = mochi()
    mean = torch.tensor(vae.config.latents_mean).view(1, 4, 1, 1, 1).to(dtype)
    std = torch.tensor(vae.config.latents_std).view(1, 4, 1, 1, 1).to(dtype)

    assert torch.equal(codec_for(vae).denormalize(latents), latents * std / 0.9 + mean)
    vae.register_to_config(latents_std=None)
    assert torch.equal(codec_for(vae).denormalize(latents), latents / 0.9)
    assert torch.equal(codec_for(hunyuan15()).denormalize(latents), latents / 1.03682)


def test_cosmos_denormalize() -> None:
    """Statistics of each latent's place and a scheduler's factor are the pipeline's to know."""
    with pytest.raises(UsageError, match=r"expected latents .* pass the pipeline"):
        codec_for(cosmos()).denormalize(noise(1, 4, 1, 2, 2))


@each
@torch.no_grad()
def test_leaves_the_module_alone(make: Make) -> None:
    """A stream touches neither attributes nor weights of any module, nor global flags."""
    vae = make()
    before = [dict(vars(part)) for part in vae.modules()]
    weights = {key: value.clone() for key, value in vae.state_dict().items()}

    walk(codec_for(vae), noise(1, 4, 2, 2, 2))

    assert [dict(vars(part)) for part in vae.modules()] == before
    assert all(torch.equal(value, weights[key]) for key, value in vae.state_dict().items())


@each
@torch.no_grad()
def test_giver_may_reuse_latents(make: Make) -> None:
    """Latents overwritten after their chunk do not change later frames."""
    vae = make()
    codec = codec_for(vae)
    latents = noise(1, 4, 3, 2, 2)
    decoder, buffer, parts = codec.decoder(), torch.empty(1, 4, 1, 2, 2), []

    for piece in pieces(codec, latents):
        buffer.copy_(piece)
        parts.append(decoder.decode(buffer).clone())
        buffer.fill_(torch.nan)

    assert_close(torch.cat(parts, 2), whole(vae, latents))


@each
@torch.no_grad()
def test_only_keys_and_values_grow(make: Make) -> None:
    """From chunk to chunk nothing else grows, and nothing kept is part of a larger tensor."""
    codec = codec_for(make())
    decoder = codec.decoder()
    kept: list[list[torch.Tensor]] = []
    seen: list[int] = []
    for piece in pieces(codec, noise(1, 4, 4, 2, 2)):
        decoder.decode(piece)
        past = decoder._clips[0]._walks[0][0]._past
        kept.append(list(past._last.values()))
        seen.append(sum(t.numel() for pair in past._seen.values() for t in pair))
        for tensor in (*kept[-1], *(t for pair in past._seen.values() for t in pair)):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

    assert all([t.shape for t in kept[0]] == [t.shape for t in later] for later in kept)
    assert seen == [seen[0] * (1 + k) for k in range(4)] or make is cosmos
    assert all(later >= before for before, later in itertools.pairwise(seen))


@each
@torch.no_grad()
def test_close_lets_go(make: Make) -> None:
    """Closing drops the past at once, twice is fine, and decoding afterwards raises."""
    decoder = codec_for(make()).decoder()
    decoder.decode(noise(1, 4, 1, 2, 2))
    past = decoder._clips[0]._walks[0][0]._past
    kept = [weakref.ref(tensor) for tensor in past._last.values()]
    kept += [weakref.ref(tensor) for pair in past._seen.values() for tensor in pair]
    assert kept

    decoder.close()
    decoder.close()

    gc.collect()
    assert all(tensor() is None for tensor in kept)
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 1, 2, 2))


@each
@torch.no_grad()
def test_failure_closes(make: Make) -> None:
    """After a failed chunk the past is gone and no frame comes out of half a step."""
    vae = make()
    decoder = codec_for(vae).decoder()
    decoder.decode(noise(1, 4, 1, 2, 2))
    last = vae.decoder.proj_out if make is mochi else vae.decoder.norm_out
    hook = last.register_forward_pre_hook(lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        decoder.decode(noise(1, 4, 1, 2, 2))

    hook.remove()
    assert decoder._clips == []
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 1, 2, 2))


@each
def test_check(make: Make) -> None:
    """Latents of another rank, with other channels or empty ones are refused by name."""
    codec = codec_for(make())
    codec.check((1, 4, 3, 2, 2))
    for shape in [(4, 3, 2, 2), (1, 16, 3, 2, 2), (1, 4, 0, 2, 2)]:
        with pytest.raises(LatentsError, match=r"\(B, C, T, H, W\) with C = 4.*got shape"):
            codec.check(shape)


@each
def test_offloaded_leaf_by_leaf(make: Make) -> None:
    """Weights that hooks bring to each layer are there when the layer is called."""
    latents = noise(1, 4, 3, 2, 2)
    expected = whole(make(), latents)
    vae = make()
    accelerate.cpu_offload(vae, torch.device("cpu"))
    codec = codec_for(vae)
    codec.check(tuple(latents.shape))
    assert any(weights.is_meta for weights in vae.parameters())

    assert_close(walk(codec, latents), expected)


@each
def test_layerwise_casting(make: Make) -> None:
    """Weights stored in eight bits are cast up layer by layer, as in vae.decode."""
    vae = make().to(torch.bfloat16)
    vae.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16, skip_modules_pattern=None
    )
    latents = noise(1, 4, 3, 2, 2, dtype=torch.bfloat16)
    expected = whole(vae, latents)
    codec = codec_for(vae)
    codec.check(tuple(latents.shape))

    torch.testing.assert_close(walk(codec, latents), expected, rtol=0, atol=0.1)


@each
def test_compiled(make: Make) -> None:
    """A compiled decoder gives the same frames, and it is said that it is not used."""
    latents = noise(1, 4, 2, 2, 2)
    expected = whole(make(), latents)
    wrapped, in_place = make(), make()
    wrapped.decoder = torch.compile(wrapped.decoder, backend="eager")
    in_place.decoder.compile(backend="eager")
    for vae in (wrapped, in_place):
        codec = codec_for(vae)
        codec.check(tuple(latents.shape))
        assert any("compiled is not used" in note for note in codec.notes(tuple(latents.shape)))
        assert_close(walk(codec, latents), expected)


def test_compiled_layers() -> None:
    """Compiled layers are called: their frames are the same, and nothing is to be said."""
    vae = cosmos()
    latents = noise(1, 4, 2, 2, 2)
    expected = whole(vae, latents)
    vae.decoder.conv_out.conv_t = torch.compile(vae.decoder.conv_out.conv_t, backend="eager")
    codec = codec_for(vae)

    assert codec.notes(tuple(latents.shape)) == ()
    assert_close(walk(codec, latents), expected)
