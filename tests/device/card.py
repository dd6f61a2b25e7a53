"""What the device tests share: autoencoders on the card, latents, what is expected of them."""

import asyncio

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from streamvae._chunks import Array
from streamvae._pixels import Output, render
from streamvae.backends._streamed import StreamedBackend
from tests import tiny

DEVICE = torch.device("cuda", 0)
#: Clock cycles that keep a stream of today's cards busy for some 20 ms.
CYCLES = 40_000_000


def wan(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> AutoencoderKLWan:
    """Wan 2.1 with few channels."""
    return tiny.wan21(seed).to(DEVICE, dtype)


def wan_real() -> AutoencoderKLWan:
    """Wan 2.1 as it is shipped, its weights random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.randomised(AutoencoderKLWan()).to(DEVICE, torch.bfloat16)


def latents(
    vae: torch.nn.Module, steps: int, height: int = 8, width: int = 12, seed: int = 0
) -> torch.Tensor:
    """Latents (1, C, steps, height, width) for ``vae``, finished on its device."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, vae.config.z_dim, steps, height, width)
    made = torch.randn(shape, generator=generator).to(vae.device, vae.dtype)
    torch.cuda.synchronize()
    return made


@torch.no_grad()
def whole(vae: torch.nn.Module, z: torch.Tensor, output: Output = "uint8") -> Array:
    """What ``vae.decode`` makes of ``z``, as consumers see it: (B, T, H, W, C)."""
    pixels: Array = render(vae.decode(z).sample, "video", output).cpu().numpy()
    return pixels


def equal(left: object, right: object) -> bool:
    """Whether two arrays hold the same bits."""
    assert isinstance(left, np.ndarray)
    assert isinstance(right, np.ndarray)
    return left.dtype == right.dtype and np.array_equal(left, right)


async def idle(backend: StreamedBackend) -> None:
    """Return when no launch and no copy of ``backend`` is unfinished."""
    while backend._turns.inside or backend._slots.inside:  # noqa: ASYNC110  # a device sets no event
        await asyncio.sleep(0)


async def launched_is_done(backend: StreamedBackend) -> None:
    """Return when no launch of ``backend`` is unfinished; copies may wait for their consumer."""
    while backend._turns.inside:  # noqa: ASYNC110
        await asyncio.sleep(0)
