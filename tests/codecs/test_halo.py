from __future__ import annotations

import pytest
import torch
from torch import nn

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from streamvae.codecs._reach import Reach
from tests import tiny
from tests.codecs.walk import noise, pieces, walk, whole

STRIDES = pytest.mark.parametrize("strides", [(2, 4, 4, 8, 8), (2, 3, 5), (3, 5), (4,)])


@STRIDES
@pytest.mark.parametrize("count", [1, 7, 128])
def test_equals_decode(strides: tuple[int, ...], count: int) -> None:
    """Sound equals vae.decode within rounding, to the sample count, for any chunk and length."""
    vae = tiny.oobleck(strides=strides)
    codec = codec_for(vae)
    default = len(strides) == 5

    lengths = (1, 12, 40) if default else (1, 2, 3, 5, 8, 13, 21, 29, 40)
    for length in range(1, 41) if (strides, count) == ((3, 5), 7) else lengths:
        latents = noise(2, 8, length)
        expected = whole(vae, latents)
        streamed = walk(codec, latents, count)
        assert codec.frames(length) == expected.shape[2]
        torch.testing.assert_close(streamed, expected, rtol=0, atol=2e-6)


def test_several_windows() -> None:
    """The default chunks of 128 latents join without a seam."""
    vae = tiny.oobleck(strides=(2, 3))
    codec = codec_for(vae)
    latents = noise(1, 8, 300)

    streamed = walk(codec, latents)

    torch.testing.assert_close(streamed, whole(vae, latents), rtol=0, atol=2e-6)


@STRIDES
def test_reach(strides: tuple[int, ...]) -> None:
    """The computed reach is the one that a poisoned latent shows, to the sample."""
    vae = tiny.oobleck(strides=strides)
    reach = codec_for(vae).reach
    latents = noise(1, 8, 61)
    latents[:, :, 30] = torch.nan

    spoilt = whole(vae, latents).isnan().any(1)[0].nonzero().flatten().tolist()

    assert spoilt == list(range(reach.hop * 30 - reach.after, reach.hop * 31 + reach.before))


def test_reach_of_the_released_model() -> None:
    """Default strides need 10 latents on either side and lose no samples."""
    reach = codec_for(tiny.oobleck()).reach

    assert reach.hop == 2048
    assert reach.latents == (10, 10)
    assert reach.lost == 0


def test_reach_with_output_padding() -> None:
    """A transposed convolution's output padding is counted."""
    layers = nn.Sequential(
        nn.Conv1d(1, 1, 5, dilation=2, padding=3),
        nn.ConvTranspose1d(1, 1, 4, stride=3, padding=1, output_padding=1, dilation=2),
    )
    reach = Reach.of(layers)

    for length in (4, 9):
        assert reach.total(length) == layers(torch.zeros(1, 1, length)).shape[2]


@torch.no_grad()
def test_holds_back() -> None:
    """A chunk gives only samples that no later latent changes, and nothing rather than none."""
    vae = tiny.oobleck(strides=(2, 3, 5))
    codec = codec_for(vae)
    decoder = codec.decoder()
    latents = noise(1, 8, 40)

    given = [decoder.decode(piece) for piece in pieces(codec, latents, 8)]
    rest = decoder.drain()

    after = codec.reach.after
    assert given[0] is None
    sizes = [0 if part is None else part.shape[2] for part in given]
    assert [sum(sizes[: k + 1]) for k in range(5)] == [
        max(0, codec.reach.hop * 8 * (k + 1) - after) for k in range(5)
    ]
    assert sum(sizes) + rest.shape[2] == codec.frames(40)
    assert codec.drains(40) == 1
    assert decoder.drain() is None
    decoder.close()


