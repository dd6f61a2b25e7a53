from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from streamvae import LatentsError, UsageError
from streamvae.abc import ChunkPlan, Codec, Decoder
from streamvae.codecs import codec_for
from streamvae.codecs._lookahead import LookAheadOrCausal
from tests.codecs.walk import noise, pieces, walk, whole
from tests.families.lookahead import conditioned, ltx, ltx2, ltx_091, ltx_095
from tests.releases import released

Make = Callable[..., nn.Module]
each_family = pytest.mark.parametrize("make", [ltx, ltx_091, ltx_095, ltx2])


@torch.no_grad()
def decode(vae: nn.Module, latents: torch.Tensor, seed: int = 5, **call: object) -> torch.Tensor:
    """``vae.decode``, its noise seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return vae.decode(latents, return_dict=False, **call)[0]


def seeded(seed: int = 5) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def close(streamed: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    """Equal within rounding."""
    torch.testing.assert_close(streamed, expected, rtol=0, atol=atol)


def emissions(
    codec: Codec, chunks: Iterator[torch.Tensor], length: int
) -> Iterator[tuple[int, int]]:
    """Walk, and give for every emission how many latents had come, and its frames."""
    decoder = codec.decoder()
    come = 0
    for chunk in chunks:
        come += chunk.shape[2]
        frames = decoder.decode(chunk)
        if frames is not None:
            yield come, frames.shape[2]
    for _ in range(codec.drains(length)):
        frames = decoder.drain()
        if frames is not None:
            yield come, frames.shape[2]
    decoder.close()


@each_family
@torch.no_grad()
def test_emissions(make: Make) -> None:
    """The first frames come after the look-ahead, then 8 a latent; never more than 8 at once."""
    vae = make()
    codec = codec_for(vae, conditioned(vae))
    latents = noise(1, 8, 20, 2, 2)

    given = list(emissions(codec, pieces(codec, latents), 20))

    assert 0 < codec.lookahead < 20
    assert given[0][0] == codec.lookahead + 1
    assert [come for come, _ in given[: 20 - codec.lookahead]] == [*range(given[0][0], 21)]
    assert {frames for _, frames in given[1 : 20 - codec.lookahead]} == {8}
    assert max(frames for _, frames in given) == 8
    assert sum(frames for _, frames in given) == codec.frames(20) == 153


@torch.no_grad()
def test_released_ltx2() -> None:
    """Of a 121-frame clip of LTX-2 as released, half the frames are out by 70 % of the FLOPs.

    The first of them by 24 %; latents come one by one, and no emission is longer than 8 frames.
    """
    with torch.device("meta"):
        vae = released("AutoencoderKLLTX2Video")(
            decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8
        )
        codec = codec_for(vae)
    latents = (torch.empty(1, 128, 1, 24, 40, device="meta") for _ in range(16))
    with FlopCounterMode(display=False) as counter:
        given = [(frames, counter.get_total_flops()) for _, frames in emissions(codec, latents, 16)]
        flops = counter.get_total_flops()

    assert codec.lookahead == 22
    assert sum(frames for frames, _ in given) == 121
    assert max(frames for frames, _ in given) == 8
    assert given[0][1] < 0.24 * flops
    out = 0
    for frames, spent in given:
        out += frames
        if out >= 121 / 2:
            assert spent <= 0.7 * flops
            break


@pytest.mark.parametrize("make", [ltx, ltx_091, ltx2])
@torch.no_grad()
def test_causal(make: Make) -> None:
    """A causal decoder holds nothing back: a frame, then 8 for each latent, nothing at the end."""
    vae = make(decoder_causal=True)
    codec = codec_for(vae, conditioned(vae))

    given = list(emissions(codec, pieces(codec, noise(1, 8, 4, 2, 2)), 4))

    assert given == [(1, 1), (2, 8), (3, 8), (4, 8)]
    assert codec.lookahead == codec.drains(4) == 0


def test_plan() -> None:
    """Latents go one by one, or as many at a time as asked for, in either mode."""
    codec = codec_for(ltx2())

    assert codec.cut(None, None, "exact") == ChunkPlan(1, 1)
    assert codec.cut(20, 3, "exact") == codec.cut(None, 3, "fast") == ChunkPlan(3, 3)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec.cut(None, 0, "exact")


def kept(decoder: Decoder) -> list[torch.Tensor]:
    """Frames that the walk of a decoder holds."""
    chain = decoder._clips[0]._walks[0][0]._chain[0]
    found = [frames for place in chain._places for frames in place.window._kept]
    return found + [frames for skip in chain._skips for frames in skip._waiting]


@pytest.mark.parametrize("make", [ltx_091, ltx2])
@torch.no_grad()
def test_constant_state(make: Make) -> None:
    """What a walk holds after its last latent is the same for clips of 16, 24 and 32."""
    vae = make()
    codec = codec_for(vae, conditioned(vae))
    sizes = set()
    for length in (16, 24, 32):
        latents = noise(1, 8, length, 2, 2)
        decoder = codec.decoder()
        for piece in pieces(codec, latents):
            decoder.decode(piece)
        storages = [frames.untyped_storage() for frames in kept(decoder)]
        sizes.add(sum({one.data_ptr(): one.nbytes() for one in storages}.values()))
        decoder.close()

    assert len(sizes) == 1
    assert sizes != {0}


@each_family
@torch.no_grad()
def test_giver_may_reuse_latents(make: Make) -> None:
    """Latents overwritten after their chunk do not change later frames."""
    vae = make()
    call = conditioned(vae)
    latents = noise(1, 8, 3, 2, 2)
    expected = decode(vae, latents, **call)
    codec = codec_for(vae, {**call, "generator": seeded()})
    decoder, buffer, parts = codec.decoder(), torch.empty(1, 8, 1, 2, 2), []

    for piece in pieces(codec, latents):
        buffer.copy_(piece)
        parts.append(decoder.decode(buffer))
        buffer.fill_(torch.nan)
    parts += [decoder.drain() for _ in range(codec.drains(3))]

    close(torch.cat([part for part in parts if part is not None], 2), expected)


@torch.no_grad()
def test_close_lets_go() -> None:
    """Closing drops all frames that wait, half way through or while they are drained."""
    codec = codec_for(ltx2())
    for drains in (0, 2):
        decoder = codec.decoder()
        for piece in pieces(codec, noise(1, 8, 5, 2, 2)):
            decoder.decode(piece)
        for _ in range(drains):
            decoder.drain()
        refs = [weakref.ref(frames) for frames in kept(decoder)]
        assert refs

        decoder.close()

        gc.collect()
        assert all(ref() is None for ref in refs)


def test_noise_of_the_global_generator() -> None:
    """A stream draws from torch's generator what ``vae.decode`` would, when its walk begins."""
    vae = ltx_091()
    latents, call = noise(1, 8, 3, 2, 2), conditioned(vae)
    codec = codec_for(vae, call)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        streamed = walk(codec, latents)
        after = torch.random.get_rng_state()
        torch.manual_seed(7)
        with torch.no_grad():
            expected = vae.decode(latents, return_dict=False, **call)[0]
        assert torch.equal(after, torch.random.get_rng_state())

    close(streamed, expected)
    assert any("differ from run to run" in note for note in codec.notes((1, 8, 3, 2, 2)))


