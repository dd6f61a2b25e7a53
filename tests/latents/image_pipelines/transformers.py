"""Pipelines that denoise pictures with a transformer: SD3, Sana, PixArt, and their like."""

from __future__ import annotations

import diffusers
import torch

from tests import tiny
from tests.families import images
from tests.latents.pipelines.case import Call, Case, embeddings, model

from .unets import picture

#: Not square, so that height and width cannot be mistaken for each other.
HEIGHT, WIDTH = 16, 32


def _vae() -> torch.nn.Module:
    return tiny.kl(scaling_factor=0.36, shift_factor=0.11, force_upcast=True)


def _parts(transformer: torch.nn.Module, vae: torch.nn.Module | None = None) -> dict[str, object]:
    return {
        "transformer": transformer,
        "vae": vae or _vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        **more,
    }


def _masked(**more: object) -> Call:
    return _call(
        prompt_attention_mask=torch.ones(1, 4, dtype=torch.long),
        negative_prompt=None,
        **more,
    )


def _sd3() -> dict[str, object]:
    return _parts(
        model(
            "SD3Transformer2DModel",
            sample_size=12,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pooled_projection_dim=8,
            pos_embed_max_size=16,
        )
    )


def _sd3_call(**more: object) -> Call:
    return _call(pooled_prompt_embeds=embeddings(1, 8), **more)


def pixart(sample_size: int = 8) -> dict[str, object]:
    """A PixArt pipeline of ``sample_size`` latents along a side."""
    transformer = model(
        "PixArtTransformer2DModel",
        sample_size=sample_size,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=8,
        caption_channels=8,
        use_additional_conditions=False,
    )
    return _parts(transformer) | {"scheduler": diffusers.DPMSolverMultistepScheduler()}


def _pixart_call(**more: object) -> Call:
    return _masked(
        **{"use_resolution_binning": False, "clean_caption": False, **more},
    )


def _sana() -> dict[str, object]:
    transformer = model(
        "SanaTransformer2DModel",
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
    )
    return _parts(transformer, images.deep())


def _sana_call(**more: object) -> Call:
    return _masked(
        height=32,
        width=64,
        use_resolution_binning=False,
        complex_human_instruction=None,
        **more,
    )


def _lumina2() -> dict[str, object]:
    return _parts(
        model(
            "Lumina2Transformer2DModel",
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 32, 32),
            cap_feat_dim=8,
        )
    )


def _aura() -> dict[str, object]:
    return _parts(
        model(
            "AuraFlowTransformer2DModel",
            sample_size=12,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pos_embed_max_size=256,
        )
    )


def _z_image() -> dict[str, object]:
    return _parts(
        model(
            "ZImageTransformer2DModel",
            in_channels=4,
            dim=16,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[4, 2, 2],
            axes_lens=[64, 32, 32],
        )
    )


def _hunyuan_dit() -> dict[str, object]:
    transformer = model(
        "HunyuanDiT2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        hidden_size=16,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=8,
        text_len=4,
        text_len_t5=4,
    )
    # The pipeline takes a scale of 8 for granted.
    blocks: dict[str, object] = {
        "block_out_channels": (8,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return _parts(transformer, tiny.kl(scaling_factor=0.13, **blocks)) | {
        "scheduler": diffusers.DDPMScheduler()
    }


def _hunyuan_dit_call() -> Call:
    mask = torch.ones(1, 4, dtype=torch.long)
    return _call(
        height=32,
        width=64,
        prompt_embeds_2=embeddings(1, 4, 8, seed=8),
        prompt_attention_mask=mask,
        prompt_attention_mask_2=mask,
        use_resolution_binning=False,
    )


def _cog_view4() -> dict[str, object]:
    return _parts(
        model(
            "CogView4Transformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(8, 8),
        )
    )


def _ernie() -> dict[str, object]:
    return _parts(
        model(
            "ErnieImageTransformer2DModel",
            hidden_size=16,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=16,
            in_channels=16,
            out_channels=16,
            text_in_dim=8,
            rope_axes_dim=(4, 2, 2),
        ),
        images.flux2(),
    )


CASES = (
    Case("StableDiffusion3Pipeline", _sd3, _sd3_call),
    Case(
        "StableDiffusion3Img2ImgPipeline",
        _sd3,
        lambda: _sd3_call(image=picture(), strength=1.0, height=16, width=16),
    ),
    Case("PixArtAlphaPipeline", pixart, _pixart_call, ("use_resolution_binning",)),
    Case("PixArtSigmaPipeline", pixart, _pixart_call, ("use_resolution_binning",)),
    Case(
        "PixArtSigmaPipeline",
        lambda: pixart(32),
        lambda: _pixart_call(use_resolution_binning=True, height=100, width=150),
        ("height", "width"),
        label="resized",
    ),
    Case("SanaPipeline", _sana, _sana_call, ("use_resolution_binning",)),
    Case("Lumina2Pipeline", _lumina2, _masked),
    Case("AuraFlowPipeline", _aura, _masked),
    Case("HunyuanDiTPipeline", _hunyuan_dit, _hunyuan_dit_call),
    Case(
        "ZImagePipeline",
        _z_image,
        lambda: _call(prompt_embeds=[embeddings(4, 8)], guidance_scale=0.0),
    ),
    Case("CogView4Pipeline", _cog_view4, _call),
    Case("ErnieImagePipeline", _ernie, lambda: _call(prompt_embeds=[embeddings(4, 8)])),
)
