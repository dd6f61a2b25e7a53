from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from streamvae._errors import ClosedError, UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, pieces, walk, whole
from tests.families.partition import cogvideox, kandinsky6_sr, kvae_video, magvit

Make = Callable[..., nn.Module]
FAMILIES = pytest.mark.parametrize("make", [cogvideox, kvae_video, kandinsky6_sr, magvit])


def tensors(state: object) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list):
        for kept in state.values() if isinstance(state, dict) else state:
            yield from tensors(kept)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (cogvideox, {}),
        (cogvideox, {"temporal_compression_ratio": 8}),
        (cogvideox, {"temporal_compression_ratio": 2}),
        (kvae_video, {}),
        (kvae_video, {"temporal_compress_times": 8}),
        (kvae_video, {"temporal_compress_times": 2, "ch_mult": (1, 1)}),
        (kandinsky6_sr, {}),
        (kandinsky6_sr, {"temporal_compression_ratio": 8, "temporal_compression_start_level": 0}),
        (kandinsky6_sr, {"temporal_compression_ratio": 2, "temporal_compression_start_level": 3}),
        (magvit, {}),
        (magvit, {"up_block_types": ["SpatialTemporalUpBlock3D"] * 4}),
        (magvit, {"up_block_types": ["SpatialUpBlock3D"] * 3 + ["SpatialTemporalUpBlock3D"]}),
    ],
)
@torch.no_grad()
def test_foretold(make: Make, config: dict[str, object]) -> None:
    """Frames and picture sizes are diffusers' own for any number of latents, lost frames too."""
    vae = make(**config).to("meta")
    codec = codec_for(vae)
    for length in (1, 2, 3, 6):
        expected = whole(vae, torch.empty(1, 4, length, 2, 3, device="meta"))
        assert codec.frames(length) == expected.shape[2], length
        assert codec.picture((1, 4, length, 2, 3)) == tuple(expected.shape[3:])


@FAMILIES
def test_slicing(make: Make) -> None:
    """With slicing on, clips are decoded one by one, each with a state of its own."""
    vae = make()
    latents = noise(3, 4, 3, 2, 2)
    expected = torch.cat([whole(vae, clip) for clip in latents.split(1)])
    vae.use_slicing = True
    assert torch.equal(walk(codec_for(vae), latents), expected)


@FAMILIES
@torch.no_grad()
def test_giver_may_reuse_latents(make: Make) -> None:
    """Latents overwritten after their chunk do not change later frames."""
    vae = make()
    codec = codec_for(vae)
    latents = noise(1, 4, 6, 2, 2)
    decoder, parts = codec.decoder(), []

    for piece in pieces(codec, latents):
        parts.append(decoder.decode(piece))
        piece.fill_(torch.nan)

    assert torch.equal(torch.cat(parts, 2), whole(vae, latents))


@FAMILIES
@torch.no_grad()
def test_close_lets_go(make: Make) -> None:
    """Closing drops the state at once, down to the innermost container, and ends the decoder."""
    codec = codec_for(make())
    decoder = codec.decoder()
    decoder.decode(noise(1, 4, codec.cut(7, None, "exact").first, 2, 2))
    held = decoder._clips[0]._walks[0][0]._held
    state = held[0]
    slots = [weakref.ref(slot) for slot in tensors(state)]
    assert slots
    assert decoder.drain() is None

    decoder.close()
    decoder.close()

    gc.collect()
    assert held == []
    assert not state
    assert all(slot() is None for slot in slots)
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 1, 2, 2))


@FAMILIES
@torch.no_grad()
def test_failure_closes(make: Make) -> None:
    """After a failed chunk the state is gone, and a fresh stream is right."""
    vae = make()
    codec = codec_for(vae)
    latents = noise(1, 4, 7, 2, 2)
    first, second, *_ = pieces(codec, latents)
    decoder = codec.decoder()
    decoder.decode(first)
    hook = vae.decoder.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        decoder.decode(second)

    hook.remove()
    assert decoder._clips == []
    with pytest.raises(ClosedError):
        decoder.decode(second)
    assert torch.equal(walk(codec, latents), whole(vae, latents))


@FAMILIES
@torch.no_grad()
def test_state_is_no_larger_than_told(make: Make) -> None:
    """No tensor that is kept has a larger storage than itself, nor more than two frames."""
    codec = codec_for(make())
    decoder = codec.decoder()
    for piece in pieces(codec, noise(1, 4, 7, 2, 2)):
        decoder.decode(piece)
        for kept in tensors(decoder._clips[0]._walks[0][0]._held):
            assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
            assert kept.numel() == 0 or kept.shape[2] <= 2