def test_noise_of_a_generator() -> None:
    """Streams draw from a generator, and move it on, as ``vae.decode`` does torch's own."""
    vae = ltx_091()
    latents, call = noise(1, 8, 3, 2, 2), conditioned(vae)
    generator, state = seeded(), torch.random.get_rng_state()
    codec = codec_for(vae, {**call, "generator": generator})

    first, second = walk(codec, latents), walk(codec, latents)

    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for streamed in (first, second):
            close(streamed, vae.decode(latents, return_dict=False, **call)[0])
        assert torch.equal(generator.get_state(), torch.random.get_rng_state())
    assert (first - second).abs().max() > 0.1
    assert codec.notes((1, 8, 3, 2, 2)) == ()


@torch.no_grad()
def test_noise_by_turns() -> None:
    """Streams of one generator that take turns get the noise of calls one after another."""
    vae = ltx_091()
    latents, call = noise(1, 8, 3, 2, 2), conditioned(vae)
    codec = codec_for(vae, {**call, "generator": seeded()})
    decoders = [codec.decoder(), codec.decoder()]
    parts = [[decoder.decode(piece) for decoder in decoders] for piece in pieces(codec, latents)]
    parts += [[decoder.drain() for decoder in decoders] for _ in range(codec.drains(3))]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for given in zip(*parts, strict=True):
            streamed = torch.cat([part for part in given if part is not None], 2)
            close(streamed, vae.decode(latents, return_dict=False, **call)[0])


