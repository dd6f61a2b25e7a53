"""Every video autoencoder of diffusers in its default size, and latents of a native 480p-like clip.

Weights are random (they time as trained ones do), every parameter drawn, those too that start as
zeros or ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

Config = Mapping[str, object]
Reference = Callable[[nn.Module, torch.Tensor, Config], torch.Tensor]


def decode(vae: nn.Module, z: torch.Tensor, call: Config) -> torch.Tensor:
    """``vae.decode``, (B, C, T, H, W)."""
    frames: torch.Tensor = vae.decode(z, return_dict=False, **call)[0]
    return frames


def by_pipeline_chunks(vae: nn.Module, z: torch.Tensor, call: Config) -> torch.Tensor:
    """As StableVideoDiffusionPipeline decodes one clip, (frames, C, h, w)."""
    size = int(str(call["decode_chunk_size"]))
    parts = [
        vae.decode(z[i : i + size], num_frames=min(size, z.shape[0] - i)).sample
        for i in range(0, z.shape[0], size)
    ]
    return torch.cat(parts).permute(1, 0, 2, 3)[None]


def bare(vae: nn.Module, z: torch.Tensor, call: Config) -> torch.Tensor:
    """``vae.decode`` of a class that gives a bare tensor."""
    frames: torch.Tensor = vae.decode(z, **call)
    return frames


def frames_first(vae: nn.Module, z: torch.Tensor, call: Config) -> torch.Tensor:
    """``vae.decode`` of a class that gives (B, T, C, H, W)."""
    return decode(vae, z, call).movedim(1, 2)


@dataclass(frozen=True)
class Entry:
    """One autoencoder.

    Attributes:
        name: In the table.
        cls: Its class in diffusers.
        latents: Shape of the clip's latents, batch 1.
        config: What differs from the class's defaults.
        prepare: Options set on it.
        call: Keyword arguments of its decode.
        reference: What diffusers gives.
    """

    name: str
    cls: str
    latents: tuple[int, ...]
    config: Config = field(default_factory=dict)
    prepare: Callable[[nn.Module], object] = lambda _: None
    call: Callable[[torch.device], Config] = lambda _: {}
    reference: Reference = decode


def _tiling(vae: nn.Module) -> None:
    vae.enable_tiling()


def _framewise(vae: nn.Module) -> None:
    vae.use_framewise_decoding = True


def _dense_attention(vae: nn.Module) -> None:
    from tests.families.windows import DenseNeighborhood

    vae.set_attn_processor(DenseNeighborhood())


_WAN22: Config = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
#: As released; the class's defaults are a toy's.
_SVD: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
}
#: As converted from the releases; the class's defaults are causal.
_LTX2: Config = {"decoder_causal": False}

ENTRIES = (
    Entry("Wan 2.1", "AutoencoderKLWan", (1, 16, 13, 60, 104)),
    Entry("Wan 2.1, tiled", "AutoencoderKLWan", (1, 16, 13, 60, 104), prepare=_tiling),
    Entry("Wan 2.2-5B", "AutoencoderKLWan", (1, 48, 13, 30, 52), config=_WAN22),
    Entry("QwenImage", "AutoencoderKLQwenImage", (1, 16, 5, 60, 104)),
    Entry("HunyuanVideo", "AutoencoderKLHunyuanVideo", (1, 16, 14, 60, 104)),
    Entry("HunyuanVideo 1.5", "AutoencoderKLHunyuanVideo15", (1, 32, 9, 30, 52)),
    Entry("LTX", "AutoencoderKLLTXVideo", (1, 128, 21, 15, 26)),
    Entry("LTX, framewise", "AutoencoderKLLTXVideo", (1, 128, 21, 15, 26), prepare=_framewise),
    Entry("LTX-2", "AutoencoderKLLTX2Video", (1, 128, 16, 15, 26), config=_LTX2),
    # The smallest clip it takes: what diffusers' own attention (flex, not compiled) holds at 480p
    # fits on no card, and NATTEN's kernel comes from a hub.
    Entry(
        "LTX-2.5 diffusion",
        "LTX2VideoDiffusionDecoderModel",
        (1, 128, 3, 7, 7),
        prepare=_dense_attention,
    ),
    Entry("CogVideoX", "AutoencoderKLCogVideoX", (1, 16, 13, 60, 90)),
    Entry("Mochi", "AutoencoderKLMochi", (1, 12, 14, 60, 106)),
    Entry("Cosmos", "AutoencoderKLCosmos", (1, 16, 10, 60, 104)),
    # Diffusers' tiles leave black borders at most other sizes.
    Entry(
        "Allegro",
        "AutoencoderKLAllegro",
        (1, 4, 14, 65, 100),
        prepare=_tiling,
        reference=frames_first,
    ),
    Entry("Magvit", "AutoencoderKLMagvit", (1, 16, 13, 48, 84)),
    Entry(
        "SVD",
        "AutoencoderKLTemporalDecoder",
        (14, 4, 72, 128),
        config=_SVD,
        call=lambda _: {"decode_chunk_size": 7, "num_frames": 14},
        reference=by_pipeline_chunks,
    ),
    Entry("VidTok", "AutoencoderVidTok", (1, 4, 5, 60, 104), reference=bare),
    Entry("KVAE-video", "AutoencoderKLKVAEVideo", (1, 16, 13, 60, 104)),
    Entry("Kandinsky 6 SR", "Kandinsky6SRVAE", (1, 64, 9, 30, 52)),
    Entry("MiniMax-H3", "AutoencoderKLMiniMaxH3", (1, 24, 12, 30, 52)),
)


def build(entry: Entry, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Make the autoencoder on ``device`` with seeded random weights."""
    import diffusers

    torch.manual_seed(0)
    with device:
        vae: nn.Module = getattr(diffusers, entry.cls)(**entry.config)
    vae = vae.to(device, dtype).eval().requires_grad_(requires_grad=False)
    for parameter in vae.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    entry.prepare(vae)
    return vae
