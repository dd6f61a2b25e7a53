"""Pipelines that denoise with a UNet: Stable Diffusion, SDXL, latent consistency."""

from __future__ import annotations

import diffusers
import torch

from tests import tiny
from tests.latents.pipelines.case import Call, Case, embeddings, model

SIDE = 16


def stable_vae(**config: object) -> diffusers.AutoencoderKL:
    """An autoencoder with Stable Diffusion's factor."""
    return tiny.kl(**{"scaling_factor": 0.18215, **config})


def unet(channels: int = 4, **config: object) -> torch.nn.Module:
    """A UNet of 8x8 latents."""
    options: dict[str, object] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": 4,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
    }
    return model("UNet2DConditionModel", **(options | config))


def picture(seed: int = 5) -> torch.Tensor:
    """An image to begin from, in [0, 1]."""
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def _mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    return mask


def stable(channels: int = 4) -> dict[str, object]:
    """A Stable Diffusion pipeline without a safety checker."""
    return {
        "unet": unet(channels),
        "vae": stable_vae(),
        "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    }


def call(**more: object) -> Call:
    """A call of `stable`: two steps, no guidance."""
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


def large(in_channels: int = 4, **config: object) -> dict[str, object]:
    """An SDXL pipeline; ``config`` is its autoencoder's."""
    return {
        "unet": unet(
            in_channels,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * 6 + 8,
        ),
        "vae": stable_vae(**config),
        "scheduler": diffusers.EulerDiscreteScheduler(),
    }


def large_call(**more: object) -> Call:
    """A call of `large`."""
    return call(pooled_prompt_embeds=embeddings(1, 8), **more)


def _standardised() -> dict[str, object]:
    return large(
        scaling_factor=0.13,
        latents_mean=[0.1, -0.2, 0.3, 0.4],
        latents_std=[1.5, 2.0, 0.5, 3.0],
    )


def _half() -> dict[str, object]:
    parts = large(force_upcast=True)
    return {
        name: part.half() if isinstance(part, torch.nn.Module) else part
        for name, part in parts.items()
    }


def _half_call() -> Call:
    return {
        name: value.half() if isinstance(value, torch.Tensor) else value
        for name, value in large_call().items()
    }


CASES = (
    Case("StableDiffusionPipeline", stable, call),
    Case(
        "StableDiffusionImg2ImgPipeline",
        stable,
        lambda: call(image=picture(), strength=1.0),
    ),
    Case(
        "StableDiffusionInpaintPipeline",
        lambda: stable(9),
        lambda: call(image=picture(), mask_image=_mask(), height=SIDE, width=SIDE),
    ),
    Case("StableDiffusionXLPipeline", large, large_call),
    Case("StableDiffusionXLPipeline", _standardised, large_call, label="statistics"),
    Case("StableDiffusionXLPipeline", _half, _half_call, label="upcast"),
    Case(
        "StableDiffusionXLImg2ImgPipeline",
        large,
        lambda: large_call(image=picture(), strength=1.0),
    ),
    Case(
        "StableDiffusionXLInpaintPipeline",
        lambda: large(9),
        lambda: large_call(
            image=picture(), mask_image=_mask(), height=SIDE, width=SIDE, strength=1.0
        ),
    ),
    Case(
        "LatentConsistencyModelPipeline",
        lambda: (
            stable() | {"unet": unet(time_cond_proj_dim=8), "scheduler": diffusers.LCMScheduler()}
        ),
        lambda: call(guidance_scale=2.0),
    ),
)
