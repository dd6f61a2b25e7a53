"""What tests of the fused Wan step have in common: it is over its reference kernels, on a CPU."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from streamvae.codecs import codec_for
from streamvae.fast._wan import StepCodec, step_codec
from tests import tiny

CPU = torch.device("cpu")
#: The issue allows 1e-4; float32 sums in another order differ by less.
TOLERANCE = 2e-5


def over(vae: nn.Module) -> StepCodec:
    """The codec over the reference kernels."""
    codec = step_codec(codec_for(vae), CPU, reference=True)
    assert isinstance(codec, StepCodec), codec
    return codec


def wan(**config: object) -> AutoencoderKLWan:
    """Wan 2.1 in other forms."""
    options = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.randomised(AutoencoderKLWan(**(options | {"latents_std": None} | config)))


def close(given: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether frames are equal within rounding."""
    assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
    return float((given - expected).abs().max()) <= TOLERANCE
