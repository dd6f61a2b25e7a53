"""Pipelines over Wan's autoencoder."""

from __future__ import annotations

import diffusers
import PIL.Image
import torch
import transformers

from tests import tiny
from tests.families.lookahead import ltx2

from .case import Call, Case, embeddings, model

SIZE = {"height": 32, "width": 48}


def image(number: int = 0) -> PIL.Image.Image:
    """A picture with something on it."""
    return PIL.Image.linear_gradient("L").resize((48, 32)).rotate(90 * number).convert("RGB")


def transformer(name: str, channels: int = 4, **config: object) -> object:
    """The tiny transformer of one of Wan's many kin."""
    return model(
        name,
        **{
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": channels,
            "out_channels": 4,
            "text_dim": 8,
            "freq_dim": 16,
            "ffn_dim": 16,
            "num_layers": 1,
            "rope_max_seq_len": 32,
            **config,
        },
    )


def _wan(
    name: str = "WanTransformer3DModel", channels: int = 4, **config: object
) -> dict[str, object]:
    return {
        "transformer": transformer(name, channels, **config),
        "vae": tiny.wan21(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "num_frames": 9,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **SIZE,
        **more,
    }


def _without(call: Call, *names: str) -> Call:
    return {name: value for name, value in call.items() if name not in names}


def _from_video() -> Call:
    return _without(_call(video=[image(k) for k in range(9)], strength=0.5), "num_frames")


def unipc() -> object:
    """The scheduler of many of them."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )


def sight() -> dict[str, object]:
    """A tiny image encoder."""
    config = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    size = {"height": 8, "width": 8}
    return {
        "image_encoder": transformers.CLIPVisionModel(config).eval(),
        "image_processor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 8}, crop_size=size
        ),
    }


_MASK = torch.ones(1, 4, dtype=torch.bool)


def _motif() -> dict[str, object]:
    return {
        "transformer": model(
            "MotifVideoTransformer3DModel",
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            text_embed_dim=8,
            rope_axes_dim=(4, 4, 4),
        ),
        "vae": tiny.wan21(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=1.0),
    }


def _sana(
    vae: torch.nn.Module | None = None, channels: int = 4, **config: object
) -> dict[str, object]:
    return {
        "transformer": model(
            "SanaVideoTransformer3DModel",
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=8,
            rope_max_seq_len=64,
            **config,
        ),
        "vae": vae or tiny.wan21(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _sana_call(**more: object) -> Call:
    mask = {"prompt_attention_mask": torch.ones(1, 4)}
    return {**_without(_call(**mask, **more), "num_frames"), "frames": 9}


def _vace() -> dict[str, object]:
    return _wan("WanVACETransformer3DModel", num_layers=1, vace_layers=[0], vace_in_channels=72)


CASES = (
    Case("WanPipeline", _wan, _call),
    Case(
        "WanPipeline",
        lambda: {**_wan(), "vae": tiny.wan21().bfloat16()},
        lambda: _call(num_videos_per_prompt=2),
        label="bfloat16",
    ),
    Case(
        "WanImageToVideoPipeline",
        lambda: _wan(channels=12),
        lambda: _call(image=image()),
    ),
    Case("WanVideoToVideoPipeline", lambda: {**_wan(), "scheduler": unipc()}, _from_video),
    Case(
        "WanVACEPipeline",
        _vace,
        lambda: _call(reference_images=[image(1), image(2)]),
        told=("reference_images",),
    ),
    Case("WanVACEPipeline", _vace, _call, label="no-reference"),
    Case(
        "LucyEditPipeline",
        lambda: _wan(channels=8),
        lambda: _without(_call(video=[image(k) for k in range(9)]), "strength"),
    ),
    Case(
        "ChronoEditPipeline",
        lambda: {
            **_wan("ChronoEditTransformer3DModel", 12, image_dim=8),
            **sight(),
            "scheduler": unipc(),
        },
        lambda: _call(
            image=image(),
            enable_temporal_reasoning=True,
            num_temporal_reasoning_steps=1,
        ),
        told=("enable_temporal_reasoning",),
    ),
    Case(
        "SkyReelsV2Pipeline",
        lambda: {**_wan("SkyReelsV2Transformer3DModel"), "scheduler": unipc()},
        _call,
    ),
    Case(
        "SkyReelsV2DiffusionForcingPipeline",
        lambda: {**_wan("SkyReelsV2Transformer3DModel"), "scheduler": unipc()},
        lambda: _call(prompt=None, num_frames=17, base_num_frames=9, overlap_history=5),
    ),
    Case(
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        lambda: {**_wan("SkyReelsV2Transformer3DModel"), "scheduler": unipc()},
        lambda: _call(image=image(), last_image=image(1)),
        told=("last_image",),
    ),
    Case(
        "AnyFlowPipeline",
        lambda: {
            "transformer": transformer("AnyFlowTransformer3DModel"),
            "vae": tiny.wan21(),
            "scheduler": diffusers.FlowMapEulerDiscreteScheduler(),
        },
        _call,
    ),
    Case(
        "MotifVideoPipeline",
        _motif,
        lambda: _without(_call(prompt_attention_mask=_MASK), "guidance_scale"),
    ),
    Case(
        "SanaVideoPipeline",
        _sana,
        lambda: _sana_call(width=64, use_resolution_binning=False),
        told=("use_resolution_binning",),
    ),
    Case(
        "SanaVideoPipeline",
        lambda: _sana(ltx2(), 8, sample_size=22),
        lambda: {**_sana_call(height=55, width=100), "frames": 1},
        told=("height", "width"),
        label="resized",
        tolerance=1e-5,
    ),
    Case(
        "SanaVideoPipeline",
        lambda: _sana(ltx2(), 8),
        lambda: _sana_call(height=64, width=64, use_resolution_binning=False),
        told=("use_resolution_binning",),
        label="ltx2",
        tolerance=1e-5,
    ),
)
