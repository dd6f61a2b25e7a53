"""What is each family of sound's own: how far latents are heard, refusals, notes, formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from streamvae._errors import DeviceError, LatentsError, UsageError
from streamvae.codecs import codec_for
from tests import tiny
from tests.codecs.walk import noise, pieces, walk
from tests.families.sound import (
    FAMILIES,
    VOCODERS,
    cosmos3,
    decoded,
    drawn,
    ltx2_audio,
    ltx2_vocoder,
    ltx2_wide,
    minimax_h3,
    mmaudio,
    music3,
    same,
    spoken,
)
from tests.releases import released


def test_reach_of_neighbours() -> None:
    """Attention to neighbours hears no further than said, and nearly as far."""
    vae = same()
    reach = codec_for(vae).reach
    latents, place = noise(1, 8, 21, dtype=torch.float64), 10
    louder = latents.clone()
    louder[:, :, place] += 50
    vae.double()
    with torch.no_grad():
        apart = vae.decode(louder).sample - vae.decode(latents).sample
    changed = (apart.abs() > 1e-13).flatten(0, 1).any(0).nonzero().flatten()

    assert int(changed[0]) >= reach.hop * place - reach.after
    assert int(changed[-1]) < reach.hop * (place + 1) + reach.before
    assert int(changed[0]) <= reach.hop * (place + 1) - reach.after
    assert reach.latents == (3, 3)


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        ({"class": "AutoencoderSAME", "encoder_channels": 1, "dim_heads": 4}, (6, 6)),
        ({"class": "LTX2Vocoder", "hidden_channels": 32}, (18, 18)),
        ({"class": "Cosmos3AVAEAudioTokenizer", "dec_dim": 1, "encoder_enabled": False}, (10, 10)),
    ],
    ids=["same", "ltx2_vocoder", "cosmos3"],
)
def test_reach_of_released_models(config: dict[str, object], reach: object) -> None:
    """With the strides, kernels and dilations of the classes, the reach is known."""
    options = dict(config)
    name = str(options.pop("class"))
    make = released(name, module=VOCODERS if name == "LTX2Vocoder" else "diffusers")

    assert codec_for(tiny._seeded(lambda: make(**options), 0)).reach.latents == reach


def test_probing_leaves_no_trace() -> None:
    """Probing draws no random numbers of the caller's and changes no default."""
    vae = minimax_h3(resblock_kernel_sizes=(3, 5))
    state = torch.random.get_rng_state()

    codec_for(vae)

    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() is torch.float32


def test_mel_bins_are_checked() -> None:
    """A spectrogram of other bins than the vocoder was built for is refused."""
    with pytest.raises(LatentsError, match=r"F = 4 mel bins, got shape \(1, 2, 3, 5\)"):
        codec_for(ltx2_vocoder()).check((1, 2, 3, 5))


def test_resampling_activations() -> None:
    """LTX2Vocoder's other activations resample; they are probed as well."""
    vae = ltx2_vocoder(act_fn="snakebeta", antialias=True)
    latents = noise(1, 2, 60, 4)

    given = walk(codec_for(vae), latents, 5)

    torch.testing.assert_close(given, spoken(vae, latents), rtol=0, atol=2e-6)
    assert codec_for(vae).reach.before > codec_for(ltx2_vocoder()).reach.before


def test_steps_that_do_not_fit() -> None:
    """A bandwidth extension whose steps do not fall on mel frames is refused."""
    with pytest.raises(UsageError, match="10: the steps"):
        codec_for(ltx2_wide(hop_length=4))


def test_sound_that_cannot_be_streamed() -> None:
    """Attention over all time: nothing before the end, and it is said."""
    codec = codec_for(mmaudio())
    latents = noise(1, 4, 9)
    decoder = codec.decoder()

    given = [decoder.decode(piece) for piece in pieces(codec, latents, 2)]

    assert given == [None] * 5
    assert "depends on every latent" in codec.notes((1, 4, 9))[0]
    assert codec.cut(9, None, "exact").first == 9
    assert decoder.drain().shape == (1, 8, 18)
    decoder.close()


