"""Comparing a stream with the autoencoder's own decode, for anybody's weights."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, AutoencoderOobleck
from safetensors.torch import save_file

from streamvae import (
    LatentsError,
    RawFile,
    UnknownSourceError,
    UsageError,
    Verification,
    save,
    verify,
)
from streamvae.abc import Codec
from streamvae.codecs import ByItem, CachedCausal, Walk, codec_for
from streamvae.codecs._halo import Oobleck
from streamvae.report._compare import difference, equal_share
from streamvae.report._sample import sample
from streamvae.testing import TagCodec
from tests import tiny
from tests.codecs.walk import noise
from tests.families.causal import mochi
from tests.families.family import Family
from tests.families.images import IMAGES, Image
from tests.families.lookahead import ltx_091
from tests.families.pictures import PICTURES, Picture
from tests.families.sound import FAMILIES as SOUNDS
from tests.families.sound import Sound
from tests.families.windows import allegro, ltx2_diffusion
from tests.test_families import FAMILIES

LATENTS = noise(1, 4, 4, 2, 3)


class Forgetful(CachedCausal):
    """Walks on from every chunk as if nothing but that had come before."""

    def walk(self) -> Walk:
        return _Forgetful(super().walk)


class _Forgetful:
    def __init__(self, walk) -> None:
        self._new = walk
        self._begun = False

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        walk = self._new()
        if self._begun:  # as many frames as from a right one: only their values tell
            walk.push(latents)
        self._begun = True
        return walk.push(latents)

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        pass


class Short(CachedCausal):
    """Gives a frame too few, and says so of none."""

    def epilogue(self, frames: torch.Tensor, *, tiled: bool) -> torch.Tensor:
        return super().epilogue(frames, tiled=tiled)[:, :, :3]


class Brighter(ByItem):
    """Adds what is less than a unit in the last place of bfloat16, and much in float64."""

    def decoder(self):
        return _Brighter(super().decoder())


class _Brighter:
    def __init__(self, decoder) -> None:
        self._decoder = decoder

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._decoder.decode(latents) * (1 + 1e-2)

    def __getattr__(self, name: str) -> object:
        return getattr(self._decoder, name)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family(family: Family) -> None:
    """Every family is found equal, or within rounding if it promises no more."""
    length = max(family.lengths)
    found = verify(family.make(), family.noise(length), call=family.call(length))

    assert found.verdict in ({"equal"} if not family.tolerance else {"equal", "within rounding"})
    assert found.difference <= family.tolerance
    assert found.frames == found.whole_frames > 0
    assert (found.verdict == "equal") == (found.sha256 == found.whole_sha256)
    assert found.equal_bytes > 0.98
    assert found.wide is None or found.wide <= family.wide


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES.values() if one.half], ids=lambda one: one.name
)
def test_half_precision(family: Family) -> None:
    """In bfloat16 what is rounding is called so, by the look of it in float64."""
    length = max(family.lengths)
    vae = family.make().to(torch.bfloat16)
    found = verify(vae, family.noise(length), call=family.call(length))

    assert found.verdict != "different"
    assert found.verdict == "equal" or found.wide is not None


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_pictures(image: Image) -> None:
    """Pictures are compared with each item decoded alone."""
    found = verify(image.make(), noise(3, *image.latents))
    assert (found.verdict, found.frames, found.equal_bytes) == ("equal", 3, 1.0)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_pictures_of_any_kind(picture: Picture) -> None:
    """Pictures of single frames, of tokens, or drawn from noise are compared as the others are."""
    found = verify(picture.make(), noise(2, *picture.latents), call=picture.call())
    assert (found.verdict, found.frames, found.whole_frames) == ("equal", 2, 2)


@pytest.mark.parametrize("sound", SOUNDS, ids=lambda sound: sound.name)
def test_sound_of_any_kind(sound: Sound) -> None:
    """Autoencoders of sound and vocoders are held against their own output as a whole."""
    found = verify(sound.make(), sound.noise(max(sound.lengths)))
    assert found.verdict in ({"equal", "within rounding"} if sound.tolerance else {"equal"})
    assert found.difference <= sound.tolerance
    assert found.frames == found.whole_frames > 0


def test_sound() -> None:
    """Sound is compared sample by sample."""
    found = verify(tiny.oobleck(), noise(1, 8, 30), latents_per_chunk=7)
    assert found.verdict != "different"
    assert found.frames == found.whole_frames == 30 * 2048
    assert "equal samples: " in str(found)


def test_a_codec_that_forgets_is_different() -> None:
    """A codec that loses its state between chunks is told from a right one."""
    vae = tiny.wan21()
    assert verify(CachedCausal(vae, AutoencoderKLWan), LATENTS).verdict == "equal"

    found = verify(Forgetful(vae, AutoencoderKLWan), LATENTS)
    assert found.verdict == "different"
    assert 100 * found.tolerance < found.difference < math.inf
    assert found.sha256 != found.whole_sha256
    assert found.equal_bytes < 0.9


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_click_at_a_seam_is_different(side: str) -> None:
    """Windows of sound that hear too little on one side are told from right ones."""
    vae, latents = tiny.oobleck(strides=(2, 3, 5)), noise(1, 8, 40)
    codec = Oobleck(vae, AutoencoderOobleck)
    assert verify(codec, latents, latents_per_chunk=3).verdict != "different"

    codec.reach = replace(codec.reach, **{side: getattr(codec.reach, side) // 2})
    found = verify(codec, latents, latents_per_chunk=3)
    assert found.verdict == "different"
    assert found.frames == found.whole_frames


def test_too_few_frames_are_different() -> None:
    """A codec that gives another number of frames is different, and a note says how many."""
    found = verify(Short(tiny.wan21(), AutoencoderKLWan), LATENTS)
    assert (found.verdict, found.difference) == ("different", math.inf)
    assert (found.frames, found.whole_frames) == (10, 13)
    assert any("expected 13 frames" in note for note in found.notes)


def test_float64_tells_an_error_from_rounding() -> None:
    """What bfloat16 could have rounded, and float64 does not round away, is different."""
    vae = tiny.kl().to(torch.bfloat16)
    found = verify(Brighter(vae, type(vae)), noise(2, 4, 3, 4))
    assert found.verdict == "different"
    assert found.difference <= found.tolerance
    assert found.wide is not None
    assert found.wide > 100 * found.wide_tolerance


def test_without_latents_there_is_noise() -> None:
    """Without latents a small clip of noise is decoded, the same for the same seed."""
    vae = tiny.wan21()
    first, again, other = verify(vae), verify(vae), verify(vae, seed=1)
    assert first == again
    assert first.sha256 != other.sha256
    assert (first.verdict, other.verdict) == ("equal", "equal")
    assert first.latents_shape == (1, 4, 9, 4, 6)
    assert "noise, seed 0" in str(first)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_noise_suits_every_family(family: Family) -> None:
    """Every family of video takes the latents that are made for it."""
    _suits(codec_for(family.make(), family.call(9)), 9)


@pytest.mark.parametrize("other", [*PICTURES, *SOUNDS], ids=lambda other: other.name)
def test_noise_suits_others(other: Picture | Sound) -> None:
    """Pictures and sound, too."""
    _suits(codec_for(other.make()), 3)


def _suits(codec: Codec, least: int) -> None:
    latents = sample(codec, 0)
    codec.check(tuple(latents.shape))
    codec.cut(latents.shape[codec.axis], None, "exact")
    assert latents.shape[codec.axis] >= least
    assert bool(latents.isfinite().all())


def test_what_a_decoder_must_be_given() -> None:
    """A timestep that cannot be left out is made up, which a note says; noise is drawn alike."""
    before = torch.random.get_rng_state()
    found = verify(ltx_091(), noise(1, 8, 3, 2, 2))
    assert found.verdict != "different"
    assert found.difference < 1e-5
    assert any("temb" in note for note in found.notes)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_generator_is_put_back() -> None:
    """Both ways draw from a given generator as it stands, and leave it so."""
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    found = verify(ltx2_diffusion(), noise(1, 4, 2, 2, 2), call={"generator": generator})
    assert found.verdict == "equal"
    assert torch.equal(generator.get_state(), before)


def test_the_hash_is_that_of_a_raw_file(tmp_path: Path) -> None:
    """The streamed hash is that of the file that a stream of float32 is kept in."""
    vae, file = tiny.wan21(), tmp_path / "a.raw"
    save(LATENTS, vae, RawFile(file), output="float32")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == verify(vae, LATENTS).sha256


def test_from_files(tmp_path: Path) -> None:
    """Autoencoder and latents may be paths; latents of the diffusion model's space may be given."""
    vae = tiny.wan21()
    vae.save_pretrained(tmp_path / "vae")
    save_file({"latents": LATENTS}, tmp_path / "z.safetensors")

    found = verify(tmp_path / "vae", tmp_path / "z.safetensors", normalized=True)
    assert found.verdict == "equal"
    decoded = codec_for(vae).denormalize(LATENTS)
    assert found.sha256 == verify(vae, decoded.numpy()).sha256


