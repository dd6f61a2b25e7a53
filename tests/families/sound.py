"""Families of sound: tiny models, and what diffusers gives for their latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tests import tiny
from tests.codecs.walk import noise
from tests.releases import released
from tests.tiny import _seeded

VOCODERS = "diffusers.pipelines.ltx2.vocoder"


@torch.no_grad()
def decoded(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """``vae.decode``."""
    sound: torch.Tensor = vae.decode(latents, return_dict=False)[0]
    return sound


@torch.no_grad()
def tokenised(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """``decode`` of a tokenizer, which gives the sound itself."""
    sound: torch.Tensor = vae.decode(latents)
    return sound


@torch.no_grad()
def spoken(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """A vocoder's own output."""
    sound = vae(latents)
    return sound if isinstance(sound, torch.Tensor) else sound.sample


@torch.no_grad()
def drawn(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """A mel spectrogram, channels and bins joined as a vocoder joins them."""
    return decoded(vae, latents).transpose(2, 3).flatten(1, 2)


@dataclass(frozen=True)
class Sound:
    """A tiny model of sound and what streaming it promises.

    Attributes:
        name: Names the tests.
        make: Builds it.
        latents: C, then all dimensions after time, of its tiny latents.
        rate: Samples (or mel frames) a second.
        lengths: Numbers of latents to test.
        chunks: ``latents_per_chunk`` to test.
        reference: What diffusers gives.
        tolerance: Greatest difference to that in float32.
        wide: Greatest difference in float64; None where diffusers itself does not decode in it.
    """

    name: str
    make: Callable[[], nn.Module]
    latents: tuple[int, ...]
    rate: int | None
    lengths: tuple[int, ...]
    chunks: tuple[int, ...]
    reference: Callable[[nn.Module, torch.Tensor], torch.Tensor] = decoded
    tolerance: float = 2e-6
    wide: float | None = 1e-13

    def noise(
        self, length: int, *, batch: int = 1, seed: int = 1, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Seeded latents (batch, C, length, ...)."""
        channels, *features = self.latents
        return noise(batch, channels, length, *features, seed=seed, dtype=dtype)


def kvae() -> nn.Module:
    """AutoencoderKLKVAEAudio: (B, 8, T) to (B, 1, 30 T), an odd stride among its own."""
    make = released("AutoencoderKLKVAEAudio")
    return _seeded(
        lambda: make(
            encoder_dim=2,
            encoder_rates=[2, 3, 5],
            latent_dim=16,
            codebook_dim=8,
            decoder_dim=16,
            decoder_rates=[5, 3, 2],
            attn_num_heads=2,
        ),
        0,
    )


def longcat() -> nn.Module:
    """LongCatAudioDiTVae: (B, 8, T) to (B, 1, 32 T)."""
    make = released("LongCatAudioDiTVae")
    return _seeded(
        lambda: make(
            channels=4, c_mults=[1, 2, 2], strides=[2, 4, 4], latent_dim=8, encoder_latent_dim=16
        ),
        0,
    )


def cosmos3() -> nn.Module:
    """Cosmos3AVAEAudioTokenizer: (B, 8, T) to (B, 2, 40 T), clamped."""
    make = released("Cosmos3AVAEAudioTokenizer")
    return _seeded(
        lambda: make(
            vocoder_input_dim=8,
            dec_dim=4,
            dec_c_mults=(1, 2, 2),
            dec_strides=(2, 4, 5),
            encoder_enabled=False,
        ),
        0,
    )


def minimax_h3(**config: object) -> nn.Module:
    """AutoencoderKLMiniMaxH3Audio: (B, 4, T) to (B, 1, 20 T), resampling around activations."""
    make = released("AutoencoderKLMiniMaxH3Audio")
    options: dict[str, object] = {
        "encoder_dim": 2,
        "encoder_rates": (4, 5),
        "latent_dim": 8,
        "latent_channels": 4,
        "num_attention_heads": 2,
        "decoder_dim": 8,
        "decoder_rates": (5, 2, 2),
        "decoder_kernel_sizes": (9, 4, 4),
        "resblock_kernel_sizes": (3, 7),
        "resblock_dilation_sizes": ((1, 3), (1, 3)),
    }
    return _seeded(lambda: make(**(options | config)), 0)


def same(**config: object) -> nn.Module:
    """AutoencoderSAME: (B, 8, T) to (B, 2, 32 T), two levels of attention to neighbours."""
    make = released("AutoencoderSAME")
    options: dict[str, object] = {
        "patch_size": 4,
        "encoder_channels": 16,
        "encoder_c_mults": (1, 2),
        "encoder_strides": (2, 4),
        "encoder_transformer_depths": (2, 1),
        "latent_dim": 8,
        "dim_heads": 8,
        "sliding_window": 2,
    }
    vae = _seeded(lambda: make(**(options | config)), 0)
    generator = torch.Generator().manual_seed(0)
    for part in vae.modules():
        if hasattr(part, "new_tokens"):
            part.new_tokens.normal_(0, 0.3, generator=generator)
    return vae


def music3() -> nn.Module:
    """MiniMaxMusic3Vocoder: (B, 8, T) to (B, 2, 16 T)."""
    make = released("MiniMaxMusic3Vocoder")
    return _seeded(
        lambda: make(
            latent_channels=8, decoder_input_dim=8, decoder_hidden_dim=8, upsampling_ratios=(4, 4)
        ),
        0,
    )


def mmaudio() -> nn.Module:
    """MMAudioVAE: (B, 4, T) to mel spectrograms (B, 8, 2 T), attention over all time."""
    make = released("MMAudioVAE")
    return _seeded(
        lambda: make(mel_bins=8, latent_channels=4, hidden_channels=16, n_fft=64, hop_length=16), 0
    )


def mmaudio_vocoder() -> nn.Module:
    """MMAudioVocoder: (B, 8, T) to (B, 1, 8 T)."""
    make = released("MMAudioVocoder")
    return _seeded(
        lambda: make(
            num_mels=8,
            upsample_initial_channel=8,
            upsample_rates=(4, 2),
            upsample_kernel_sizes=(8, 4),
            resblock_kernel_sizes=(3, 7),
            resblock_dilation_sizes=((1, 3), (1, 3)),
        ),
        0,
    )


def ltx2_audio(**config: object) -> nn.Module:
    """AutoencoderKLLTX2Audio: (B, 4, T, 4) to mel spectrograms (B, 2, 4T-3, 16)."""
    make = released("AutoencoderKLLTX2Audio")
    options: dict[str, object] = {
        "base_channels": 16,
        "ch_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "resolution": 32,
        "latent_channels": 4,
        "mel_bins": 16,
    }
    vae = _seeded(lambda: make(**(options | config)), 0)
    generator = torch.Generator().manual_seed(0)
    vae.latents_mean.normal_(generator=generator)
    vae.latents_std.uniform_(0.5, 2.0, generator=generator)
    return vae


_ONE = {
    "in_channels": 8,
    "hidden_channels": 8,
    "upsample_kernel_sizes": [9, 4],
    "upsample_factors": [5, 2],
    "resnet_kernel_sizes": [3, 7],
    "resnet_dilations": [[1, 3], [1, 3]],
}


def ltx2_vocoder(**config: object) -> nn.Module:
    """LTX2Vocoder: mel spectrograms (B, 2, T, 4) to (B, 2, 10 T)."""
    make = released("LTX2Vocoder", module=VOCODERS)
    return _seeded(lambda: make(**(_ONE | config)), 0)


def ltx2_wide(**config: object) -> nn.Module:
    """LTX2VocoderWithBWE: mel spectrograms (B, 2, T, 4) to (B, 2, 30 T)."""
    make = released("LTX2VocoderWithBWE", module=VOCODERS)
    two = {f"bwe_{name}": value for name, value in _ONE.items()}
    options = {
        **_ONE,
        **two,
        "bwe_in_channels": 8,
        "bwe_upsample_factors": [5, 3],
        "bwe_upsample_kernel_sizes": [9, 5],
        "filter_length": 16,
        "window_length": 16,
        "hop_length": 5,
        "num_mel_channels": 4,
    }
    model = _seeded(lambda: make(**(options | config)), 0)
    generator = torch.Generator().manual_seed(0)
    model.mel_stft.stft_fn.forward_basis.normal_(0, 0.2, generator=generator)
    model.mel_stft.mel_basis.uniform_(0.1, 0.3, generator=generator)
    return model


#: The longest is more than what is heard of a latent on both sides.
_LENGTHS, _CHUNKS = (1, 2, 47), (1, 7)

FAMILIES = (
    Sound("oobleck", lambda: tiny.oobleck(strides=(2, 3, 5)), (8,), 44100, _LENGTHS, _CHUNKS),
    Sound("kvae", kvae, (8,), 48000, _LENGTHS, _CHUNKS),
    Sound("longcat", longcat, (8,), 24000, _LENGTHS, _CHUNKS),
    Sound("cosmos3", cosmos3, (8,), 48000, _LENGTHS, _CHUNKS, tokenised),
    Sound("minimax_h3", minimax_h3, (4,), 32000, _LENGTHS, _CHUNKS),
    # Its positions are float32 whatever the weights are.
    Sound("same", same, (8,), 44100, _LENGTHS, _CHUNKS, wide=2e-6),
    Sound("music3", music3, (8,), 44100, _LENGTHS, _CHUNKS, spoken),
    Sound("mmaudio", mmaudio, (4,), None, _LENGTHS, _CHUNKS, tolerance=0, wide=None),
    Sound("mmaudio_vocoder", mmaudio_vocoder, (8,), None, _LENGTHS, _CHUNKS, spoken),
    Sound("ltx2_audio", ltx2_audio, (4, 4), 100, _LENGTHS, _CHUNKS, drawn, tolerance=5e-6),
    Sound("ltx2_vocoder", ltx2_vocoder, (2, 4), 24000, _LENGTHS, _CHUNKS, spoken),
    Sound("ltx2_wide", ltx2_wide, (2, 4), 48000, (1, 2, 60), _CHUNKS, spoken),
)