@pytest.mark.parametrize("slicing", [False, True])
def test_noise_of_clips_and_tiles(slicing: bool) -> None:
    """Clips that are sliced and tiles of a picture draw one after another, as ``vae.decode``."""
    vae = ltx(decoder_inject_noise=(True, False, False, False, True), decoder_causal=True)
    vae.enable_tiling(64, 64, tile_sample_stride_height=32, tile_sample_stride_width=32)
    vae.use_slicing = slicing
    latents = noise(2, 8, 2, 2, 3)

    close(walk(codec_for(vae, {"generator": seeded()}), latents), decode(vae, latents))


@pytest.mark.parametrize("make", [ltx_091, ltx_095])
def test_timestep_of_each_clip(make: Make) -> None:
    """Each clip of a batch is decoded at its own timestep."""
    vae = make()
    latents, call = noise(2, 8, 2, 2, 2), conditioned(vae, 2)

    close(
        walk(codec_for(vae, {**call, "generator": seeded()}), latents), decode(vae, latents, **call)
    )


def test_noise_and_timestep_of_ltx2() -> None:
    """LTX-2's decoder takes both as well."""
    vae = ltx2(decoder_inject_noise=True, timestep_conditioning=True)
    latents, call = noise(1, 8, 2, 2, 2), conditioned(vae)

    close(
        walk(codec_for(vae, {**call, "generator": seeded()}), latents), decode(vae, latents, **call)
    )


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_other_upsamplers(kind: str) -> None:
    """LTX-2's decoder may upsample one of space and time: frames and pictures follow the config."""
    vae = ltx2(upsample_type=("spatiotemporal", kind, "spatiotemporal"))
    codec = codec_for(vae)
    latents = noise(1, 8, 4, 2, 3)
    expected = whole(vae, latents)

    close(walk(codec, latents), expected)
    assert codec.frames(4) == expected.shape[2]
    assert codec.picture((1, 8, 4, 2, 3)) == tuple(expected.shape[3:])


def test_told_to_be_causal() -> None:
    """LTX-2's ``causal=True`` is obeyed, and ``causal=False`` ignored as ``vae.decode`` does."""
    latents = noise(1, 8, 3, 2, 2)
    vae = ltx2()
    codec = codec_for(vae, {"causal": True})
    assert codec.drains(3) == 0
    close(walk(codec, latents), decode(vae, latents, causal=True))
    assert codec.notes((1, 8, 3, 2, 2)) == ()

    vae = ltx2(decoder_causal=True)
    codec = codec_for(vae, {"causal": False})
    close(walk(codec, latents), decode(vae, latents, causal=False))
    assert codec.notes((1, 8, 3, 2, 2)) == (
        "causal=False is ignored, as by vae.decode: this decoder is causal",
    )
    with pytest.raises(UsageError, match=r"\(temb, generator\), got causal"):
        codec_for(ltx(), {"causal": True})


def test_notes() -> None:
    """What is passed over is said."""
    codec = codec_for(ltx(), {"temb": torch.tensor([0.05]), "generator": seeded()})
    ignored = codec.notes((1, 8, 3, 2, 2))
    assert [note.partition(" is ignored")[0] for note in ignored] == ["temb", "generator"]

    vae = ltx2()
    assert codec_for(vae).notes((1, 8, 3, 2, 2)) == ()
    vae.decoder.compile(backend="eager")
    (note,) = codec_for(vae).notes((1, 8, 3, 2, 2))
    assert "what was compiled is not used" in note


