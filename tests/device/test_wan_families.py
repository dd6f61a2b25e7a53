"""The fused step on a card: Wan 2.2-5B and QwenImage, levels from the head, weights that change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from torch import nn

from streamvae import NonFiniteError, collect, stream_decode
from streamvae._pixels import quantise
from streamvae.codecs import codec_for
from streamvae.fast import fastest
from streamvae.fast._wan import StepCodec, step_codec
from streamvae.fast._wan.released import WAN22
from tests import tiny
from tests.codecs.walk import walk

from . import card

pytestmark = pytest.mark.cuda

if torch.cuda.is_available() and torch.cuda.get_device_capability(card.DEVICE) != (9, 0):
    pytest.skip("these kernels are for compute capability 9.0", allow_module_level=True)


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    """On the card from the beginning: Wan 2.2's would take a CPU half a minute."""
    with torch.random.fork_rng(), card.DEVICE:
        torch.manual_seed(0)
        vae = make().eval().requires_grad_(requires_grad=False)
    for name, parameter in vae.named_parameters():
        if "gamma" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return vae.to(torch.bfloat16)


@pytest.fixture(scope="module")
def wan22() -> nn.Module:
    """Wan 2.2-5B's autoencoder as it is shipped, random weights."""
    return _made(lambda: AutoencoderKLWan(**WAN22))


@pytest.fixture(scope="module")
def qwen() -> nn.Module:
    """QwenImage's autoencoder as it is shipped, random weights."""
    return _made(AutoencoderKLQwenImage)


def _step(vae: nn.Module) -> StepCodec:
    codec = step_codec(codec_for(vae), card.DEVICE)
    assert isinstance(codec, StepCodec), codec
    return codec


@torch.no_grad()
def _errors(vae: nn.Module, z: torch.Tensor, count: int) -> tuple[float, float]:
    """Relative errors against float32: ours, and what `vae.decode` has in bfloat16."""
    frames, own = walk(_step(vae), z, count, "fast"), vae.decode(z).sample
    vae.float()
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            right = vae.decode(z.float()).sample
    finally:
        vae.to(torch.bfloat16)
    assert frames.shape == right.shape
    norm = right.norm()
    return float((frames.float() - right).norm() / norm), float((own.float() - right).norm() / norm)


@pytest.mark.parametrize("size", [(11, 20), (6, 7)])
@pytest.mark.parametrize(("length", "count"), [(1, 1), (4, 1), (5, 2)])
def test_wan22(wan22: nn.Module, size: tuple[int, int], length: int, count: int) -> None:
    """Its frames are as near to float32 as those of vae.decode, in chunks of any size."""
    mine, own = _errors(wan22, card.latents(wan22, length, *size), count)
    assert mine <= 1.02 * own


@pytest.mark.parametrize("size", [(32, 32), (13, 9)])
@pytest.mark.parametrize("length", [1, 4])
def test_qwen_image(qwen: nn.Module, size: tuple[int, int], length: int) -> None:
    """Its pictures are as near to float32 as those of vae.decode; several latents too."""
    mine, own = _errors(qwen, card.latents(qwen, length, *size), 1)
    assert mine <= 1.02 * own


def test_levels(real: AutoencoderKLWan, wan22: nn.Module) -> None:
    """uint8 frames are those of the pixels, rendered, bit for bit, clamped ones too."""
    for vae, size in ((real, (11, 20)), (wan22, (5, 6))):
        z = card.latents(vae, 4, *size)
        weight = vae.decoder.conv_out.weight
        with torch.no_grad():
            weight.mul_(8)
            levels = collect(z, vae, mode="fast")
            pixels = collect(z, vae, mode="fast", output="device")
            weight.div_(8)
        assert isinstance(pixels, torch.Tensor)
        assert torch.equal(torch.as_tensor(levels), quantise(pixels).cpu())
        assert bool((pixels == 1).any())


def test_no_numbers(real: AutoencoderKLWan) -> None:
    """One NaN among the weights of the head ends a stream of levels as it does any other."""
    bias = real.decoder.conv_out.bias
    before = bias.clone()
    with torch.no_grad():
        bias[2] = float("nan")
    try:
        with pytest.raises(NonFiniteError):
            collect(card.latents(real, 2, 9, 17), real, mode="fast")
    finally:
        with torch.no_grad():
            bias.copy_(before)


def test_weights_written_through_data(real: AutoencoderKLWan) -> None:
    """Weights written where torch counts no writes are read again, and written back."""
    z = card.latents(real, 3, 9, 17)
    weight = real.decoder.up_blocks[1].resnets[0].conv2.weight
    before = walk(_step(real), z, 1, "fast")
    weight.data.mul_(0.5)
    changed = walk(_step(real), z, 1, "fast")
    weight.data.mul_(2)
    assert not torch.equal(changed, before)
    assert torch.equal(walk(_step(real), z, 1, "fast"), before)


async def test_info(real: AutoencoderKLWan) -> None:
    """The info names the step, and on a card why a slower one was taken."""
    z = card.latents(real, 2, 9, 17)
    async with stream_decode(z, real, mode="fast") as stream:
        assert stream.info.step == "fused kernels"
        assert stream.info.notes == ()
        assert "float32" in stream.info.exactness
        await stream.collect()
    small = tiny.wan21().to(card.DEVICE)
    stepped = fastest(codec_for(small), card.DEVICE)
    assert (
        "no fused kernels: weights are float32, not bfloat16" in stepped.step() + stepped.notes[0]
    )


def test_a_new_stream_does_not_wait(real: AutoencoderKLWan) -> None:
    """Whether weights have changed is known before the first chunk is done."""
    z = card.latents(real, 1, 136, 240)
    walk(_step(real), z, 1, "fast")
    decoder = _step(real).decoder()
    torch.cuda.synchronize()
    with torch.no_grad():
        decoder.decode(z)
    done = torch.cuda.current_stream().record_event().query()
    torch.cuda.synchronize()
    decoder.close()
    assert not done
