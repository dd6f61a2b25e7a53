"""The embedded VAE's architecture, and its two walks over time, for training."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    patchify,
    unpatchify,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

#: Wan in miniature: 16x16 pixels and 4 frames become one latent of 64 channels. 4x4 pixels are
#: folded into channels, so that the widest level has 64x112 places for a 256x448 picture.
CONFIG: dict[str, Any] = {
    "base_dim": 22,
    "decoder_base_dim": 22,
    "z_dim": 64,
    "dim_mult": [2, 2, 3],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "in_channels": 48,
    "out_channels": 48,
    "patch_size": 4,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 64,
    "latents_std": [1.0] * 64,
}


def build() -> AutoencoderKLWan:
    """Return an untrained VAE whose posterior starts narrow and whose attention stays silent.

    Attention over a small crop would not hold on a whole picture, with many more places in it.
    """
    vae = AutoencoderKLWan(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = -8
    for module in vae.modules():
        if isinstance(module, WanAttentionBlock):
            module.requires_grad_(requires_grad=False)
            module.proj.weight.zero_()
            module.proj.bias.zero_()
    return vae


def halved(device: str) -> torch.autocast:
    """Compute in bfloat16 on CUDA.

    Not on the CPU, where torch 2.13 gives weight gradients of 3D convolutions that are not finite.
    """
    enabled = device != "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=enabled, cache_enabled=False)


def encode(vae: AutoencoderKLWan, video: Tensor) -> DiagonalGaussianDistribution:
    """Encode (B, 3, 4(T-1)+1, H, W) in the causal walk: the first frame, then all others."""
    pixels = patchify(video, vae.config.patch_size)
    cache = [None] * vae._cached_conv_counts["encoder"]
    parts = [vae.encoder(part, feat_cache=cache, feat_idx=[0]) for part in _walk(pixels, 4)]
    return DiagonalGaussianDistribution(vae.quant_conv(torch.cat(parts, 2)))


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode as ``vae.decode`` does, but leave out the clamp, which has no gradient outside."""
    return carry_on(vae, latents, [None] * vae._cached_conv_counts["decoder"], first=True)


def carry_on(vae: AutoencoderKLWan, latents: Tensor, cache: list[Any], *, first: bool) -> Tensor:
    """Decode the next latents of a clip, or the ``first`` ones; ``cache`` is carried on in place.

    What comes after the first latents is one walk of the decoder, so the first are two at least.
    """
    hidden = vae.post_quant_conv(latents)
    parts = [
        vae.decoder(part, feat_cache=cache, feat_idx=[0], first_chunk=first and place == 0)
        for place, part in enumerate(_walk(hidden, 1) if first else [hidden])
    ]
    frames, patch = torch.cat(parts, 2), vae.config.patch_size
    return frames if patch is None else unpatchify(frames, patch)


def _walk(frames: Tensor, stride: int) -> list[Tensor]:
    """Split into the first frame, the next ``stride`` and the rest: three walks there are."""
    cuts = [frames[:, :, :1], frames[:, :, 1 : 1 + stride], frames[:, :, 1 + stride :]]
    return [part for part in cuts if part.shape[2]]
