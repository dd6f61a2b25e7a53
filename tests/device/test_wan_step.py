"""The fused Wan step on a card: every element of every kernel, and whole chunks against float32."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae.codecs import WalkingCodec, codec_for
from streamvae.fast._wan import StepCodec, step_codec
from streamvae.fast._wan.cuda_kernels import CudaKernels
from streamvae.fast._wan.options import ConvOptions, Kind, NormOptions, Options
from streamvae.fast._wan.selftest import Case, check
from tests import tiny
from tests.codecs.walk import begun, walk
from tools.build_kernels import shipped_options

from . import card

pytestmark = pytest.mark.cuda

if torch.cuda.is_available() and torch.cuda.get_device_capability(card.DEVICE) != (9, 0):
    pytest.skip("these kernels are for compute capability 9.0", allow_module_level=True)

#: Heights and widths: smaller than a tile, whole tiles, one more, many.
SIZES = [(1, 1), (8, 16), (9, 17), (27, 45), (70, 33)]


def _others() -> dict[str, Options]:
    """Widths and forms that Wan 2.1 does not have: compiled when they are asked for."""
    plain = [
        ConvOptions(Kind.PLAIN, channels, channels, frames, (3, 3, 3), *flags)
        for channels, frames in ((32, 4), (64, 2), (128, 2), (160, 2), (256, 1))
        for flags in ((False, True, False), (True, True, True))
    ]
    others = [
        ConvOptions(Kind.UPSAMPLE, 256, 128, 2, (1, 2, 2), False, True, True),
        ConvOptions(Kind.DOUBLE_TIME, 64, 64, 1, (3, 1, 1), False, True, False),
        ConvOptions(Kind.PLAIN, 64, 64, 1, (2, 3, 3), False, True, False),
        ConvOptions(Kind.HEAD, 32, 8, 1, (3, 3, 3), False, True, False),
        NormOptions(512, silu=True),
        NormOptions(1024, silu=False),
        NormOptions(160, silu=True),
    ]
    return {options.name: options for options in (*plain, *others)}


SHIPPED, OTHERS = shipped_options(), _others()


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    """Kernels that are loaded once."""
    return CudaKernels(card.DEVICE)


@pytest.fixture(autouse=True)
def _idle() -> Iterator[None]:
    yield
    torch.cuda.synchronize()


@pytest.mark.parametrize("options", SHIPPED.values(), ids=SHIPPED.keys())
def test_every_element(kernels: CudaKernels, options: Options) -> None:
    """Each shipped specialisation is right in every element, at sizes that no tile divides."""
    for size in SIZES:
        check(kernels, card.DEVICE, options, size)


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS.keys())
def test_other_widths(kernels: CudaKernels, options: Options) -> None:
    """Specialisations that are not shipped, compiled now, are right in every element."""
    for size in SIZES[2:4]:
        check(kernels, card.DEVICE, options, size)


@pytest.mark.parametrize("options", SHIPPED.values(), ids=SHIPPED.keys())
def test_runs_are_equal(kernels: CudaKernels, options: Options) -> None:
    """Four runs are equal bit for bit, however many tiles a block takes."""
    case = Case(options, card.DEVICE, (70, 93))
    runs = [
        case.run(kernels.with_max_blocks(blocks), torch.bfloat16)
        for blocks in (kernels.max_blocks, 1, 7, kernels.max_blocks)
    ]
    assert all(runs[0].equal(run) for run in runs[1:])


def test_nothing_spills_in_the_main_loop(kernels: CudaKernels) -> None:
    """What ptxas spills, a handful of bytes of the loading threads, has not become more."""
    for options in SHIPPED.values():
        assert kernels.function(options).spilled <= 32


def _step(vae: torch.nn.Module) -> StepCodec:
    codec = step_codec(codec_for(vae), card.DEVICE)
    assert isinstance(codec, StepCodec), codec
    return codec


@torch.no_grad()
def _float32(vae: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    vae.float()
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return vae.decode(z.float()).sample
    finally:
        vae.to(torch.bfloat16)


def _error(frames: torch.Tensor, right: torch.Tensor) -> float:
    return float((frames.float() - right).norm() / right.norm())


@pytest.mark.parametrize("size", [(30, 52), (11, 7), (33, 19)])
def test_nearer_to_float32_than_diffusers(real: AutoencoderKLWan, size: tuple[int, int]) -> None:
    """First and later chunks err at most 1.02 times what vae.decode does; two runs are equal."""
    z = card.latents(real, 6, *size)
    codec = _step(real)
    frames, again = walk(codec, z, 1, "fast"), walk(_step(real), z, 1, "fast")
    assert codec.step_name == "fused kernels"
    assert torch.equal(frames, again)
    with torch.no_grad():
        own = real.decode(z).sample
    right = _float32(real, z)
    for part in (slice(0, 1), slice(1, 5), slice(5, None)):
        error = _error(frames[:, :, part], right[:, :, part])
        allowed = _error(own[:, :, part], right[:, :, part])
        assert error <= 1.02 * allowed


def test_chunks_and_batches(real: AutoencoderKLWan) -> None:
    """Chunks of any number of latents, and clips of a batch, give the bits of one at a time."""
    z = card.latents(real, 6, 9, 14).repeat(2, 1, 1, 1, 1)
    z[1] = z[1].flip(1)
    alone = walk(_step(real), z[:1], 1, "fast")
    for count in (1, 2, 5):
        both = walk(_step(real), z, count, "fast")
        assert torch.equal(both[:1], alone)
    assert torch.equal(both[1:], walk(_step(real), z[1:], 1, "fast"))


def test_random_sizes(real: AutoencoderKLWan) -> None:
    """Pictures of any size are as near to float32 as those of vae.decode."""
    choice = random.Random(0)
    for _ in range(12):
        size = (choice.randint(1, 40), choice.randint(1, 40))
        z = card.latents(real, 3, *size)
        with torch.no_grad():
            own = real.decode(z).sample
        frames, right = walk(_step(real), z, 1, "fast"), _float32(real, z)
        assert _error(frames, right) <= 1.05 * _error(own, right), size


def test_interleaved_streams_and_changed_weights(real: AutoencoderKLWan) -> None:
    """Streams in turns share weights and nothing else; weights that change are read again."""
    clips = [card.latents(real, 4, 10 + k, 9, seed=k) for k in range(3)]
    alone = [walk(_step(real), z, 1, "fast") for z in clips]
    codecs: list[WalkingCodec] = [_step(real) for _ in clips]
    decoders = [begun(codec, z) for codec, z in zip(codecs, clips, strict=True)]
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
        weight = real.decoder.conv_out.weight
        weight.mul_(0.5)
        changed = walk(_step(real), clips[0], 1, "fast")
        weight.mul_(2)
    assert not torch.equal(changed, alone[0])
    assert torch.equal(walk(_step(real), clips[0], 1, "fast"), alone[0])


def test_other_decoders() -> None:
    """Decoders of other widths and depths are compiled, and as near to float32."""
    vae = tiny.randomised(
        AutoencoderKLWan(
            base_dim=32, dim_mult=[1, 2, 3], num_res_blocks=1, temperal_downsample=[True, False]
        )
    ).to(card.DEVICE, torch.bfloat16)
    z = card.latents(vae, 5, 9, 13)
    frames = walk(_step(vae), z, 2, "fast")
    with torch.no_grad():
        own = vae.decode(z).sample
    right = _float32(vae, z)
    assert _error(frames, right) <= 1.02 * _error(own, right)
