"""Pipelines that decode frames as pictures: AnimateDiff, Stable Video Diffusion, Latte, ..."""

from __future__ import annotations

import diffusers
import transformers

from tests import tiny
from tests.families.by_frames import svd

from .case import Call, Case, embeddings, model
from .wan import image


def _kl() -> diffusers.AutoencoderKL:
    return tiny.kl(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _animate() -> dict[str, object]:
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return {
        "unet": model(
            "UNet2DConditionModel",
            **blocks,
            sample_size=4,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
        ),
        "motion_adapter": model(
            "MotionAdapter",
            block_out_channels=(8, 8),
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        ),
        "vae": _kl(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }


def _svd() -> dict[str, object]:
    config = transformers.CLIPVisionConfig(
        hidden_size=8,
        projection_dim=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=112,
    )
    return {
        "unet": model(
            "UNetSpatioTemporalConditionModel",
            block_out_channels=(32, 32),
            layers_per_block=1,
            sample_size=4,
            in_channels=8,
            out_channels=4,
            down_block_types=(
                "CrossAttnDownBlockSpatioTemporal",
                "DownBlockSpatioTemporal",
            ),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=8,
            num_attention_heads=2,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
        ),
        "image_encoder": transformers.CLIPVisionModelWithProjection(config).eval(),
        "feature_extractor": transformers.CLIPImageProcessor(),
        "vae": svd(),
        "scheduler": diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction", use_karras_sigmas=True
        ),
    }


def _animate_call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "height": 32,
        "width": 48,
        "num_frames": 5,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


def _svd_call(**more: object) -> Call:
    return {
        "image": image(),
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "num_inference_steps": 2,
        "max_guidance_scale": 1.0,
        **more,
    }


def _animate_sdxl() -> dict[str, object]:
    return {
        **_animate(),
        "unet": model(
            "UNet2DConditionModel",
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=4,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=56,
            cross_attention_dim=8,
        ),
    }


def _sdxl_call() -> Call:
    return _animate_call(pooled_prompt_embeds=embeddings(1, 8))


def _latte() -> dict[str, object]:
    return {
        "transformer": model(
            "LatteTransformer3DModel",
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=8,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            video_length=5,
        ),
        "vae": svd(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }


def _modelscope() -> dict[str, object]:
    return {
        "unet": model(
            "UNet3DConditionModel",
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=4,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        "vae": _kl(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }


CASES = (
    Case("AnimateDiffPipeline", _animate, _animate_call, label="at-once"),
    Case(
        "AnimateDiffPipeline",
        _animate,
        lambda: _animate_call(decode_chunk_size=2),
        told=("decode_chunk_size",),
    ),
    Case("StableVideoDiffusionPipeline", _svd, _svd_call, label="at-once"),
    Case(
        "StableVideoDiffusionPipeline",
        _svd,
        lambda: _svd_call(decode_chunk_size=2),
        told=("decode_chunk_size",),
    ),
    Case("AnimateDiffSDXLPipeline", _animate_sdxl, _sdxl_call),
    Case(
        "LattePipeline",
        _latte,
        lambda: {
            "prompt_embeds": embeddings(1, 4, 8),
            "mask_feature": False,
            "height": 16,
            "width": 16,
            "video_length": 5,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "clean_caption": False,
            "decode_chunk_size": 3,
        },
        told=("decode_chunk_size",),
    ),
    Case("TextToVideoSDPipeline", _modelscope, _animate_call),
)
