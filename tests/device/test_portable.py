"""Decoders channels last on a card: every element of each operation, frames against float32."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import nn

from streamvae.codecs import codec_for
from streamvae.fast import fastest
from streamvae.fast._portable import (
    PortablePictures,
    PortableWan,
    portable_pictures,
    portable_wan,
)
from streamvae.fast._portable.interface import PointwiseOps, Sums
from streamvae.fast._portable.selftest import GROUP_NORM, RMS_NORM, Variant, check
from streamvae.fast._portable.torch_ops import TorchOps
from streamvae.fast._wan.options import Kind
from tests import tiny
from tests.codecs.walk import begun, walk

from . import card

pytestmark = pytest.mark.cuda

HAS_TRITON = find_spec("triton") is not None


@pytest.fixture
def ops() -> PointwiseOps:
    """Triton's operations."""
    if not HAS_TRITON:
        pytest.skip("triton is not installed")
    from streamvae.fast._portable.triton_ops import TritonOps

    return TritonOps()


@pytest.mark.parametrize(
    ("variants", "channels", "dtype"),
    [
        (RMS_NORM, 96, torch.bfloat16),
        (RMS_NORM, 384, torch.float16),
        (RMS_NORM, 20, torch.float32),
        (GROUP_NORM, 128, torch.bfloat16),
        (GROUP_NORM, 512, torch.float16),
    ],
)
def test_every_element(
    ops: PointwiseOps, variants: tuple[Variant, ...], channels: int, dtype: torch.dtype
) -> None:
    """Each kernel is right in every element, with tiles that are not full."""
    check(ops, card.DEVICE, dtype, channels, variants)


