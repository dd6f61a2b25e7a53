"""What tests of the fused Wan step have in common: it is over its reference kernels, on a CPU."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from streamvae.codecs import codec_for
from streamvae.fast._wan import StepCodec, step_codec
from streamvae.fast._wan.interface import Convolution
from streamvae.fast._wan.options import Kind
from streamvae.fast._wan.reference import ReferenceKernels
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


class StrictKernels(ReferenceKernels):
    """The reference, which reads before it writes, as a card sees it: both at the same time."""

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        """A convolution that refuses to write frames which it reads."""
        right = super().convolution(kind, weight, bias)

        def strict(source, *, to=None, activation=None, residual=None):
            for written in (to, activation and activation.to):
                if written is not None and written.memory is source.memory:
                    both = set(source.slots) & set(written.slots)
                    assert not both, f"frames {both} are read and written at the same time"
                if residual is not None and written is not None and written is not to:
                    assert written.memory.data_ptr() != residual.data_ptr()
            right(source, to=to, activation=activation, residual=residual)

        return strict
