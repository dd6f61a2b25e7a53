"""LTX-2: latents that are denormalised already, beside sound."""

from __future__ import annotations

import diffusers
import torch

from tests.families.lookahead import ltx2
from tests.releases import released

from .case import Call, Case, embeddings, model
from .wan import image

_ROPE = {"rope_double_precision": False, "rope_type": "split"}


def _part(module: str, name: str) -> type:
    return released(name, module=f"diffusers.pipelines.ltx2.{module}")


def _components() -> dict[str, object]:
    return {
        "transformer": model(
            "LTX2VideoTransformer3DModel",
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=1,
            caption_channels=8,
            **_ROPE,
        ),
        "vae": ltx2(),
        "audio_vae": model(
            "AutoencoderKLLTX2Audio",
            base_channels=4,
            ch_mult=(1, 1, 1),
            num_res_blocks=1,
            resolution=32,
            latent_channels=2,
            mel_bins=8,
        ),
        "vocoder": model(
            _part("vocoder", "LTX2Vocoder"),
            in_channels=16,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        ),
        "connectors": model(
            _part("connectors", "LTX2TextConnectors"),
            caption_channels=8,
            text_proj_in_factor=2,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=4,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=4,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            connector_rope_base_seq_len=32,
            **_ROPE,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _upsampler() -> dict[str, object]:
    upsampler = model(
        _part("latent_upsampler", "LTX2LatentUpsamplerModel"),
        in_channels=8,
        mid_channels=32,
        num_blocks_per_stage=1,
    )
    return {"vae": ltx2(), "latent_upsampler": upsampler}


def _call(**more: object) -> Call:
    off = dict.fromkeys(("stg_scale", "guidance_rescale", "audio_stg_scale"), 0.0)
    on = ("guidance_scale", "modality_scale", "audio_guidance_scale", "audio_modality_scale")
    return {
        "prompt_embeds": embeddings(1, 4, 16),
        "prompt_attention_mask": torch.ones(1, 4),
        "height": 64,
        "width": 96,
        "num_frames": 17,
        "num_inference_steps": 2,
        "audio_guidance_rescale": 0.0,
        **off,
        **dict.fromkeys(on, 1.0),
        **more,
    }


CASES = (
    Case("LTX2Pipeline", _components, _call, tolerance=1e-5),
    Case(
        "LTX2Pipeline",
        lambda: {**_components(), "vae": ltx2(timestep_conditioning=True)},
        lambda: _call(decode_timestep=0.05, decode_noise_scale=0.3),
        told=("decode_timestep", "decode_noise_scale"),
        label="noisy",
        tolerance=1e-5,
    ),
    Case("LTX2ImageToVideoPipeline", _components, lambda: _call(image=image()), tolerance=1e-5),
    Case("LTX2ConditionPipeline", _components, _call, tolerance=1e-5),
    Case(
        "LTX2LatentUpsamplePipeline",
        _upsampler,
        lambda: {
            "latents": embeddings(1, 8, 3, 2, 3),
            "height": 64,
            "width": 96,
            "num_frames": 17,
        },
        tolerance=1e-5,
    ),
)
