"""The VAE and the latents that ship with the package: no download, no network, ever.

The model card is ``default_vae/README.md``, next to the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLWan

__all__ = ["DEFAULT_VAE", "DEMO_LATENTS", "default_vae", "demo_latents"]

#: Directory of the embedded VAE in diffusers' format, for ``AutoencoderKLWan.from_pretrained``.
DEFAULT_VAE = Path(__file__).parent / "default_vae"

#: The demo latents: key ``latents``, float16; frame rate, source and licence as metadata.
DEMO_LATENTS = Path(__file__).parent / "demo_latents.safetensors"


def default_vae() -> AutoencoderKLWan:
    """Load the embedded VAE in float32 on the CPU, ready to decode.

    Every call loads anew, which is cheap (under 6 MB), so nobody's changes reach anybody else.
    """
    from diffusers import AutoencoderKLWan

    config = json.loads((DEFAULT_VAE / "config.json").read_text(encoding="utf-8"))
    weights = load_file(DEFAULT_VAE / "diffusion_pytorch_model.safetensors")
    vae = AutoencoderKLWan.from_config(config)
    vae.load_state_dict(weights)  # copies into float32 parameters
    return vae.eval().requires_grad_(requires_grad=False)


def demo_latents() -> tuple[torch.Tensor, float]:
    """Load the latents of the demo clip, and its frames per second.

    They are in the VAE's own space: ``default_vae().decode(latents)`` is the clip.

    Returns:
        Latents, float32 (1, C, T, h, w), and the frame rate.
    """
    with safe_open(DEMO_LATENTS, framework="pt") as file:
        return file.get_tensor("latents").float(), float(file.metadata()["fps"])
