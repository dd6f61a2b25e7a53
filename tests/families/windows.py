"""Families whose windows of time overlap the way diffusers lays them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from diffusers import (
    AutoencoderKLAllegro,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
)

from tests.releases import released
from tests.tiny import _seeded

from .family import Family, decode
from .lookahead import ltx, ltx2


def hunyuan_video(seed: int = 0) -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo: latents (B, 4, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w)."""
    return _seeded(
        lambda: AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        ),
        seed,
    )


def hunyuan_video_whole(seed: int = 0) -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo that decodes all latents at once."""
    vae = hunyuan_video(seed)
    vae.use_framewise_decoding = False
    return vae


def allegro(seed: int = 0) -> AutoencoderKLAllegro:
    """Allegro: latents (B, 4, T, h, w) to (B, 3, 4T, 8h, 8w); tiles of 4x4 latents, 3 apart."""
    vae = _seeded(
        lambda: AutoencoderKLAllegro(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=32
        ),
        seed,
    )
    vae.enable_tiling()
    vae.kernel, vae.stride = (24, 32, 32), (16, 24, 24)
    return vae


def _smaller_tiles(vae: torch.nn.Module) -> None:
    vae.kernel, vae.stride = (24, 24, 32), (16, 16, 16)


def _allegro_decode(
    vae: torch.nn.Module, latents: torch.Tensor, call: Mapping[str, object]
) -> torch.Tensor:
    """Frames first becomes channels first."""
    return decode(vae, latents, call).movedim(1, 2)


def minimax_h3(seed: int = 0, **config: int) -> torch.nn.Module:
    """MiniMax-H3: latents (B, 4, 5n + 2, h, w) to (B, 3, 17n + 5, 16h, 16w)."""
    with warnings.catch_warnings():
        # It computes norms in float32 whatever its dtype, and torch says so once a process.
        warnings.simplefilter("ignore", UserWarning)
        torch.rms_norm(torch.ones(1, 2), (2,), torch.ones(2, dtype=torch.float64))
    return _seeded(
        lambda: released("AutoencoderKLMiniMaxH3")(
            latent_channels=4,
            block_out_channels=(8,) * 6,
            layers_per_block=1,
            norm_num_groups=4,
            decoder_num_layers=1,
            decoder_num_attention_heads=2,
            decoder_attention_head_dim=16,
            decoder_ffn_mult=2,
            latents_mean=(0.1, -0.2, 0.3, 0.0),
            latents_std=(1.0, 1.2, 0.8, 1.1),
            **config,
        ),
        seed,
    )


class DenseNeighborhood:
    """Attention of each place to its neighbourhood, by a dense mask: flex attention needs a GPU."""

    def __call__(self, attn, hidden_states, block_mask=None):
        batch, *size, _ = hidden_states.shape
        mask = torch.ones(1, 1, dtype=torch.bool, device=hidden_states.device)
        for length, kernel in zip(size, attn.kernel_size, strict=True):
            place = torch.arange(length, device=hidden_states.device)
            start = (place - kernel // 2).clamp(0, length - kernel)[:, None]
            mask = torch.kron(mask, (place >= start) & (place < start + kernel))
        query, key, value = (
            one.flatten(1, 3).transpose(1, 2) for one in attn.project_qkv(hidden_states)
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=1.0
        )
        return attn.to_out[0](attended.transpose(1, 2).reshape(batch, *size, -1))


def ltx2_diffusion(seed: int = 0, **config: object) -> torch.nn.Module:
    """LTX-2.5's decoder: latents (B, 4, T, h, w) to (B, 3, 8(T-1)+1, 32h, 32w), with noise."""
    options: dict[str, object] = {
        "latent_channels": 4,
        "patch_size": 4,
        "decoder_head_dim": 8,
        "decoder_stage_channels": (16, 16, 16, 16, 8),
        "decoder_stage_depths": (1, 1, 1, 1, 1),
        "decoder_stage_kernels": ((3, 2, 2),) * 4,
        "decoder_upsample_channel_reductions": (1, 1, 1, 2),
        "decoder_stage5_kernel": (3, 3, 3),
        "decoder_t_emb_dim": 8,
    }
    model = _seeded(lambda: released("LTX2VideoDiffusionDecoderModel")(**(options | config)), seed)
    model.set_attn_processor(DenseNeighborhood())
    return model


def ltx2_diffusion_tiled(seed: int = 0) -> torch.nn.Module:
    """The same in windows of 16 frames, 8 apart."""
    model = ltx2_diffusion(seed)
    model.enable_tiling(tile_sample_min_num_frames=16, tile_sample_stride_num_frames=8)
    return model


def ltx_framewise(seed: int = 0, **config: object) -> AutoencoderKLLTXVideo:
    """LTX that decodes framewise."""
    vae = ltx(seed, **config)
    vae.use_framewise_decoding = True
    return vae


def ltx2_framewise(seed: int = 0, **config: object) -> torch.nn.Module:
    """LTX-2 that decodes framewise."""
    vae = ltx2(seed, **config)
    vae.use_framewise_decoding = True
    return vae


def _tile_ltx(vae: torch.nn.Module) -> None:
    vae.enable_tiling(96, 96, tile_sample_stride_height=64, tile_sample_stride_width=64)


FAMILIES = (
    Family(
        "hunyuan_video",
        hunyuan_video,
        (4, 3, 2),
        (1, 4, 5, 6, 7, 8),
        chunks=(None, 1, 4, 7),
        tile=lambda vae: vae.enable_tiling(
            tile_sample_min_height=32,
            tile_sample_min_width=32,
            tile_sample_stride_height=24,
            tile_sample_stride_width=24,
        ),
    ),
    Family(
        "hunyuan_video_whole",
        hunyuan_video_whole,
        (4, 3, 2),
        (1, 5),
        chunks=(None, 2),
        growing=True,
    ),
    Family(
        "allegro",
        allegro,
        (4, 4, 4),
        (6, 8, 11),
        chunks=(None, 1, 7),
        batched=False,
        tile=_smaller_tiles,
        tiled=(7, 8),
        reference=_allegro_decode,
    ),
    Family(
        "minimax_h3",
        minimax_h3,
        (4, 3, 2),
        (3, 5, 7, 8, 11, 12),
        chunks=(None, 1, 6),
        tile=lambda vae: vae.enable_tiling(64, 64, 16, 16),
    ),
    Family(
        "ltx2_diffusion",
        ltx2_diffusion,
        (4, 2, 2),
        (2, 3),
        chunks=(None, 2),
        growing=True,
    ),
    Family(
        "ltx2_diffusion_tiled",
        ltx2_diffusion_tiled,
        (4, 2, 2),
        (2, 5),
        chunks=(None, 2),
        growing=True,
        tile=lambda model: model.enable_tiling(64, 64, 16, 48, 32, 8),
        tiled=(2, 3),
    ),
    Family(
        "ltx_framewise",
        ltx_framewise,
        (8, 1, 2),
        (1, 2, 3, 4),
        chunks=(None, 2),
        tile=_tile_ltx,
        tiled=(2, 4),
    ),
    Family(
        "ltx2_framewise",
        ltx2_framewise,
        (8, 2, 2),
        (2, 4),
        chunks=(None, 3),
        tile=_tile_ltx,
        tiled=(2, 4),
    ),
)