def test_a_codec_of_one_s_own() -> None:
    """A codec that is made of no autoencoder is compared with a function of one's own."""

    def tags(latents: torch.Tensor, offset: int = 0) -> torch.Tensor:
        seen = torch.arange(latents.shape[2])[:, None, None]
        tags = ((latents + seen + offset) % 251).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return (tags / 255 * 2 - 1).expand(-1, 3, -1, -1, -1)

    codec: Codec = TagCodec()
    latents = torch.arange(5.0).view(1, 1, 5, 1, 1)
    assert verify(codec, latents, reference=tags).verdict == "equal"
    wrong = verify(codec, latents, reference=lambda z: tags(z, 1))
    assert (wrong.verdict, wrong.equal_bytes) == ("different", 0.0)
    with pytest.raises(UsageError, match="expected reference"):
        verify(codec, latents)


def test_bad_input_is_said_before_any_work(tmp_path: Path) -> None:
    """What cannot be compared is refused with one clear error."""
    vae = tiny.wan21()
    with pytest.raises(LatentsError, match="found none at"):
        verify(tmp_path / "no vae", tmp_path / "none.npy")  # the latents are looked at first
    with pytest.raises(UnknownSourceError, match="no vae"):
        verify(tmp_path / "no vae")
    with pytest.raises(LatentsError, match="all latents at once"):
        verify(vae, [LATENTS])
    with pytest.raises(LatentsError, match=r"C = 4"):
        verify(vae, noise(1, 5, 3, 2, 2))
    with pytest.raises(UsageError, match="mode='fast'"):
        verify(vae, LATENTS, latents_per_chunk=2)
    with pytest.raises(UsageError, match="enable_tiling"):
        untiled = allegro()
        untiled.use_tiling = False
        verify(untiled)


def test_fast_mode_is_within_rounding() -> None:
    """Chunks that only fast mode takes are within rounding, which float64 confirms."""
    found = verify(mochi(), noise(1, 4, 4, 2, 3), latents_per_chunk=3, mode="fast")
    assert found.verdict != "different"
    assert found.wide is None or found.wide < 1e-13


def test_differences_of_any_kind() -> None:
    """NaN and other shapes are never small differences."""
    one = torch.zeros(1, 3, 2)
    other = one.clone()
    other[0, 1, 1] = math.nan
    assert math.isnan(difference(one, other))
    assert difference(one, one[:, :2]) == math.inf
    assert (equal_share(one, one[:, :2]), equal_share(one, other)) == (0.0, 5 / 6)


def test_it_reads_well() -> None:
    """A verification prints its verdict first, and all that it found."""
    found = verify(tiny.wan21(), LATENTS)
    assert isinstance(found, Verification)
    first, *_ = str(found).splitlines()
    assert first == "equal: AutoencoderKLWan, float32 on cpu"
    for said in (found.sha256, "13 streamed, 13 by decode", "equal bytes: 100%", found.exactness):
        assert said in str(found)
