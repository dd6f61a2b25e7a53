"""The embedded VAE's shape, its first weights, and its walk as training needs it."""

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResidualBlock,
    patchify,
    unpatchify,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

#: Wan 2.1 in miniature: 8x8 pixels and 4 frames become one latent of 16 channels. 2x2 pixels are
#: folded into channels, so that two levels do. The decoder is 32, 80 and 72 channels wide: torch
#: takes the fast convolution on a CPU only where channels x frames x lines exceed 20480, which
#: 32 and 80 channels do at 256x448 and 24 and 64 do not.
CONFIG: dict[str, Any] = {
    "base_dim": 6,
    "decoder_base_dim": 8,
    "z_dim": 16,
    "dim_mult": [4, 10, 9],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}


def build() -> AutoencoderKLWan:
    """Return an untrained VAE: narrow posterior, residual blocks that add nothing yet.

    Attention stays silent for good. Over a small crop it would learn what does not hold on a
    whole picture, with many more places in it.
    """
    vae = AutoencoderKLWan(**CONFIG)
    silent: list[torch.nn.Module] = []
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            silent.append(module.conv2)
        if isinstance(module, WanAttentionBlock):
            module.requires_grad_(requires_grad=False)
            silent.append(module.proj)
    with torch.no_grad():
        for layer in silent:
            for parameter in layer.parameters():
                parameter.zero_()
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = -8
    return vae


def bypass(vae: AutoencoderKLWan, *, on: bool) -> None:
    """Leave out residual blocks and attention, or put them back, where they begin as nothing.

    Without them a step takes a fraction of the time, and learns what resampling can do.
    """
    for module in vae.modules():
        if isinstance(module, WanResidualBlock | WanAttentionBlock):
            if on:
                module.forward = partial(_shortcut, getattr(module, "conv_shortcut", None))
            else:
                module.__dict__.pop("forward", None)


def _shortcut(layer: torch.nn.Module | None, x: Tensor, **_: object) -> Tensor:
    """Stand in for a block."""
    return layer(x) if layer else x


def encode(vae: AutoencoderKLWan, video: Tensor) -> DiagonalGaussianDistribution:
    """Encode (B, 3, 4(T-1)+1, H, W) in the causal walk: the first frame, then all others."""
    x = patchify(video, vae.config.patch_size)
    cache = [None] * vae._cached_conv_counts["encoder"]
    parts = [vae.encoder(c, feat_cache=cache, feat_idx=[0]) for c in _first_and_rest(x)]
    return DiagonalGaussianDistribution(vae.quant_conv(torch.cat(parts, 2)))


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode as ``vae.decode`` does, but leave out the clamp, which has no gradient outside."""
    z = vae.post_quant_conv(latents)
    cache = [None] * vae._cached_conv_counts["decoder"]
    parts = [
        vae.decoder(c, feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
        for i, c in enumerate(_first_and_rest(z))
    ]
    video: Tensor = unpatchify(torch.cat(parts, 2), vae.config.patch_size)
    return video


def _first_and_rest(x: Tensor) -> list[Tensor]:
    """Split off the first frame: what follows may be walked in one go, to rounding."""
    return [part for part in (x[:, :, :1], x[:, :, 1:]) if part.shape[2]]
