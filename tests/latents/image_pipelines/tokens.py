"""Pipelines that keep their latents as tokens: Flux, Flux2, Chroma, QwenImage, and their like."""

from __future__ import annotations

import diffusers
import torch

from tests import tiny
from tests.families import images
from tests.latents.pipelines.case import Call, Case, embeddings, model

from .unets import picture

#: Not square, so that height and width cannot be mistaken for each other.
HEIGHT, WIDTH = 16, 24

_JOINT: dict[str, object] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "in_channels": 16,
}


def call(**more: object) -> Call:
    """A call with embeddings instead of a prompt."""
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


def flux(**config: object) -> dict[str, object]:
    """A Flux pipeline; ``config`` is its transformer's."""
    return {
        "transformer": model(
            "FluxTransformer2DModel",
            **(_JOINT | {"pooled_projection_dim": 8, "axes_dims_rope": (4, 2, 2), **config}),
        ),
        "vae": tiny.kl(scaling_factor=0.3611, shift_factor=0.1159),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def flux_call(**more: object) -> Call:
    """A call of `flux`."""
    return call(pooled_prompt_embeds=embeddings(1, 8), **more)


def _chroma() -> dict[str, object]:
    config = {
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 8,
        "approximator_layers": 1,
        "axes_dims_rope": (4, 2, 2),
    }
    return flux() | {"transformer": model("ChromaTransformer2DModel", **(_JOINT | config))}


def _chroma_call() -> Call:
    # The pipeline does not repeat a mask for several pictures of one prompt.
    return call(prompt_attention_mask=torch.ones(1, 4, dtype=torch.bool))


def flux2() -> dict[str, object]:
    """A Flux2 pipeline."""
    config = {
        "timestep_guidance_channels": 8,
        "axes_dims_rope": (2, 2, 2, 2),
        "mlp_ratio": 1.0,
    }
    return {
        "transformer": model("Flux2Transformer2DModel", **(_JOINT | config)),
        "vae": images.flux2(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def qwen() -> dict[str, object]:
    """A QwenImage pipeline."""
    config = {"out_channels": 4, "axes_dims_rope": (4, 2, 2)}
    joint = {name: value for name, value in _JOINT.items() if name != "num_single_layers"}
    return {
        "transformer": model("QwenImageTransformer2DModel", **(joint | config)),
        "vae": tiny.qwen_image(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def qwen_call(**more: object) -> Call:
    """A call of `qwen`, whose autoencoder gives 8 pixels a latent."""
    made = call(
        height=4 * HEIGHT,
        width=4 * WIDTH,
        prompt_embeds_mask=torch.ones(1, 4, dtype=torch.bool),
        true_cfg_scale=1.0,
        **more,
    )
    return {name: value for name, value in made.items() if name != "guidance_scale"}


def _ovis() -> dict[str, object]:
    config = {"out_channels": 16, "axes_dims_rope": (4, 2, 2)}
    return flux() | {"transformer": model("OvisImageTransformer2DModel", **(_JOINT | config))}


def _bria() -> dict[str, object]:
    config = {"axes_dims_rope": [4, 2, 2]}
    return flux() | {"transformer": model("BriaTransformer2DModel", **(_JOINT | config))}


SIZE = ("height", "width")

CASES = (
    Case("FluxPipeline", flux, flux_call, SIZE),
    Case(
        "FluxImg2ImgPipeline",
        flux,
        lambda: flux_call(image=picture(), strength=1.0, height=16, width=16),
        SIZE,
    ),
    Case("FluxKontextPipeline", flux, lambda: flux_call(max_area=400), (*SIZE, "max_area")),
    Case("ChromaPipeline", _chroma, _chroma_call, SIZE),
    Case("Flux2Pipeline", flux2, call, SIZE),
    Case("Flux2KleinPipeline", flux2, call),
    Case("QwenImagePipeline", qwen, qwen_call, SIZE),
    Case("OvisImagePipeline", _ovis, call, SIZE),
    Case("BriaPipeline", _bria, call, SIZE),
)
