"""Cosmos pipelines, over an autoencoder of their own and over Wan's."""

from __future__ import annotations

import importlib.util

import diffusers
import numpy as np
import torch

from tests import tiny
from tests.families.causal import cosmos

from .case import Call, Case, embeddings, model
from .wan import image, unipc

#: Latents that the tiny autoencoder has statistics for.
_FRAMES = 4


#: The guardrail's class where its package is installed, else one for each file of pipelines.
_FILES = [
    f"diffusers.pipelines.cosmos.pipeline_cosmos{which}" for which in ("_text2world", "2_5_predict")
]
_CHECKERS = dict.fromkeys(
    importlib.import_module(file).CosmosSafetyChecker
    for file in _FILES
    if importlib.util.find_spec(file)  # the oldest diffusers has no 2.5
)


class Guardrail(*_CHECKERS):
    """Stands in for the guardrail, which is a package of its own: objects to nothing."""

    def __init__(self) -> None:
        """Take nothing: the original loads models."""

    def to(self, device: object) -> None:
        """Be everywhere."""

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        """Give the frames back."""
        assert frames.dtype == np.uint8
        return frames


def _components(vae: torch.nn.Module, channels: int = 4, **config: object) -> dict[str, object]:
    return {
        "transformer": model(
            "CosmosTransformer3DModel",
            **{
                "in_channels": channels,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "mlp_ratio": 2,
                "text_embed_dim": 8,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "concat_padding_mask": False,
                "extra_pos_embed_type": None,
                **config,
            },
        ),
        "vae": vae,
        "scheduler": diffusers.EDMEulerScheduler(
            sigma_min=0.002,
            sigma_max=80,
            sigma_data=0.5,
            sigma_schedule="karras",
            num_train_timesteps=1000,
            prediction_type="epsilon",
            rho=7.0,
            final_sigmas_type="sigma_min",
        ),
        "safety_checker": Guardrail(),
    }


def _by_index() -> torch.nn.Module:
    statistics = {
        "latents_mean": [0.05 * k - 0.4 for k in range(4 * _FRAMES)],
        "latents_std": [0.5 + 0.1 * k for k in range(4 * _FRAMES)],
    }
    return cosmos(**statistics)


def _second(channels: int) -> dict[str, object]:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    flow.register_to_config(sigma_data=0.5, sigma_max=80.0, sigma_min=0.002)
    return {**_components(tiny.wan21(), channels), "scheduler": flow}


def _call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "height": 32,
        "width": 48,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


CASES = (
    Case(
        "CosmosTextToWorldPipeline",
        lambda: _components(_by_index()),
        lambda: _call(num_frames=17),
        tolerance=2e-5,
        taken_off=("safety_checker",),
    ),
    Case(
        "CosmosVideoToWorldPipeline",
        lambda: _components(_by_index(), 5),
        lambda: _call(num_frames=17, image=image()),
        tolerance=2e-5,
        taken_off=("safety_checker",),
    ),
    Case(
        "Cosmos2VideoToWorldPipeline",
        lambda: _second(5),
        lambda: _call(num_frames=9, image=image()),
        taken_off=("safety_checker",),
    ),
    Case("Cosmos2TextToImagePipeline", lambda: _second(4), _call, taken_off=("safety_checker",)),
    Case(
        "Cosmos2_5_PredictBasePipeline",
        lambda: {**_components(tiny.wan21(), 5), "scheduler": unipc()},
        lambda: _call(num_frames=9),
        taken_off=("safety_checker",),
    ),
)
