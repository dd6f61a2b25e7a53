from __future__ import annotations

import threading

import pytest
import torch
from accelerate import cpu_offload

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan, Codec
from streamvae.codecs import codec_for
from tests.codecs.walk import finish, noise, pieces, walk
from tests.families.vidtok import decode, tile, vidtok, vidtok_tiled
from tests.releases import offload_in_groups

TWO_WAYS = {"is_causal": False}
by_kind = pytest.mark.parametrize("config", [{}, TWO_WAYS], ids=["causal", "two ways"])


def whole(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What ``vae.decode`` gives."""
    return decode(vae, latents, {})


def close(codec: Codec, latents: torch.Tensor, count: int | None = None) -> None:
    """Hold frames, their number and their size to ``vae.decode``."""
    expected = whole(codec.module, latents)
    given = walk(codec, latents, count)
    equal = codec.exactness.startswith("equal bit for bit")
    torch.testing.assert_close(given, expected, rtol=0, atol=0 if equal else 2e-5)
    assert codec.frames(latents.shape[2]) == expected.shape[2]
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])


@torch.no_grad()
def emitted(codec: Codec, latents: torch.Tensor, count: int | None = None) -> list[int]:
    """Frames that come with each chunk, then with each drain."""
    decoder = codec.decoder()
    given = [decoder.decode(piece) for piece in pieces(codec, latents, count)]
    given += [decoder.drain() for _ in range(codec.drains(latents.shape[2]))]
    assert decoder.drain() is None
    decoder.close()
    return [0 if frames is None else frames.shape[2] for frames in given]


def test_frames_come_early() -> None:
    """The first frame comes at once, the others a latent and a half late, and those no sooner."""
    codec = codec_for(vidtok())

    assert emitted(codec, noise(1, 4, 6, 2, 2)) == [1, 0, 2, 4, 4, 4, 4, 2]
    assert emitted(codec, noise(1, 4, 1, 2, 2)) == [1, 0, 0]


def test_the_end_comes_in_parts() -> None:
    """What a decoder that looks ahead owes at the end comes no faster than what came before."""
    codec = codec_for(vidtok(**TWO_WAYS))

    given = emitted(codec, noise(1, 4, 28, 2, 2), 4)

    late = next(place for place, count in enumerate(given) if count)
    assert late == 4  # 17 latents late
    assert max(given[:7]) == 16
    assert max(given[7:]) <= 6
    assert sum(given) == 4 * 28


@pytest.mark.parametrize(
    ("compression", "in_time"), [(2, [2]), (4, [1, 2]), (8, [1, 2, 3]), (4, None)]
)
@pytest.mark.parametrize("tiled", [False, True])
@by_kind
def test_compressions(
    compression: int, in_time: list[int] | None, tiled: bool, config: dict[str, bool]
) -> None:
    """Frames follow the config's compression of time, tiled or not."""
    down = None if in_time is None else [level - 1 for level in in_time]
    vae = vidtok(tempo_us=in_time, tempo_ds=down, **config)
    if tiled:
        tile(vae)
    codec = codec_for(vae)

    assert vae.temporal_compression_ratio == compression
    close(codec, noise(1, 4, 10, 2, 2))


@by_kind
@pytest.mark.parametrize("overlap", [(0.0, 0.0), (0.34, 0.5)])
@pytest.mark.parametrize(("length", "size"), [(6, (2, 2)), (9, (3, 4))])
def test_tiles(
    config: dict[str, bool], overlap: tuple[float, float], length: int, size: tuple[int, int]
) -> None:
    """With tiling on, frames equal those of diffusers' tiles and runs, also where one would do."""
    vae = vidtok(**config)
    vae.enable_tiling(24, 16, *overlap)
    latents = noise(1, 4, length, *size)
    close(codec_for(vae), latents)
    close(codec_for(vae), latents, 20)


def test_tiling_is_another_function() -> None:
    """With tiling on the frames are others, which is said; switched off, they are as before."""
    vae = vidtok()
    codec = codec_for(vae)
    latents = noise(1, 4, 9, 3, 3)
    before = walk(codec, latents)
    assert codec.notes((1, 4, 9, 3, 3)) == ()

    tile(vae)
    tiled = walk(codec, latents)
    assert (tiled - before).abs().max() > 1e-3
    assert "differ from those without" in codec.notes((1, 4, 9, 3, 3))[0]

    vae.disable_tiling()
    assert torch.equal(walk(codec, latents), before)


def test_tiling_that_goes_wrong() -> None:
    """Levels in time that diffusers' tiled decode does not know are refused; untiled they work."""
    vae = vidtok(tempo_us=[2, 3], tempo_ds=[1, 2])
    codec = codec_for(vae)
    close(codec, noise(1, 4, 4, 2, 2))

    tile(vae)
    with pytest.raises(UsageError, match=r"levels 1 and 2.*call vae.disable_tiling\(\)"):
        codec.check((1, 4, 4, 2, 2))


def test_slicing() -> None:
    """With slicing on, clips are decoded one by one, as vae.decode does it then."""
    for vae in (vidtok(), vidtok_tiled()):
        vae.enable_slicing()
        close(codec_for(vae), noise(3, 4, 3, 2, 5))


def test_groups() -> None:
    """A decoder that looks ahead takes whole groups of latents; what is lost is said."""
    codec = codec_for(vidtok(**TWO_WAYS))

    assert codec.needs_length
    assert codec.frames(11) == codec.frames(8) == 32
    assert codec.notes((1, 4, 8, 2, 2)) == ()
    assert "groups of 4" in codec.notes((1, 4, 11, 2, 2))[0]
    assert "the last 3 of 11 are left out" in codec.notes((1, 4, 11, 2, 2))[0]


@pytest.mark.parametrize("tiled", [False, True])
@torch.no_grad()
def test_too_few(tiled: bool) -> None:
    """Fewer latents than a group are refused, when they are counted and when they ran out."""
    vae = vidtok(**TWO_WAYS)
    if tiled:
        tile(vae)
    codec = codec_for(vae)
    with pytest.raises(LatentsError, match="at least 4 latents .* not causal, got 3"):
        codec.cut(3, None, "exact")

    decoder = codec.decoder()
    assert decoder.decode(noise(1, 4, 3, 2, 2)) is None
    with pytest.raises(LatentsError, match="at least 4 latents .* not causal, got 3"):
        decoder.drain()


def test_plan() -> None:
    """Chunks of any size will do; by default one latent, or as many as are decoded together."""
    assert codec_for(vidtok()).cut(None, None, "exact") == ChunkPlan(1, 1)
    assert codec_for(vidtok()).cut(9, 3, "exact") == ChunkPlan(3, 3)
    assert codec_for(vidtok_tiled()).cut(None, None, "exact") == ChunkPlan(4, 4)
    assert codec_for(vidtok(**TWO_WAYS)).cut(9, None, "exact") == ChunkPlan(4, 4)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec_for(vidtok()).cut(9, 0, "exact")


@pytest.mark.parametrize("make", [vidtok, vidtok_tiled])
def test_leaves_the_module_alone(make: type) -> None:
    """What diffusers left on the modules is neither read, nor written, nor kept alive."""
    vae = make()
    whole(vae, noise(1, 4, 3, 2, 2, seed=2))
    before = [dict(vars(module)) for module in vae.modules()]

    walk(codec_for(vae), noise(1, 4, 6, 3, 2))

    after = [dict(vars(module)) for module in vae.modules()]
    for one, other in zip(before, after, strict=True):
        assert all(one[key] is other[key] for key in one | other)


@pytest.mark.parametrize("make", [vidtok, vidtok_tiled])
@torch.no_grad()
def test_keeps_no_more_than_it_needs(make: type) -> None:
    """What is kept between chunks are copies that pin nothing larger, and closing drops them."""
    codec = codec_for(make())
    decoder = codec.decoder()
    for piece in pieces(codec, noise(1, 4, 10, 2, 2)):
        decoder.decode(piece)
    (walking,) = [walk for row in decoder._clips[0]._walks for walk in row]
    kept = walking._memory._kept
    assert kept
    for tensor in kept.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

    decoder.close()
    assert not kept


@pytest.mark.parametrize("make", [vidtok, vidtok_tiled])
def test_threads(make: type) -> None:
    """Streams and vae.decode on threads of their own, over one module, do not meet."""
    vae = make()
    codec = codec_for(vae)
    clips = [noise(1, 4, 6, 2, 2, seed=seed) for seed in (1, 2, 3)]
    expected = [walk(codec, clips[0]), walk(codec, clips[1]), whole(vae, clips[2])]
    given: list[list[torch.Tensor]] = [[], [], []]

    def again(place: int) -> None:
        for _ in range(3):
            one = whole(vae, clips[2]) if place == 2 else walk(codec, clips[place])
            given[place].append(one)

    threads = [threading.Thread(target=again, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for place in range(3):
        assert all(torch.equal(one, expected[place]) for one in given[place])


@pytest.mark.parametrize("make", [vidtok, vidtok_tiled])
@torch.no_grad()
def test_giver_may_reuse_latents(make: type) -> None:
    """Latents overwritten after their chunk do not change later frames."""
    vae = make()
    codec = codec_for(vae)
    latents = noise(1, 4, 7, 2, 2)
    expected = walk(codec, latents, 1)
    decoder, buffer, parts = codec.decoder(), torch.empty(1, 4, 1, 2, 2), []

    for piece in pieces(codec, latents, 1):
        buffer.copy_(piece)
        parts.append(decoder.decode(buffer))
        buffer.fill_(torch.nan)
    parts += finish(codec, decoder, 7)

    assert torch.equal(torch.cat([part for part in parts if part is not None], 2), expected)


@pytest.mark.parametrize("make", [vidtok, vidtok_tiled, lambda: vidtok(**TWO_WAYS)])
def test_offload(make: type) -> None:
    """Offloaded layer by layer, also by diffusers' own hooks, it gives the same bits."""
    latents = noise(1, 4, 5, 2, 2)
    expected = walk(codec_for(make()), latents)

    vae = make()
    cpu_offload(vae, torch.device("cpu"))
    assert next(vae.decoder.parameters()).is_meta
    assert torch.equal(walk(codec_for(vae), latents), expected)
    assert all(parameter.is_meta for parameter in vae.decoder.parameters())

    vae = make()
    offload_in_groups(vae)
    assert torch.equal(walk(codec_for(vae), latents), expected)


def test_compiled() -> None:
    """A compiled decoder is streamed as it was before; nothing is compiled for that."""
    vae = vidtok()
    latents = noise(1, 4, 3, 2, 2)
    expected = walk(codec_for(vae), latents)
    vae.decoder = torch.compile(vae.decoder, backend="eager")

    assert torch.equal(walk(codec_for(vae), latents), expected)


def test_token_indices() -> None:
    """Indices go through the autoencoder's own look-up; its decode's argument is refused."""
    vae = vidtok(regularizer="fsq", double_z=False, codebook_size=8**4)
    indices = torch.randint(8**4, (1, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = vae.decode(indices, decode_from_indices=True)
        latents = vae.indices_to_latent(indices)

    torch.testing.assert_close(walk(codec_for(vae), latents), expected, rtol=0, atol=2e-5)
    with pytest.raises(UsageError, match="got decode_from_indices"):
        codec_for(vae, {"decode_from_indices": True})


def test_denormalize() -> None:
    """VidTok has no statistics: latents are its own as they come."""
    latents = noise(1, 4, 1, 2, 2)

    assert codec_for(vidtok()).denormalize(latents) is latents