@pytest.mark.parametrize("kind", [Kind.PLAIN, Kind.UPSAMPLE])
def test_full_size(ops: PointwiseOps, kind: Kind) -> None:
    """At full size every element is right, and three runs are equal bit for bit."""
    frames, height, width, channels = 4, 720, 1280, 96
    generator = torch.Generator(card.DEVICE).manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=generator, device=card.DEVICE, dtype=torch.bfloat16)
        return made * 2

    upsampled = kind is Kind.UPSAMPLE
    shape = (frames, height, width, channels)
    small = (frames, height // 2, width // 2, 4 * channels)
    residual = None if upsampled else noise(*shape)
    sums = Sums(noise(*(small if upsampled else shape)), kind, noise(channels).float(), residual)
    gamma = noise(channels).float()
    found = []
    for one in (ops, ops, ops, TorchOps()):
        written = torch.empty(shape, dtype=torch.bfloat16, device=card.DEVICE)
        normed = torch.empty_like(written)
        one.rms_norm(sums, to_sums=written, to_norm=normed, gamma=gamma)
        found.append((written, normed))
    for again in found[1:3]:
        assert all(torch.equal(mine, first) for mine, first in zip(again, found[0], strict=True))
    assert torch.equal(found[0][0], found[3][0])
    apart = (found[0][1].float() - found[3][1].float()).abs()
    assert bool((apart <= found[3][1].float().abs() * 2**-7 + 1e-4).all())


def over(vae: nn.Module) -> PortableWan:
    """The Wan codec."""
    codec = portable_wan(codec_for(vae), card.DEVICE)
    assert isinstance(codec, PortableWan), codec
    assert codec.step_name == "channels last" or not HAS_TRITON
    return codec


@torch.no_grad()
def float32(vae: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """The frames in float32, without TF32."""
    dtype = z.dtype
    nn.Module.to(vae, torch.float32)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return vae.decode(z.float()).sample
    finally:
        nn.Module.to(vae, dtype)


def error(frames: torch.Tensor, right: torch.Tensor) -> float:
    """Relative."""
    return float((frames.float() - right).norm() / right.norm())


@pytest.mark.parametrize("size", [(30, 52), (11, 7)])
def test_nearer_to_float32_than_diffusers(real: AutoencoderKLWan, size: tuple[int, int]) -> None:
    """First and later chunks err at most 1.02 times what vae.decode does; two runs are equal."""
    z = card.latents(real, 6, *size)
    frames, again = walk(over(real), z, 1, "fast"), walk(over(real), z, 1, "fast")
    assert torch.equal(frames, again)
    with torch.no_grad():
        own = real.decode(z).sample
    right = float32(real, z)
    for part in (slice(0, 1), slice(1, 5), slice(5, None)):
        allowed = error(own[:, :, part], right[:, :, part])
        assert error(frames[:, :, part], right[:, :, part]) <= 1.02 * allowed


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_families_and_dtypes(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Every family, in halves and in float32, with a batch, as near to float32 as vae.decode."""
    vae = make().to(card.DEVICE, dtype)
    z = card.latents(vae, 5, 6, 7).repeat(2, 1, 1, 1, 1)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        frames = walk(over(vae), z, 2, "fast")
        with torch.no_grad():
            own = vae.decode(z).sample
    right = float32(vae, z)
    assert frames.dtype == dtype
    assert torch.equal(frames[0], frames[1])
    assert error(frames, right) <= max(1.02 * error(own, right), 2e-6)


def test_interleaved_streams_and_changed_weights() -> None:
    """Streams in turns share weights and nothing else; weights that change are read again."""
    vae = card.wan(torch.float16)
    clips = [card.latents(vae, 4, 6 + k, 5, seed=k) for k in range(3)]
    alone = [walk(over(vae), z, 1, "fast") for z in clips]
    decoders = [begun(over(vae), z) for z in clips]
    given: list[list[torch.Tensor]] = [[] for _ in clips]
    with torch.no_grad():
        for turn in range(4):
            for k, decoder in enumerate(decoders):
                part = decoder.decode(clips[k][:, :, turn : turn + 1])
                assert part is not None
                given[k].append(part)
        for decoder in decoders:
            decoder.close()
        for parts, whole in zip(given, alone, strict=True):
            assert torch.equal(torch.cat(parts, 2), whole)
        vae.decoder.conv_out.weight.mul_(0.5)
    assert not torch.equal(walk(over(vae), clips[0], 1, "fast"), alone[0])


def pictures(dtype: torch.dtype) -> AutoencoderKL:
    """Stable Diffusion's autoencoder as it is shipped, its weights random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        return nn.Module.to(tiny.randomised(vae), card.DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pictures(dtype: torch.dtype) -> None:
    """AutoencoderKL too, of sizes that no tile divides, in a batch; two runs are equal."""
    vae = pictures(dtype)
    codec = portable_pictures(codec_for(vae), card.DEVICE)
    assert isinstance(codec, PortablePictures), codec
    generator = torch.Generator().manual_seed(0)
    for size in ((33, 21), (64, 64)):
        z = torch.randn(2, 4, *size, generator=generator).to(card.DEVICE, dtype)
        with torch.no_grad():
            mine, again, own = codec.pictures(z), codec.pictures(z), vae.decode(z).sample
        assert torch.equal(mine, again)
        right = float32(vae, z)
        assert error(mine, right) <= 1.02 * error(own, right)


def test_is_taken_where_the_fused_kernels_are_not() -> None:
    """With mode="fast" it is the step for dtypes and cards that those are not for."""
    stepped = fastest(codec_for(card.wan(torch.float16)), card.DEVICE)
    assert isinstance(stepped.codec, PortableWan)
    assert isinstance(
        fastest(codec_for(pictures(torch.bfloat16)), card.DEVICE).codec, PortablePictures
    )


def test_a_caller_on_another_stream(real: AutoencoderKLWan) -> None:
    """Kernels are launched on the current stream, whichever that is."""
    z = card.latents(real, 3, 9, 14)
    expected = walk(over(real), z, 1, "fast")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        frames = walk(over(real), z, 1, "fast")
    stream.synchronize()
    assert torch.equal(frames, expected)