@pytest.mark.parametrize(
    "config",
    [
        {"causality_axis": "width"},
        {"mid_block_add_attention": True},
        {"ch_mult": (1, 2)},
    ],
)
def test_spectrograms_that_are_not_causal(config: dict[str, object]) -> None:
    """An LTX-2 autoencoder that is not causal in time, or of another size, is refused."""
    with pytest.raises(UsageError, match=r"expected .*vae\.decode"):
        codec_for(ltx2_audio(**config))


def test_more_bins_than_decoded() -> None:
    """Bins that the decoder does not reach are zeros, and those too many are cut, as by decode."""
    for bins in (12, 20, None):
        vae = ltx2_audio(mel_bins=bins)
        latents = noise(1, 4, 5, 4)
        expected = drawn(vae, latents)
        torch.testing.assert_close(walk(codec_for(vae), latents, 2), expected, rtol=0, atol=5e-6)


def test_slicing() -> None:
    """With slicing on, clips are decoded one by one, spectrograms too."""
    for sound in FAMILIES:
        vae = sound.make()
        if not hasattr(vae, "use_slicing"):
            continue
        vae.use_slicing = True
        latents = sound.noise(20, batch=3)
        given = walk(codec_for(vae), latents, 6)
        expected = sound.reference(vae, latents)
        torch.testing.assert_close(given, expected, rtol=0, atol=sound.tolerance)


def test_denormalize() -> None:
    """Each family's formula, as diffusers' pipelines have it."""
    latents = noise(2, 4, 5)
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    mean, std = (torch.tensor(one).view(1, 4, 1) for one in statistics.values())

    assert torch.equal(codec_for(mmaudio()).denormalize(latents), latents / 0.417)
    assert codec_for(minimax_h3()).denormalize(latents) is latents
    h3 = codec_for(minimax_h3(**statistics))
    assert torch.equal(h3.denormalize(latents), latents * std + mean)
    assert codec_for(music3()).denormalize(latents) is latents

    vae = ltx2_audio()
    spectral = noise(2, 4, 5, 4)
    packed = spectral.transpose(1, 2).flatten(2, 3) * vae.latents_std + vae.latents_mean
    expected = packed.unflatten(2, (4, 4)).transpose(1, 2)
    assert torch.equal(codec_for(vae).denormalize(spectral), expected)
    with pytest.raises(UsageError, match="16 channels and bins"):
        codec_for(vae).denormalize(noise(2, 4, 5, 3))


def test_notes() -> None:
    """Mono autoencoders say where stereo is; mel spectrograms say that they are no sound yet."""
    assert "left and right" in codec_for(minimax_h3()).notes((2, 4, 3))[0]
    assert codec_for(minimax_h3()).notes((1, 4, 3)) == ()
    assert "a vocoder makes the sound" in codec_for(ltx2_audio()).notes((1, 4, 3, 4))[0]


def test_own_decodes_are_refused() -> None:
    """A subclass that decodes in its own way may need all latents: it is not cut into windows."""
    for make, name in ((cosmos3, "decode"), (ltx2_vocoder, "forward")):
        vae = make()
        kind = type(vae)
        vae.__class__ = type("Own", (kind,), {name: lambda self, latents: latents})
        with pytest.raises(UsageError, match="of its own"):
            codec_for(vae)


def test_weights_that_are_not_there() -> None:
    """Layers offloaded one by one do not survive weight normalisation; that is said."""
    vae = music3()
    for part in vae.modules():
        if hasattr(part, "weight_g"):
            part.weight_g = nn.Parameter(part.weight_g.to("meta"), requires_grad=False)
    with pytest.raises(DeviceError, match="offload it as a whole"):
        codec_for(vae).check((1, 8, 3))


@pytest.mark.filterwarnings("ignore:There are modules in")
def test_positions_in_half_precision() -> None:
    """Where diffusers' positions break down, the stream is closer to the truth, and says so."""
    latents = noise(1, 8, 100)
    expected = decoded(same(), latents)
    vae = same().to(torch.bfloat16)
    assert codec_for(same()).notes((1, 8, 100)) == ()

    codec = codec_for(vae)
    streamed = (walk(codec, latents.bfloat16(), 7) - expected).abs().max()
    whole = (decoded(vae, latents.bfloat16()) - expected).abs().max()

    assert streamed < whole / 2
    assert "in bfloat16 the autoencoder rounds the positions" in codec.notes((1, 8, 100))[0]
