from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, CLIPImageProjection

from streamvae._errors import UnknownSourceError, UsageError
from streamvae.abc import Codec
from streamvae.codecs import codec_for, known_families
from tests import tiny
from tests.codecs.walk import noise, walk, whole

Make = Callable[[], torch.nn.Module]


#: torch's compiler imports modules that torch itself has deprecated.
COMPILER = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning")


class MyWan(AutoencoderKLWan):
    """A user's subclass that decodes as its base does."""


class OtherWan(AutoencoderKLWan):
    """A user's subclass that decodes in its own way."""

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> object:
        return super()._decode(z * 2, return_dict)


def _as(vae: AutoencoderKLWan, kind: type[AutoencoderKLWan]) -> AutoencoderKLWan:
    other = kind(**{key: vae.config[key] for key in vae.config if not key.startswith("_")})
    other.load_state_dict(vae.state_dict())
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "family", "kind", "layout", "channels"),
    [
        (tiny.wan21, "AutoencoderKLWan", "video", "BCTHW", 4),
        (tiny.wan22, "AutoencoderKLWan", "video", "BCTHW", 6),
        (tiny.qwen_image, "AutoencoderKLQwenImage", "video", "BCTHW", 4),
        (tiny.kl, "AutoencoderKL", "image", "BCHW", 4),
        (tiny.oobleck, "AutoencoderOobleck", "sound", "BCT", 8),
    ],
)
def test_known(make: Make, family: str, kind: str, layout: str, channels: int) -> None:
    """Every known family has a codec that says what it is and where it runs."""
    codec = codec_for(make())

    assert isinstance(codec, Codec)
    assert (codec.family, codec.kind, codec.layout) == (family, kind, layout)
    assert (codec.axis, codec.channels) == (0 if kind == "image" else 2, channels)
    assert codec.family in known_families()
    assert codec.device == torch.device("cpu")
    assert codec.dtype == torch.float32
    assert codec.sample_rate == (44100 if kind == "sound" else None)
    assert "vae.decode" in codec.exactness


def test_codec_passes_through() -> None:
    """A codec is given back as it is."""
    codec = codec_for(tiny.kl())

    assert codec_for(codec) is codec


@pytest.mark.parametrize(
    ("source", "came"),
    [
        (CLIPImageProjection(8), r"CLIPImageProjection"),
        (AutoencoderKL, r"the class AutoencoderKL itself"),
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (type("AutoencoderKL", (torch.nn.Module,), {"__module__": "ldm.models"})(), r"ldm\.models"),
        ("wan", r"builtins\.str"),
        (None, r"NoneType"),
    ],
)
def test_unknown(source: object, came: str) -> None:
    """A source nobody knows is refused by an error that lists the known families."""
    with pytest.raises(UnknownSourceError, match=came) as caught:
        codec_for(source)

    assert all(family in str(caught.value) for family in known_families())


def test_subclass() -> None:
    """A subclass of a known class is decoded as the known class."""
    latents = noise(1, 4, 2, 3, 3)
    vae = tiny.wan21()

    codec = codec_for(_as(vae, MyWan))

    assert codec.family == "AutoencoderKLWan"
    assert torch.equal(walk(codec, latents), whole(vae, latents))


def test_own_decode_is_refused() -> None:
    """An autoencoder that replaces decode is not streamed as if it had not."""
    with pytest.raises(UsageError, match="a _decode of its own"):
        codec_for(_as(tiny.wan21(), OtherWan))

    patched = tiny.oobleck()
    patched.decode = functools.partial(patched.decode)
    with pytest.raises(UsageError, match="a decode of its own"):
        codec_for(patched)


@COMPILER
def test_compiled_module() -> None:
    """A module under torch.compile is unwrapped, since decode is never compiled with it."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 2, 3)
    compiled = torch.compile(vae)

    codec = codec_for(compiled)

    assert codec.family == "AutoencoderKLWan"
    assert torch.equal(walk(codec, latents), whole(compiled, latents))


@COMPILER
def test_compiled_decode() -> None:
    """A decode replaced by its own compiled form still counts as the family's."""
    vae = tiny.wan21()
    vae.decode = torch.compile(vae.decode)

    assert codec_for(vae).family == "AutoencoderKLWan"


@COMPILER
def test_compiled_decoder() -> None:
    """A decoder replaced by its compiled form is called as it is, as vae.decode calls it."""
    latents = noise(1, 16, 3, 2, 3)
    config = {"dim_mult": [1, 2], "temperal_downsample": [True]}
    vae = tiny.randomised(AutoencoderKLWan(base_dim=8, num_res_blocks=1, **config))
    expected = whole(vae, latents)
    vae.decoder = torch.compile(vae.decoder, backend="eager", dynamic=False)

    streamed = walk(codec_for(vae), latents)

    assert torch.equal(streamed, expected)
    assert torch.equal(streamed, whole(vae, latents))