@pytest.mark.parametrize(
    ("make", "latents", "first", "rest"),
    [
        (cogvideox, 1, 1, 2),
        (cogvideox, 2, 2, 2),
        (cogvideox, 7, 3, 2),
        (kvae_video, None, 5, 4),
        (kandinsky6_sr, None, 5, 4),
        (magvit, None, 1, 1),
    ],
)
def test_plan(make: Make, latents: int | None, first: int, rest: int) -> None:
    """Latents are cut where vae.decode cuts them, or at several of these places at once."""
    codec = codec_for(make())
    assert codec.needs_length == (make is cogvideox)
    assert codec.cut(latents, None, "exact") == ChunkPlan(first, rest)
    assert codec.cut(latents, rest, "fast") == ChunkPlan(first, rest)
    assert codec.cut(latents, 3 * rest, "exact") == ChunkPlan(first + 2 * rest, 3 * rest)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec.cut(latents, 0, "exact")


@pytest.mark.parametrize(("make", "rest"), [(cogvideox, 2), (kvae_video, 4)])
def test_other_chunks_are_refused(make: Make, rest: int) -> None:
    """Where the cut is part of the function, no mode takes another one."""
    for mode in ("exact", "fast"):
        with pytest.raises(UsageError, match=f"multiple of {rest}, .*normalizes.*got 3"):
            codec_for(make()).cut(7, 3, mode)


def test_segments_can_be_set() -> None:
    """The size of segments that the user may set on the autoencoder is followed."""
    for make, size in ((cogvideox, 3), (magvit, 2)):
        vae = make()
        vae.num_latent_frames_batch_size = size
        for length in (1, 2, 5):
            latents = noise(1, 4, length, 2, 2)
            expected = whole(vae, latents)
            assert torch.equal(walk(codec_for(vae), latents), expected)
            assert codec_for(vae).frames(length) == expected.shape[2]


def test_cogvideox_has_to_be_counted() -> None:
    """Without the number of latents CogVideoX cannot be cut, and it says so."""
    with pytest.raises(UsageError, match="whose number is known"):
        codec_for(cogvideox()).cut(None, None, "exact")


def test_cogvideox_post_quant_conv() -> None:
    """A convolution before the decoder, which releases lack, is run where vae.decode runs it."""
    vae = cogvideox(latent_channels=3, use_post_quant_conv=True)
    latents = noise(1, 3, 5, 2, 3)
    assert torch.equal(walk(codec_for(vae), latents), whole(vae, latents))


@pytest.mark.parametrize("factors", [(None, None), (0.5, 0.25)])
def test_cogvideox_tiles(factors: tuple[float | None, float | None]) -> None:
    """Tiles that do not divide give diffusers' picture, whose size is not 8 pixels a latent."""
    vae = cogvideox()
    vae.enable_tiling(32, 24, *factors)
    vae.use_slicing = True
    codec = codec_for(vae)
    for height, width in ((4, 3), (5, 3), (4, 5), (6, 7)):
        latents = noise(2, 4, 3, height, width)
        expected = whole(vae, latents)
        assert torch.equal(walk(codec, latents), expected)
        assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])


@torch.no_grad()
def test_cogvideox_drops_dead_caches() -> None:
    """What 1x1 convolutions keep and never read is not kept by a stream."""
    vae = cogvideox()
    latents = noise(1, 4, 2, 2, 2)
    _, cache = vae.decoder(latents)
    decoder = codec_for(vae).decoder()
    decoder.decode(latents)

    bytes_of = lambda state: sum(one.nbytes for one in tensors(state))  # noqa: E731
    assert bytes_of(decoder._clips[0]._walks[0][0]._held) < bytes_of(cache)


def test_kvae_says_what_is_lost() -> None:
    """Frames that diffusers loses are lost here too, and the notes say so."""
    codec = codec_for(kvae_video())
    for latents, lost in ((1, 0), (2, 0), (5, 0), (6, 3), (9, 0), (10, 3)):
        notes = codec.notes((1, 4, latents, 2, 2))

        assert codec.frames(latents) == 4 * latents - 3 - lost
        assert len(notes) == bool(lost)
        assert not lost or f"{4 * latents - 3 - lost} frames for {latents} latents, not" in notes[0]


def test_kvae_says_that_tiling_is_ignored() -> None:
    """Tiling is ignored by diffusers and here, and the notes say so."""
    vae = kvae_video()
    latents = noise(1, 4, 2, 2, 3)
    expected = whole(vae, latents)
    vae.enable_tiling()

    assert torch.equal(whole(vae, latents), expected)
    assert torch.equal(walk(codec_for(vae), latents), expected)
    assert any("cannot tile" in note for note in codec_for(vae).notes((1, 4, 2, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denormalize(dtype: torch.dtype) -> None:
    """Latents are denormalised by the formula of diffusers' pipelines, to the bit."""
    latents = noise(1, 4, 3, 2, 2, dtype=dtype)
    for make in (cogvideox, magvit):
        vae = make()
        expected = 1 / vae.config.scaling_factor * latents
        assert torch.equal(codec_for(vae).denormalize(latents), expected)
    vae = kandinsky6_sr()
    expected = latents / vae.config.scaling_factor
    assert torch.equal(codec_for(vae).denormalize(latents), expected)


def test_denormalize_kvae() -> None:
    """Nobody says how KVAE's latents are normalised, so neither does the codec."""
    with pytest.raises(UsageError, match="normalized=False"):
        codec_for(kvae_video()).denormalize(noise(1, 4, 1, 2, 2))
