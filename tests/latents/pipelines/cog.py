"""CogVideoX and its kin: frames come before channels, and 1.5 fills up patches of time."""

from __future__ import annotations

import diffusers

from tests.families.partition import cogvideox

from .case import Call, Case, embeddings, model
from .wan import image


def _components(channels: int = 4, **config: object) -> dict[str, object]:
    return {
        "transformer": model(
            "CogVideoXTransformer3DModel",
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "in_channels": channels,
                "out_channels": 4,
                "time_embed_dim": 8,
                "text_embed_dim": 8,
                "num_layers": 1,
                "sample_width": 6,
                "sample_height": 4,
                "sample_frames": 9,
                "max_text_seq_length": 4,
                **config,
            },
        ),
        "vae": cogvideox(),
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
    }


def _patched(channels: int = 4) -> dict[str, object]:
    return _components(
        channels, patch_size_t=2, use_rotary_positional_embeddings=True, patch_bias=False
    )


def _call(**more: object) -> Call:
    return {
        "prompt_embeds": embeddings(1, 4, 8),
        "height": 32,
        "width": 48,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "max_sequence_length": 4,
        **more,
    }


CASES = (
    Case("CogVideoXPipeline", _components, lambda: _call(num_frames=9)),
    Case(
        "CogVideoXPipeline",
        _patched,
        lambda: _call(num_frames=17),
        told=("num_frames",),
        label="padded",
    ),
    Case(
        "CogVideoXPipeline",
        _patched,
        lambda: _call(num_frames=13),
        told=("num_frames",),
        label="not-padded",
    ),
    Case(
        "CogVideoXPipeline",
        _patched,
        lambda: _call(num_frames=None),
        told=("num_frames",),
        label="unsaid",
    ),
    Case(
        "CogVideoXImageToVideoPipeline",
        lambda: _patched(8),
        lambda: _call(num_frames=9, image=image()),
        told=("num_frames",),
    ),
    Case(
        "CogVideoXVideoToVideoPipeline",
        _components,
        lambda: _call(video=[image(k) for k in range(9)]),
    ),
    Case(
        "CogVideoXFunControlPipeline",
        lambda: _components(8),
        lambda: _call(control_video=[image(k) for k in range(9)]),
    ),
)
