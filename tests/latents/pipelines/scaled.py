"""Pipelines that scale latents by one factor: HunyuanVideo, Mochi, Allegro, EasyAnimate, ..."""

from __future__ import annotations

import diffusers
import torch

from tests.families.causal import hunyuan15, mochi
from tests.families.partition import magvit
from tests.families.windows import allegro, hunyuan_video

from .case import Call, Case, embeddings, model
from .wan import image


def _hunyuan(**config: object) -> dict[str, object]:
    return {
        "transformer": model(
            "HunyuanVideoTransformer3DModel",
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 10,
                "num_layers": 1,
                "num_single_layers": 1,
                "num_refiner_layers": 1,
                "patch_size": 2,
                "text_embed_dim": 8,
                "pooled_projection_dim": 8,
                "rope_axes_dim": (2, 4, 4),
                **config,
            },
        ),
        "vae": hunyuan_video(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _mochi() -> dict[str, object]:
    return {
        "transformer": model(
            "MochiTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=8,
            in_channels=12,
            text_embed_dim=8,
            time_embed_dim=8,
            max_sequence_length=4,
        ),
        "vae": mochi(
            latent_channels=12,
            latents_mean=[0.1 * k - 0.5 for k in range(12)],
            latents_std=[0.5 + 0.1 * k for k in range(12)],
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }


def _allegro() -> dict[str, object]:
    return {
        "transformer": model(
            "AllegroTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            cross_attention_dim=24,
            sample_width=6,
            sample_height=6,
            sample_frames=6,
            caption_channels=8,
        ),
        "vae": allegro(),
        "scheduler": diffusers.DDIMScheduler(),
    }


def _easy() -> dict[str, object]:
    return {
        "transformer": model(
            "EasyAnimateTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            sample_width=6,
            sample_height=4,
            num_layers=1,
            mmdit_layers=1,
            time_embed_dim=8,
            text_embed_dim=8,
            time_position_encoding_type="3d_rope",
        ),
        "vae": magvit(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _hunyuan15() -> dict[str, object]:
    return {
        "transformer": model(
            "HunyuanVideo15Transformer3DModel",
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_refiner_layers=1,
            text_embed_dim=8,
            text_embed_2_dim=8,
            image_embed_dim=8,
            rope_axes_dim=(2, 4, 4),
            target_size=32,
            task_type="t2v",
        ),
        "vae": hunyuan15(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=1.0),
    }


def _kandinsky5(**config: object) -> dict[str, object]:
    return {
        "transformer": model(
            "Kandinsky5Transformer3DModel",
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=8,
            in_text_dim2=8,
            time_dim=8,
            model_dim=16,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
            **config,
        ),
        "vae": hunyuan_video(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _kandinsky6() -> dict[str, object]:
    return {
        "transformer": model(
            "Kandinsky6Transformer3DModel",
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=8,
            in_text_dim2=8,
            time_dim=8,
            model_dim=16,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
            in_audio_dim=4,
            out_audio_dim=4,
        ),
        "vae": hunyuan_video(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "prompt_attention_mask": torch.ones(1, 4, dtype=torch.bool),
        "height": 32,
        "width": 48,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


def _without_mask(**more: object) -> Call:
    return {k: v for k, v in _call(**more).items() if k != "prompt_attention_mask"}


def _kandinsky5_call(**more: object) -> Call:
    return {
        "prompt_embeds_qwen": embeddings(1, 4, 8),
        "prompt_embeds_clip": embeddings(1, 8),
        "prompt_cu_seqlens": torch.tensor([0, 4], dtype=torch.int32),
        "height": 32,
        "width": 48,
        "num_frames": 25,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


CASES = (
    Case(
        "HunyuanVideoPipeline",
        _hunyuan,
        lambda: _call(num_frames=25, pooled_prompt_embeds=embeddings(1, 8)),
    ),
    Case("MochiPipeline", _mochi, lambda: _call(num_frames=13), tolerance=2e-6),
    Case(
        "AllegroPipeline",
        _allegro,
        lambda: _call(num_frames=24, width=32, clean_caption=False),
    ),
    Case("EasyAnimatePipeline", _easy, lambda: _call(num_frames=9)),
    Case(
        "HunyuanVideo15Pipeline",
        _hunyuan15,
        lambda: {
            "prompt_embeds": embeddings(1, 4, 8),
            "prompt_embeds_mask": torch.ones(1, 4),
            "prompt_embeds_2": embeddings(1, 4, 8, seed=8),
            "prompt_embeds_mask_2": torch.ones(1, 4),
            "height": 32,
            "width": 48,
            "num_frames": 9,
            "num_inference_steps": 2,
        },
        tolerance=5e-6,
    ),
    Case(
        "Kandinsky5T2VPipeline",
        _kandinsky5,
        _kandinsky5_call,
    ),
    Case(
        "Kandinsky5I2VPipeline",
        lambda: _kandinsky5(visual_cond=True),
        lambda: _kandinsky5_call(image=image()),
    ),
    Case(
        "Kandinsky6TI2VAPipeline",
        _kandinsky6,
        lambda: _without_mask(
            pooled_prompt_embeds=embeddings(1, 8), num_frames=25, sample_audio=False
        ),
    ),
    Case(
        "HunyuanSkyreelsImageToVideoPipeline",
        lambda: _hunyuan(in_channels=8),
        lambda: _call(num_frames=25, pooled_prompt_embeds=embeddings(1, 8), image=image()),
    ),
)