@pytest.mark.parametrize(
    ("make", "batch", "call", "message"),
    [
        (ltx_091, 1, {}, r"expected temb, .* got none; pass temb="),
        (ltx_091, 2, {"temb": torch.tensor([0.05])}, "latents of 1 items, .* got 2"),
        (functools.partial(ltx, timestep_conditioning=True), 1, {}, "vae.decode fails on as well"),
        (functools.partial(ltx, decoder_inject_noise=(True,) * 5), 1, {}, "vae.decode fails on"),
    ],
)
def test_refusals(make: Make, batch: int, call: Mapping[str, object], message: str) -> None:
    """What ``vae.decode`` cannot decode is refused before anything is decoded."""
    vae = make()
    with pytest.raises((UsageError, LatentsError), match=message):
        codec_for(vae, call).check((batch, 8, 3, 2, 2))
    with pytest.raises(Exception):  # noqa: B017, PT011  # each fails somewhere else
        decode(vae, noise(batch, 8, 3, 2, 2), **call)


def test_refused_options() -> None:
    """Slicing with timesteps breaks in diffusers, and temporal tiles give other frames: refused."""
    vae = ltx_091()
    codec = codec_for(vae, conditioned(vae, 2))
    codec.check((2, 8, 3, 2, 2))
    vae.enable_slicing()
    with pytest.raises(UsageError, match=r"call vae.disable_slicing\(\)"):
        codec.check((2, 8, 3, 2, 2))

    vae = ltx2()
    vae.use_framewise_decoding = True
    with pytest.raises(UsageError, match="set vae.use_framewise_decoding=False"):
        LookAheadOrCausal(vae, type(vae)).check((1, 8, 3, 2, 2))


def test_refused_sizes() -> None:
    """Where edges are reflected, pictures and tiles of one latent are refused, as they fail."""
    vae = ltx2()
    codec = codec_for(vae)
    with pytest.raises(LatentsError, match="at least 2 latents .* got 1 x 4"):
        codec.check((1, 8, 3, 1, 4))
    vae.enable_tiling(64, 64, tile_sample_stride_height=64, tile_sample_stride_width=64)
    codec.check((1, 8, 3, 4, 4))
    with pytest.raises(LatentsError, match="of its tiles, .* got 2 x 1"):
        codec.check((1, 8, 3, 4, 5))
    codec_for(ltx()).check((1, 8, 3, 1, 1))


@pytest.mark.parametrize(
    "call", [{"temb": 0.05}, {"temb": torch.zeros(1, 1)}, {"generator": 5}], ids=str
)
def test_wrong_arguments(call: Mapping[str, object]) -> None:
    """Arguments of another kind are refused by name."""
    (name,) = call
    with pytest.raises(UsageError, match=f"expected {name} to be a"):
        codec_for(ltx_091(), call)


@pytest.mark.parametrize("make", [ltx_091, ltx2])
def test_offloaded(make: Make) -> None:
    """Weights that hooks bring module by module are there when their numbers are read."""
    vae = make()
    latents, call = noise(1, 8, 2, 2, 2), conditioned(vae)
    expected = decode(vae, latents, **call)
    accelerate.cpu_offload(vae, execution_device=torch.device("cpu"))

    streamed = walk(codec_for(vae, {**call, "generator": seeded()}), latents)

    close(streamed, expected)
    assert all(parameter.is_meta for parameter in vae.parameters())


@pytest.mark.parametrize("make", [ltx, ltx2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_denormalize(make: Make, dtype: torch.dtype) -> None:
    """Latents are denormalised by the formula of diffusers' pipelines, to the bit."""
    vae = make(scaling_factor=0.7)
    codec = codec_for(vae)
    latents = noise(2, 8, 3, 2, 2, dtype=dtype)
    mean, std = (one.view(1, -1, 1, 1, 1).to(dtype) for one in (vae.latents_mean, vae.latents_std))

    for _ in range(2):
        assert torch.equal(codec.denormalize(latents), latents * std / 0.7 + mean)