@torch.no_grad()
def test_window_stays_small() -> None:
    """What is held does not grow with the length of the stream."""
    codec = codec_for(tiny.oobleck(strides=(4,)))
    decoder = codec.decoder()
    held = []

    for piece in pieces(codec, noise(1, 8, 200), 5):
        decoder.decode(piece)
        held.append(decoder._held[0].shape[2])
        assert decoder._held[0].untyped_storage().nbytes() == decoder._held[0].nbytes

    assert max(held) <= sum(codec.reach.latents) + 1
    assert held[-1] == held[len(held) // 2]


@torch.no_grad()
def test_giver_may_reuse_latents() -> None:
    """Latents overwritten after their chunk do not change later samples."""
    vae = tiny.oobleck(strides=(2, 3))
    codec = codec_for(vae)
    latents = noise(1, 8, 60)
    decoder, buffer, parts = codec.decoder(), torch.empty(1, 8, 20), []

    for piece in pieces(codec, latents, 20):
        buffer.copy_(piece)
        parts.append(decoder.decode(buffer))
        buffer.fill_(torch.nan)
    parts.append(decoder.drain())

    given = torch.cat([part for part in parts if part is not None], 2)
    torch.testing.assert_close(given, whole(vae, latents), rtol=0, atol=2e-6)


@torch.no_grad()
def test_interleaved() -> None:
    """Two streams that take turns on one module equal two alone."""
    codec = codec_for(tiny.oobleck(strides=(2, 3)))
    clips = [noise(1, 8, 50, seed=seed) for seed in (1, 2)]
    alone = [walk(codec, clip, 10) for clip in clips]
    decoders, got = [codec.decoder(), codec.decoder()], [[], []]

    for turn in zip(*(pieces(codec, clip, 10) for clip in clips), strict=True):
        for k, piece in enumerate(turn):
            got[k].append(decoders[k].decode(piece))

    for k in (0, 1):
        got[k].append(decoders[k].drain())
        assert torch.equal(torch.cat([part for part in got[k] if part is not None], 2), alone[k])


def test_slicing() -> None:
    """With slicing on, items are decoded one by one."""
    vae = tiny.oobleck(strides=(2, 3))
    vae.enable_slicing()
    codec = codec_for(vae)
    latents = noise(3, 8, 30)

    torch.testing.assert_close(walk(codec, latents), whole(vae, latents), rtol=0, atol=2e-6)


def test_tiling() -> None:
    """Tiling with enough overlap is streamed as the same sound; otherwise it is refused."""
    vae = tiny.oobleck()
    if not hasattr(vae, "use_tiling"):
        pytest.skip("this release of diffusers does not decode sound in tiles")
    vae.enable_tiling()
    vae.tile_latent_min_length, vae.tile_latent_overlap = 24, 10
    codec = codec_for(vae)
    latents = noise(1, 8, 40)

    codec.check((1, 8, 40))
    torch.testing.assert_close(walk(codec, latents), whole(vae, latents), rtol=0, atol=2e-6)

    vae.tile_latent_overlap = 9
    with pytest.raises(UsageError, match=r"at least 10 latents.*overlap of 9.*disable_tiling"):
        codec.check((1, 8, 40))

    lossy = tiny.oobleck(strides=(3, 5))
    lossy.enable_tiling()
    with pytest.raises(UsageError, match=r"4 samples lost a tile.*disable_tiling"):
        codec_for(lossy).check((1, 8, 40))


def test_plan() -> None:
    """Any chunk size is within rounding, so exact mode takes any; 128 latents by default."""
    codec = codec_for(tiny.oobleck(strides=(4,)))

    assert codec.cut(None, None, "exact") == ChunkPlan(128, 128)
    assert codec.cut(None, 3, "exact") == codec.cut(None, 3, "fast") == ChunkPlan(3, 3)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec.cut(None, 0, "exact")


@pytest.mark.parametrize("shape", [(8, 40), (1, 4, 40), (1, 8, 0), (0, 8, 3)])
def test_check(shape: tuple[int, ...]) -> None:
    """Latents of another rank, with other channels or empty ones are refused by name."""
    codec = codec_for(tiny.oobleck(strides=(4,)))
    codec.check((1, 8, 1))

    with pytest.raises(LatentsError, match=r"\(B, C, T\) with C = 8.*got shape"):
        codec.check(shape)
    assert codec.picture((1, 8, 40)) is None


@torch.no_grad()
def test_close_lets_go() -> None:
    """Closing drops the window, twice is fine, and decoding or draining afterwards raises."""
    decoder = codec_for(tiny.oobleck(strides=(4,))).decoder()
    decoder.decode(noise(1, 8, 3))
    kept = decoder._held

    decoder.close()
    decoder.close()

    assert kept == []
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 8, 3))
    with pytest.raises(ClosedError):
        decoder.drain()


@torch.no_grad()
def test_wrong_chunk() -> None:
    """A chunk of another batch is refused, and the stream is over."""
    decoder = codec_for(tiny.oobleck(strides=(4,))).decoder()
    decoder.decode(noise(1, 8, 3))

    with pytest.raises(LatentsError, match=r"\(1, 8\), got \(2, 8\)"):
        decoder.decode(noise(2, 8, 3))
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 8, 3))


def test_denormalize() -> None:
    """The diffusion model works in the decoder's space."""
    latents = noise(1, 8, 3)

    assert codec_for(tiny.oobleck(strides=(4,))).denormalize(latents) is latents
