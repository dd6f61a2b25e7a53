"""An autoencoder of mel spectrograms with its vocoder: sound as one after the other gives it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import streamvae
from streamvae._errors import DeviceError, LatentsError, UsageError
from streamvae.codecs import Chained, codec_for
from tests import tiny
from tests.codecs.walk import noise, walk
from tests.families.sound import ltx2_audio, ltx2_vocoder, ltx2_wide, mmaudio, mmaudio_vocoder


@dataclass(frozen=True)
class Both:
    """A pair, the shape of its latents but for time, its rate, and samples of the first latent."""

    name: str
    autoencoder: Callable[[], nn.Module]
    vocoder: Callable[[], nn.Module]
    latents: tuple[int, ...]
    rate: int
    hop: int
    wide: bool = True

    def __str__(self) -> str:
        return self.name

    def noise(self, length: int, *, batch: int = 1, dtype: torch.dtype = torch.float32):
        """Seeded latents."""
        return noise(batch, self.latents[0], length, *self.latents[1:], dtype=dtype)


LTX2 = Both("ltx2", ltx2_audio, lambda: ltx2_vocoder(in_channels=32), (4, 4), 24000, 40)
WIDE = Both("ltx2_wide", ltx2_audio, lambda: ltx2_wide(in_channels=32), (4, 4), 48000, 120)
MMAUDIO = Both("mmaudio", mmaudio, mmaudio_vocoder, (4,), 44100, 16, wide=False)
each = pytest.mark.parametrize("both", [LTX2, WIDE, MMAUDIO], ids=str)


@cache
def pair(both: Both, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The two models, made once."""
    return both.autoencoder().to(dtype), both.vocoder().to(dtype)


@torch.no_grad()
def spoken(models: tuple[nn.Module, nn.Module], latents: torch.Tensor) -> torch.Tensor:
    """As pipelines do it."""
    sound = models[1](models[0].decode(latents, return_dict=False)[0])
    return sound if isinstance(sound, torch.Tensor) else sound.sample


