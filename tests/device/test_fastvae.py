"""fastvae's kernels as the step of ``mode="fast"``: only where the package is installed."""

from importlib.util import find_spec

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import stream_decode

from . import card

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(find_spec("fastvae") is None, reason="fastvae is not installed"),
]


async def test_as_far_from_float32_as_vae_decode(real: AutoencoderKLWan) -> None:
    """In bfloat16 its error against float32 is at most 2 % above that of diffusers."""
    z = card.latents(real, 5, 30, 52)
    stream = stream_decode(z, real, mode="fast", output="float32")
    frames = torch.as_tensor(await stream.collect())
    assert stream.info is not None
    assert stream.info.step.startswith("fastvae")
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        own = real.decode(z).sample.float().movedim(1, -1).cpu()
        real.float()
        try:
            true = real.decode(z.float()).sample.movedim(1, -1).cpu()
        finally:
            real.to(torch.bfloat16)
    error, allowed = (float((x - true).square().mean().sqrt()) for x in (frames, own))
    assert error <= 1.02 * allowed
