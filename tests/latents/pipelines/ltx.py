"""LTX: packed tokens, statistics as buffers, noise before decoding."""

from __future__ import annotations

import diffusers
import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

from tests.families.lookahead import ltx, ltx_091

from .case import Call, Case, embeddings, model
from .wan import image

SIZE = ("height", "width")


def _components(vae: torch.nn.Module) -> dict[str, object]:
    return {
        "transformer": model(
            "LTXVideoTransformer3DModel",
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=8,
        ),
        "vae": vae,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _upsampler() -> dict[str, object]:
    return {
        "vae": ltx(),
        "latent_upsampler": model(
            LTXLatentUpsamplerModel,
            in_channels=8,
            mid_channels=32,
            num_blocks_per_stage=1,
        ),
    }


def _call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "prompt_attention_mask": torch.ones(1, 4),
        "height": 64,
        "width": 96,
        "num_frames": 17,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


def _noisy(**more: object) -> Call:
    return _call(decode_timestep=0.05, decode_noise_scale=0.3, **more)


_TOLD = ("decode_timestep", "decode_noise_scale")

CASES = (
    Case(
        "LTXPipeline",
        lambda: _components(ltx()),
        _call,
        told=SIZE,
        tolerance=1e-5,
    ),
    Case(
        "LTXPipeline",
        lambda: _components(ltx_091()),
        _noisy,
        told=(*SIZE, *_TOLD),
        label="noisy",
        tolerance=1e-5,
    ),
    Case(
        "LTXPipeline",
        lambda: _components(ltx_091()),
        lambda: _noisy(prompt_embeds=embeddings(2, 4, 8), prompt_attention_mask=torch.ones(2, 4)),
        told=(*SIZE, *_TOLD, "prompt_embeds"),
        label="noisy-batch",
        tolerance=1e-5,
    ),
    Case(
        "LTXImageToVideoPipeline",
        lambda: _components(ltx_091()),
        lambda: _noisy(image=image()),
        told=(*SIZE, *_TOLD),
        tolerance=1e-5,
    ),
    Case(
        "LTXConditionPipeline",
        lambda: _components(ltx_091()),
        lambda: _noisy(image=image()),
        told=_TOLD,
        tolerance=1e-5,
    ),
    Case(
        "LTXLatentUpsamplePipeline",
        _upsampler,
        lambda: {"latents": embeddings(1, 8, 3, 2, 3), "height": 64, "width": 96},
        tolerance=1e-5,
    ),
)
