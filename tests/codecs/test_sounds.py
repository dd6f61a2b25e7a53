"""Every family of sound held to the law: a stream gives what diffusers gives, at every sample."""

from __future__ import annotations

import functools
import gc

import pytest
import torch
from torch import nn

from streamvae import collect
from streamvae._errors import ClosedError, LatentsError
from streamvae.codecs import codec_for
from streamvae.codecs._halo import Halo
from tests.codecs.walk import begun, finish, pieces, walk
from tests.families.sound import (
    FAMILIES,
    Sound,
)

each = pytest.mark.parametrize("sound", FAMILIES, ids=lambda sound: sound.name)
STREAMED = [sound for sound in FAMILIES if sound.name not in {"mmaudio", "ltx2_audio"}]
each_by_windows = pytest.mark.parametrize("sound", STREAMED, ids=lambda sound: sound.name)
EXACT = [sound for sound in STREAMED if sound.name != "same"]


@functools.cache
def model(sound: Sound, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The family's model, made once."""
    return sound.make().to(dtype)


def difference(sound: Sound, latents: torch.Tensor, count: int | None) -> float:
    """The greatest at any sample; shape, dtype and foretold length are right."""
    vae = model(sound, latents.dtype)
    codec = codec_for(vae)
    codec.check(tuple(latents.shape))
    expected, given = sound.reference(vae, latents), walk(codec, latents, count)
    assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
    assert codec.frames(latents.shape[2]) == expected.shape[2]
    return float((given.double() - expected.double()).abs().max())


@each
def test_equals_decode(sound: Sound) -> None:
    """Sound equals diffusers' at every sample, for any chunk, any length and a batch of two."""
    for length in sound.lengths:
        for count in sound.chunks:
            assert difference(sound, sound.noise(length, batch=2), count) <= sound.tolerance


@each
@pytest.mark.filterwarnings("ignore:There are modules in")
def test_rounding_not_error(sound: Sound) -> None:
    """In float64 nothing is left but rounding."""
    if sound.wide is None:
        pytest.skip("diffusers does not decode it in float64")
    latents = sound.noise(max(sound.lengths), dtype=torch.float64)
    assert difference(sound, latents, max(sound.chunks)) <= sound.wide


@each
def test_says_what_it_is(sound: Sound) -> None:
    """Rate, kind and layout are known; there is no picture."""
    codec = codec_for(model(sound))

    assert codec.kind == "sound"
    assert codec.sample_rate == sound.rate
    assert codec.picture(tuple(sound.noise(3).shape)) is None
    assert len(codec.layout) == sound.noise(3).ndim
    assert codec.channels == sound.latents[0]
    assert codec.layout[codec.axis] == "T"


@each
def test_the_whole_way(sound: Sound) -> None:
    """Through queues, threads and copies it is float32, samples first, the same."""
    latents = sound.noise(max(sound.lengths), batch=2)
    expected = sound.reference(model(sound), latents).permute(0, 2, 1)

    given = torch.as_tensor(collect(latents, model(sound), latents_per_chunk=9))

    assert given.dtype == torch.float32
    torch.testing.assert_close(given, expected, rtol=0, atol=sound.tolerance)


@pytest.mark.parametrize("sound", EXACT, ids=lambda sound: sound.name)
def test_reach(sound: Sound) -> None:
    """The reach is that of the model itself, to the sample, as a latent that is no number shows."""
    codec = codec_for(model(sound))
    assert isinstance(codec, Halo)
    reach, place = codec.reach, max(codec.reach.latents) + 2
    latents = sound.noise(2 * place + 1)
    latents[:, :, place] = torch.nan

    spoilt = sound.reference(model(sound), latents).isnan().flatten(0, 1).any(0)

    places = spoilt.nonzero().flatten()
    assert int(places[0]) == reach.hop * place - reach.after
    assert int(places[-1]) + 1 == reach.hop * (place + 1) + reach.before


@each
@torch.no_grad()
def test_streams_share_nothing(sound: Sound) -> None:
    """Two streams in turns, one given up, and a whole decode between chunks: all sound right."""
    vae, codec = model(sound), codec_for(model(sound))
    clips = [sound.noise(21, seed=seed) for seed in (1, 2)]
    alone = [walk(codec, clip, 4) for clip in clips]
    given_up = begun(codec, clips[0])
    given_up.decode(clips[1][:, :, :4])
    decoders, parts = [begun(codec, clip) for clip in clips], [[], []]

    for turn in zip(*(pieces(codec, clip, 4) for clip in clips), strict=True):
        for k, piece in enumerate(turn):
            parts[k].append(decoders[k].decode(piece))
            piece.fill_(torch.nan)  # the giver's own again
        sound.reference(vae, clips[0])
    given_up.close()

    for k in (0, 1):
        parts[k] += finish(codec, decoders[k], 21)
        assert torch.equal(torch.cat([part for part in parts[k] if part is not None], 2), alone[k])


def live() -> int:
    """Bytes of all tensors alive that have memory."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    storages = [one.untyped_storage() for one in tensors if one.layout is torch.strided]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


@torch.no_grad()
def test_constant_memory() -> None:
    """What streams keep does not grow with their length."""
    sounds = [sound for sound in FAMILIES if sound.name != "mmaudio"]  # which keeps all
    decoders, kept = [codec_for(model(sound)).decoder() for sound in sounds], []
    for index in range(18):
        if index in {0, 9}:
            kept.append(live())
        for sound, decoder in zip(sounds, decoders, strict=True):
            decoder.decode(sound.noise(6, seed=index))
    kept.append(live())
    for decoder in decoders:
        decoder.close()

    start, middle, end = kept
    assert end <= middle
    assert live() <= start


@each
def test_bad_latents(sound: Sound) -> None:
    """Latents of another rank or other channels are refused, naming what came."""
    codec = codec_for(model(sound))
    good = tuple(sound.noise(3).shape)

    for shape in (good[:-1], (*good, 1), (good[0], good[1] + 1, *good[2:]), (0, *good[1:])):
        with pytest.raises(LatentsError, match=r"expected latents .*got shape"):
            codec.check(shape)


@each
@torch.no_grad()
def test_ends(sound: Sound) -> None:
    """A chunk of another batch ends the stream; a closed one says so, and closing twice is fine."""
    codec = codec_for(model(sound))
    decoder = codec.decoder()
    decoder.decode(sound.noise(3))

    with pytest.raises(LatentsError, match="expected every chunk"):
        decoder.decode(sound.noise(3, batch=2))
    for step in (lambda: decoder.decode(sound.noise(3)), decoder.drain):
        with pytest.raises(ClosedError):
            step()
    decoder.close()