@each
def test_equals_one_after_the_other(both: Both) -> None:
    """Sound equals diffusers' at every sample, for any chunk, any length and a batch of two."""
    models = pair(both)
    codec = codec_for(models)
    for length in (1, 2, 47):
        latents = both.noise(length, batch=2)
        expected = spoken(models, latents)
        codec.check(tuple(latents.shape))
        assert codec.frames(length) == expected.shape[2]
        for count in (1, 7, None):
            given = walk(codec, latents, count)
            torch.testing.assert_close(given, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("both", [LTX2, WIDE], ids=str)
@pytest.mark.filterwarnings("ignore:There are modules in")
def test_rounding_not_error(both: Both) -> None:
    """In float64 nothing is left but rounding."""
    models = pair(both, torch.float64)
    latents = both.noise(47, dtype=torch.float64)
    given = walk(codec_for(models), latents, 5)
    torch.testing.assert_close(given, spoken(models, latents), rtol=0, atol=1e-13)


@each
def test_what_is_known_of_it(both: Both) -> None:
    """It is sound at the vocoder's rate, of the autoencoder's latents."""
    models = pair(both)
    codec = codec_for(models)
    assert (codec.kind, codec.sample_rate, codec.picture(())) == ("sound", both.rate, None)
    assert codec.layout == codec_for(models[0]).layout
    assert codec.family == " with ".join(type(model).__name__ for model in models)
    assert not any("a vocoder makes the sound" in note for note in codec.notes((1, 4, 9, 4)))
    assert (codec.device, codec.dtype) == (torch.device("cpu"), torch.float32)
    latents = both.noise(3)
    assert torch.equal(codec.whole(latents), spoken(models, latents))


@pytest.mark.parametrize("both", [LTX2, WIDE], ids=str)
def test_reach_in_latents(both: Both) -> None:
    """A plan foretells when samples come: as soon as no latent to come can change them."""
    models, length = pair(both), 40
    codec = codec_for(models)
    plan = codec.plan(tuple(both.noise(length).shape), latents_per_chunk=1)
    decoder, given = codec.decoder(), []
    with torch.no_grad():
        for step in range(length):
            part = decoder.decode(both.noise(length)[:, :, step : step + 1])
            given.append(0 if part is None else part.shape[2])
    decoder.close()
    assert plan.frames == tuple(given)
    assert plan.state_bytes is not None

    known = sum(given[:20])  # of 20 latents; then one comes that is no number
    latents = both.noise(length)
    latents[:, :, 20:] = torch.nan
    spoilt = spoken(models, latents).isnan().flatten(0, 1).any(0).nonzero()
    assert 0 <= int(spoilt[0]) - known < both.hop


@each
def test_the_whole_way(both: Both) -> None:
    """Through queues, threads and copies it is float32, samples first, the same."""
    models, latents = pair(both), both.noise(41, batch=2)
    given = streamvae.collect(latents, models, latents_per_chunk=9)
    expected = spoken(models, latents).permute(0, 2, 1)
    torch.testing.assert_close(torch.as_tensor(given), expected, rtol=0, atol=2e-6)


def test_normalized_latents_are_the_autoencoder_s() -> None:
    """With ``normalized=True`` latents go through the autoencoder's own formula."""
    models, latents = pair(LTX2), LTX2.noise(9)
    given = streamvae.collect(latents, models, normalized=True)
    ready = codec_for(models[0]).denormalize(latents)
    assert np.array_equal(given, streamvae.collect(ready, models))


def test_sound_that_is_cut_off() -> None:
    """With ``samples`` it ends there, in whichever chunk that is; a longer one changes nothing."""
    models, latents = pair(LTX2), LTX2.noise(30)
    whole = walk(codec_for(models), latents, 4)
    for samples in (1, 500, whole.shape[2] - 1, whole.shape[2], 10**6):
        codec = codec_for(models, {"samples": samples})
        given = walk(codec, latents, 4)
        assert given.shape[2] == codec.frames(30) == min(samples, whole.shape[2])
        assert torch.equal(given, whole[..., :samples])
        assert torch.equal(codec.whole(latents), spoken(models, latents)[..., :samples])


def test_verified_like_any_other() -> None:
    """`verify` takes a pair, and finds its stream equal within rounding."""
    for found in (
        streamvae.verify(pair(LTX2), LTX2.noise(20)),
        streamvae.verify(pair(LTX2)),  # of noise that it makes itself
    ):
        assert found.verdict in {"equal", "within rounding"}
        assert found.difference <= 2e-6


def test_a_plan_keeps_no_weights() -> None:
    """What is left of a stream does not keep the models alive."""
    models = LTX2.autoencoder(), LTX2.vocoder()
    codec = codec_for(models)
    assert isinstance(codec, Chained)
    again = codec.renewal()
    assert again() is not None
    gone = [weakref.ref(model) for model in models]
    del codec, models
    gc.collect()
    assert [one() for one in gone] == [None, None]
    assert again() is None


@torch.no_grad()
def test_an_error_closes_both() -> None:
    """After an error neither of the two goes on."""
    decoder = codec_for(pair(LTX2)).decoder()
    decoder.decode(LTX2.noise(3))
    with pytest.raises(LatentsError, match="expected every chunk"):
        decoder.decode(LTX2.noise(3, batch=2))
    with pytest.raises(streamvae.ClosedError):
        decoder.decode(LTX2.noise(3))
    with pytest.raises(streamvae.ClosedError):
        decoder.drain()
    decoder.close()


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            (ltx2_audio, ltx2_vocoder),
            "makes, 2 x 16 numbers a mel frame, got LTX2Vocoder of 2 x 4",
        ),
        ((ltx2_audio, mmaudio_vocoder), r"got MMAudioVocoder of 8"),
        (
            (mmaudio, mmaudio),
            "of mel spectrograms and its vocoder, got MMAudioVAE and",
        ),
        ((tiny.oobleck, ltx2_vocoder), r"and its vocoder, got AutoencoderOobleck and LTX2Vocoder"),
    ],
)
def test_what_does_not_fit_is_refused(models, said: str) -> None:
    """Two models that are no such pair raise, with what was expected of them."""
    with pytest.raises(UsageError, match=said):
        codec_for(tuple(make() for make in models))


def test_wrong_latents_and_arguments() -> None:
    """Latents of another shape raise, as do arguments that a pair does not take."""
    codec = codec_for(pair(LTX2))
    with pytest.raises(LatentsError, match=r"expected latents \(B, C, T, F\) with C = 4"):
        codec.check((1, 4, 9))
    with pytest.raises(LatentsError, match="with F = 4, for 16 mel bins, got shape"):
        codec.check((1, 4, 4, 9))
    with pytest.raises(UsageError, match=r"\(samples\), got temb"):
        codec_for(pair(LTX2), {"temb": 1})
    with pytest.raises(UsageError, match="samples of at least 1, got 0"):
        codec_for(pair(LTX2), {"samples": 0})


def test_both_on_one_device() -> None:
    """Weights in two places are refused by name."""
    vocoder = ltx2_vocoder(in_channels=32)
    vocoder._hf_hook = SimpleNamespace(execution_device="cuda:7")  # as accelerate would have it
    said = "on one device, got AutoencoderKLLTX2Audio on cpu and LTX2Vocoder on cuda:7"
    with pytest.raises(DeviceError, match=said):
        _ = codec_for((pair(LTX2)[0], vocoder)).device
