"""``streamvae info``."""

from pathlib import Path

import torch

from .command import Invoke


def test_info_says_what_there_is(invoke: Invoke) -> None:
    """``info`` names versions, devices, families and sinks."""
    result = invoke("info")
    assert result.exit_code == 0
    for word in (torch.__version__, "diffusers", "cpu", "AutoencoderKLWan", ".mp4", ".raw"):
        assert word in result.stdout


def test_info_says_what_latents_would_give(invoke: Invoke, vae: Path) -> None:
    """``info LATENTS --vae DIR`` knows frames, size and chunks without decoding."""
    stdout = invoke("info", "z.safetensors", "--vae", vae).stdout
    assert "1, 4, 3, 4, 6" in stdout
    assert "gives: 9 frames of 48x32" in stdout
    assert "chunks: 3, of 1 latent(s) first" in stdout
    assert "decoder state: " in stdout
    assert "on the host, in chunks: " in stdout


def test_info_refuses_latents_of_another_vae(invoke: Invoke) -> None:
    """``info`` says so when latents are not of the autoencoder's shape."""
    result = invoke("info", "z.safetensors")
    assert result.exit_code == 2
    assert "expected latents (B, C, T, H, W)" in result.stderr
