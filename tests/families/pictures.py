"""Families of image autoencoders with something of their own: what they take, give or refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, ConsistencyDecoderVAE, VQModel
from torch import nn

from tests.families.images import kvae
from tests.releases import released
from tests.tiny import _seeded


@dataclass(frozen=True)
class Picture:
    """A tiny image autoencoder.

    Attributes:
        name: Names the tests.
        make: Builds it.
        latents: Shape of the latents of an item, after the batch.
        sliced: Whether it can ``enable_slicing()`` and heeds that.
        halves: Whether it decodes bfloat16 on a CPU.
        call: Keyword arguments of ``decode``, made anew for each call.
    """

    name: str
    make: Callable[[], nn.Module]
    latents: tuple[int, ...]
    sliced: bool = True
    halves: bool = True
    call: Callable[[], Mapping[str, object]] = field(default=dict)


@torch.no_grad()
def one_by_one(family: Picture, vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What ``vae.decode`` gives for each item alone, the single frame taken out."""
    call = family.call()
    each = [vae.decode(item, return_dict=False, **call)[0] for item in latents.split(1)]
    pixels = torch.cat(each)
    return pixels[:, :, 0] if pixels.ndim == 5 else pixels


_UP_AND_DOWN = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def tiny(seed: int = 0, blocks: int = 4, **config: object) -> AutoencoderTiny:
    """AutoencoderTiny: latents (B, 4, h, w) to (B, 3, 8h, 8w)."""
    options: dict[str, object] = {
        f"{part}_{what}": value
        for part in ("encoder", "decoder")
        for what, value in (("block_out_channels", (8,) * blocks),)
    }
    options |= {f"num_{part}_blocks": (1,) * blocks for part in ("encoder", "decoder")}
    return _seeded(lambda: AutoencoderTiny(**(options | config)), seed)


def refiner(seed: int = 0) -> nn.Module:
    """AutoencoderKLHunyuanImageRefiner: latents (B, 4, 1, h, w) to (B, 3, 1, 4h, 4w)."""
    make = released("AutoencoderKLHunyuanImageRefiner")
    return _seeded(
        lambda: make(
            latent_channels=4,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
        ),
        seed,
    )


def qwen_image21(seed: int = 0, **config: object) -> nn.Module:
    """AutoencoderKLQwenImage21: latents (B, 4, 1, h, w) to RGBA (B, 4, 1, 2h, 2w)."""
    options: dict[str, object] = {
        "base_dim": 8,
        "decoder_base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "latents_mean": [0.1, -0.2, 0.3, 0.4],
        "latents_std": [1.5, 2.0, 0.5, 3.0],
        "scale_factor_spatial": 2,
    }
    make = released("AutoencoderKLQwenImage21")
    vae = _seeded(lambda: make(**(options | config)), seed)
    vae.decoder.conv_out.weight.mul_(8)  # so that some of it is clamped
    return vae


def _in_time() -> nn.Module:
    """Its shortcuts make two frames of one, and drop the first, as those of the released model."""
    return qwen_image21(
        dim_mult=[1, 1, 1], temperal_downsample=[False, True], scale_factor_spatial=4
    )


def rae(seed: int = 0) -> nn.Module:
    """AutoencoderRAE: latents (B, 64, 4, 4) to (B, 3, 16, 16)."""
    make = released("AutoencoderRAE")
    return _seeded(
        lambda: make(
            encoder_hidden_size=64,
            encoder_num_hidden_layers=1,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            encoder_input_size=56,
            encoder_patch_size=14,
            patch_size=4,
            latents_mean=torch.linspace(-1, 1, 64).view(64, 1, 1),
            latents_std=torch.linspace(0.5, 2, 64).view(64, 1, 1),
            scaling_factor=1.5,
        ),
        seed,
    )


def vq(seed: int = 0, **config: object) -> VQModel:
    """VQModel: latents (B, 4, h, w) to (B, 3, 2h, 2w)."""
    options: dict[str, object] = {
        "block_out_channels": (16, 16),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "num_vq_embeddings": 16,
        **_UP_AND_DOWN,
    }
    return _seeded(lambda: VQModel(**(options | config)), seed)


def movq(seed: int = 0) -> VQModel:
    """VQModel as Kandinsky has it: normalized by the latents."""
    return vq(seed, norm_type="spatial", block_out_channels=(32, 32))


def asymmetric(seed: int = 0) -> AsymmetricAutoencoderKL:
    """AsymmetricAutoencoderKL: latents (B, 4, h, w) to (B, 3, 2h, 2w)."""
    return _seeded(
        lambda: AsymmetricAutoencoderKL(
            down_block_out_channels=(16, 16),
            up_block_out_channels=(8, 8),
            norm_num_groups=4,
            **_UP_AND_DOWN,
        ),
        seed,
    )


def consistency(seed: int = 0) -> ConsistencyDecoderVAE:
    """ConsistencyDecoderVAE: latents (B, 4, h, w) to (B, 3, 2h, 2w), from noise."""
    return _seeded(
        lambda: ConsistencyDecoderVAE(
            encoder_block_out_channels=(16, 16),
            encoder_down_block_types=("DownEncoderBlock2D",) * 2,
            encoder_layers_per_block=1,
            encoder_norm_num_groups=4,
            decoder_block_out_channels=(16, 16),
            decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
            decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
            decoder_layers_per_block=1,
            decoder_norm_num_groups=4,
        ),
        seed,
    )


def unquantized() -> Mapping[str, object]:
    """How Kandinsky's pipelines have it decoded."""
    return {"force_not_quantize": True}


def generator() -> Mapping[str, object]:
    """A generator of its own."""
    return {"generator": torch.Generator().manual_seed(7)}


PICTURES = (
    Picture("tiny", tiny, (4, 3, 4)),
    Picture("tiny_of_2", lambda: tiny(blocks=2), (4, 3, 4)),
    Picture("kvae", kvae, (4, 3, 4)),
    Picture("refiner", refiner, (4, 1, 3, 4)),
    Picture("qwen_image21", qwen_image21, (4, 1, 3, 4)),
    Picture(
        "qwen_image21_patches",
        lambda: qwen_image21(patch_size=2, in_channels=16, out_channels=16, scale_factor_spatial=4),
        (4, 1, 3, 2),
    ),
    Picture("qwen_image21_in_time", _in_time, (4, 1, 2, 3)),
    Picture("rae", rae, (64, 4, 4)),
    Picture("rae_resized", rae, (64, 3, 3)),
    Picture("vq", vq, (4, 3, 4), sliced=False, halves=False),
    Picture("vq_wide", lambda: vq(vq_embed_dim=6), (6, 3, 4), sliced=False, halves=False),
    Picture("vq_unquantized", vq, (4, 3, 4), sliced=False, call=unquantized),
    Picture("movq", movq, (4, 3, 4), sliced=False, call=unquantized),
    Picture("asymmetric", asymmetric, (4, 3, 4), sliced=False),
    Picture("consistency", consistency, (4, 3, 4), sliced=False, call=generator),
    Picture("consistency_global", consistency, (4, 3, 4), sliced=False),
)
