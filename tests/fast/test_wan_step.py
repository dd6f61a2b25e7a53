"""The fused Wan step over its reference kernels: the frames of vae.decode, on a CPU."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import AutoencoderKLWan
from torch import nn
from torch.nn.utils import parametrizations

from streamvae import ClosedError, UsageError, collect
from streamvae.abc import Codec
from streamvae.codecs import codec_for
from streamvae.fast import release
from streamvae.fast._wan import StepCodec, step_codec
from streamvae.fast._wan.cuda_kernels import CudaKernels
from streamvae.fast._wan.freshness import Look
from streamvae.fast._wan.network import build
from streamvae.fast._wan.pools import HISTORY, CausalInput, FramePool
from streamvae.fast._wan.reference import ReferenceKernels
from streamvae.fast._wan.step import ChunkDecoder, Histories
from tests import tiny
from tests.codecs.walk import begun, noise, walk, whole
from tests.fast.emulator import EmulatedDriver
from tests.fast.wan import CPU, TOLERANCE, StrictKernels, close, over, wan
from tools.build_kernels import shipped_options

CUDA = torch.device("cuda")


@pytest.mark.parametrize("length", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_equals_decode(length: int, count: int) -> None:
    """Any number of latents, in chunks of any size."""
    vae = tiny.wan21()
    latents = noise(1, 4, length, 3, 2)
    assert close(walk(over(vae), latents, count, "fast"), whole(vae, latents))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3), (4, 4), (9, 6)])
def test_any_size(size: tuple[int, int]) -> None:
    """Heights and widths that nothing divides."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, *size)
    assert close(walk(over(vae), latents, 1, "fast"), whole(vae, latents))


@pytest.mark.parametrize(
    "config",
    [
        {"dim_mult": [1, 2], "temperal_downsample": [True]},
        {"dim_mult": [1, 3, 2], "temperal_downsample": [False, False]},
        {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [True, True, True]},
        {"dim_mult": [1, 1, 2], "temperal_downsample": [True, False], "num_res_blocks": 3},
        {"base_dim": 32, "dim_mult": [1, 1], "temperal_downsample": [True]},
        {"z_dim": 33, "dim_mult": [1, 2], "temperal_downsample": [False]},
    ],
)
def test_any_form(config: dict[str, object]) -> None:
    """Other widths, depths and orders of upsampling, and latents that fill whole chunks."""
    vae = wan(**config)
    channels = vae.config.z_dim
    latents = noise(1, channels, 4, 3, 2)
    assert close(walk(over(vae), latents, 2, "fast"), whole(vae, latents))


@pytest.mark.parametrize("fused_channels", [0, 8, 16, 256])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (1, 3), (1, 2, 1)])
def test_steps_of_many_latents(fused_channels: int, counts: tuple[int, ...]) -> None:
    """Several latents in one step, and norms fused up to any width or not at all."""
    vae = tiny.wan21()
    latents = noise(1, 4, sum(counts), 3, 5)
    network = build(vae.decoder, ReferenceKernels(fused_channels=fused_channels))
    histories = Histories(network, 1, (3, 5), max(counts), CPU)
    parts, start = [], 0
    with torch.no_grad():
        hidden = vae.post_quant_conv(latents)[0]
        for number, count in enumerate(counts):
            first = number == 0
            chunk = ChunkDecoder(network, histories.inputs[0], fused_channels, first=first)
            pixels = torch.full((1 if first else 4 * count, 24, 40, 3), torch.nan)
            chunk.decode(hidden[:, start : start + count], pixels)
            parts.append(pixels)
            start += count
            check_slots(histories)
    assert close(torch.cat(parts).permute(3, 0, 1, 2)[None].clamp(-1, 1), whole(vae, latents))


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22])
@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_written_that_is_read(make: Callable[[], nn.Module], count: int) -> None:
    """No launch writes a frame that it reads, whose blocks run in any order; clips neither."""
    vae = make()
    latents = noise(2, vae.config.z_dim, 4, 3, 2)
    codec = StepCodec(vae, AutoencoderKLWan, kernels=StrictKernels())
    assert close(walk(codec, latents, count, "fast"), whole(vae, latents))


def check_slots(histories: Histories) -> None:
    """Every slot is free or in one history, but the zeros, which may be in many and are zeros."""
    for pool in histories.pools.values():
        inputs = [one for clip in histories.inputs for one in clip if one._pool is pool]
        kept = [slot for one in inputs for slot in one.history if slot != pool.zero]
        slots = sorted([*kept, *pool.free, pool.zero])
        assert slots == list(range(pool.memory.shape[0]))
        assert not any(one.new for one in inputs)
        assert not pool.memory[pool.zero].any()


def test_batches() -> None:
    """Clips of a batch have histories of their own, sliced or not."""
    vae = tiny.wan21()
    latents = noise(3, 4, 4, 3, 2)
    assert close(walk(over(vae), latents, 1, "fast"), whole(vae, latents))
    vae.enable_slicing()
    assert close(walk(over(vae), latents, 2, "fast"), whole(vae, latents))


def test_tiles() -> None:
    """Tiles are blended before they are clamped, as the autoencoder does."""
    vae = tiny.wan21()
    vae.decoder.conv_out.weight.data.mul_(4)
    vae.enable_tiling(32, 32, 24, 24)
    latents = noise(2, 4, 3, 5, 7)
    expected = whole(vae, latents)
    assert float(expected.abs().max()) == 1
    assert float((walk(over(vae), latents, 1, "fast") - expected).abs().max()) <= 1e-4


def test_nothing_unwritten_is_read() -> None:
    """With all new memory NaN frames are the same: nothing is read before it was written."""
    vae = tiny.wan21()
    latents = noise(2, 4, 4, 3, 2)
    expected = walk(over(vae), latents, 1, "fast")
    fill, deterministic = torch.utils.deterministic, torch.are_deterministic_algorithms_enabled()
    assert fill.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True)
    try:
        assert torch.empty(1).isnan()
        given = walk(over(vae), latents, 1, "fast")
    finally:
        torch.use_deterministic_algorithms(mode=deterministic)
    assert torch.equal(given, expected)


def test_the_whole_way() -> None:
    """Through queues, threads and copies too; a plan is made without launching a kernel."""
    vae = tiny.wan21()
    latents = noise(1, 4, 4, 3, 2)
    given = collect(latents, over(vae), output="float32", mode="fast")
    expected = whole(vae, latents).movedim(1, -1)
    assert float((torch.as_tensor(given) - expected).abs().max()) <= TOLERANCE
    assert over(vae).plan((1, 4, 4, 3, 2), None, "fast").frames == (1, 4, 4, 4)


def test_bfloat16() -> None:
    """Rounded once a layer, frames are nearer to float32 than those of vae.decode."""
    vae = tiny.wan21()
    latents = noise(1, 4, 6, 6, 5).bfloat16()
    right = whole(vae, latents.float())
    vae.bfloat16()
    mine, own = walk(over(vae), latents, 1, "fast"), whole(vae, latents)
    assert mine.dtype == torch.bfloat16
    errors = [float((one.float() - right).norm()) for one in (mine, own)]
    assert errors[0] <= 1.02 * errors[1]


def test_streams_in_turns() -> None:
    """Many streams over one autoencoder, of other sizes, share weights and nothing else."""
    vae = tiny.wan21()
    clips = [noise(1, 4, 4, 2 + k % 3, 3, seed=k) for k in range(6)]
    codecs = [over(vae) for _ in clips]
    decoders = [begun(codec, clip) for codec, clip in zip(codecs, clips, strict=True)]
    parts: list[list[torch.Tensor]] = [[] for _ in clips]
    with torch.no_grad():
        for turn in range(4):
            for k, decoder in enumerate(decoders):
                part = decoder.decode(clips[k][:, :, turn : turn + 1])
                assert part is not None
                parts[k].append(part)
    for k, decoder in enumerate(decoders):
        decoder.close()
        assert close(torch.cat(parts[k], 2), whole(vae, clips[k]))


def test_a_thousand_cancels() -> None:
    """Streams that are left at random moments leave those beside them right, and their pools."""
    vae, choice = wan(dim_mult=[1, 2], temperal_downsample=[True]), random.Random(0)
    latents = noise(1, 4, 5, 1, 2)
    expected = whole(vae, latents)
    codec = over(vae)
    with torch.no_grad():
        kept = begun(codec, latents)
        parts = [kept.decode(latents[:, :, :1])]
        for number in range(1000):
            other = begun(codec, latents)
            for turn in range(choice.randint(0, 2)):
                other.decode(latents[:, :, turn : turn + 1])
            other.close()
            if number % 250 == 0:
                turn = len(parts)
                parts.append(kept.decode(latents[:, :, turn : turn + 1]))
        for walked in kept._clips:
            check_slots(walked._walks[0][0]._histories)
    assert close(torch.cat(parts, 2), expected)


def test_closed() -> None:
    """A closed stream holds no memory, and says so when it is asked to decode."""
    vae = tiny.wan21()
    latents = noise(1, 4, 2, 3, 2)
    decoder = begun(over(vae), latents)
    with torch.no_grad():
        decoder.decode(latents[:, :, :1])
    (clip,) = decoder._clips
    step = clip._walks[0][0]
    decoder.close()
    assert step._histories is None
    with pytest.raises(ClosedError):
        decoder.decode(latents[:, :, 1:])


def test_first_chunk() -> None:
    """A first chunk of more than one latent is refused, as everywhere."""
    vae = tiny.wan21()
    with pytest.raises(UsageError, match="first chunk of 1 latent, got 2"):
        over(vae).walk().push(noise(1, 4, 2, 3, 2))


def test_changed_weights() -> None:
    """Weights that are written to, or replaced, are read again by the next stream."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 3, 2)
    before = walk(over(vae), latents, 1, "fast")
    with torch.no_grad():
        vae.decoder.up_blocks[0].resnets[0].conv1.weight.mul_(1.5)
    assert close(walk(over(vae), latents, 1, "fast"), whole(vae, latents))
    vae.load_state_dict(tiny.wan21(seed=1).state_dict(), assign=True)
    after = walk(over(vae), latents, 1, "fast")
    assert close(after, whole(vae, latents))
    assert not torch.equal(before, after)


def _layers(vae: nn.Module) -> nn.Module:
    return vae.decoder.mid_block.resnets[0]


def _adapted(vae: nn.Module) -> None:
    class Adapted(type(_layers(vae).conv1)):  # type: ignore[misc]
        pass

    _layers(vae).conv1.__class__ = Adapted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_adapted, "Adapted in the decoder would be passed over"),
        (lambda vae: parametrizations.weight_norm(_layers(vae).conv1), "the parametrised weights"),
        (
            lambda vae: _layers(vae).register_forward_hook(print),
            "a forward hook (print) on a WanResidualBlock",
        ),
        (lambda vae: add_hook_to_module(vae, AlignDevicesHook("cpu")), "a hook moves the weights"),
        (
            lambda vae: _layers(vae).conv1.double(),
            "weights are float32 and float64, not of one dtype",
        ),
        (lambda vae: setattr(_layers(vae), "nonlinearity", nn.GELU()), "they do not know GELU"),
        (lambda vae: vae.enable_layerwise_casting(torch.float8_e4m3fn), "a hook moves the weights"),
    ],
)
def test_says_why_not(change: Callable[[nn.Module], object], why: str) -> None:
    """What would be decoded wrongly is left to the autoencoder, and it is said why."""
    vae = tiny.wan21()
    change(vae)
    reason = step_codec(codec_for(vae), CPU, reference=True)
    assert isinstance(reason, str)
    assert why in reason


@pytest.mark.parametrize(
    ("codec", "device", "why"),
    [
        (lambda: codec_for(tiny.wan22()), CUDA, "weights are float32, not bfloat16"),
        (lambda: codec_for(tiny.wan21()), CPU, "this is cpu, not CUDA"),
        (lambda: codec_for(tiny.wan21()), CUDA, "weights are float32, not bfloat16"),
        (lambda: codec_for(tiny.wan21().bfloat16()), CUDA, "channels, not a multiple of 32"),
        (lambda: codec_for(tiny.kl()), CUDA, ""),
    ],
)
def test_not_for_these(codec: Callable[[], Codec], device: torch.device, why: str) -> None:
    """Other decoders, devices and dtypes are left alone; other families without a word."""
    reason = step_codec(codec(), device)
    assert isinstance(reason, str)
    assert (why in reason) if why else reason == ""


def test_falls_back() -> None:
    """Where kernels turn out not to be had, diffusers' decoder runs, and it is said."""
    vae = tiny.wan21()
    latents = noise(1, 4, 4, 3, 2)
    codec = StepCodec(vae, AutoencoderKLWan)
    assert codec.step_name == "fused kernels"
    assert torch.equal(walk(codec, latents, 1, "fast"), whole_by_chunks(vae, latents))
    assert codec.step_name.startswith("eager (no fused kernels: expected")
    assert codec.notes_of_step == (f"AutoencoderKLWan is decoded {codec.step_name}",)


def whole_by_chunks(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What diffusers' decoder gives, a chunk at a time."""
    return walk(codec_for(vae), latents, 1, "exact")


def test_pool() -> None:
    """A pool that runs dry says so by raising, and the zeros are nobody's to give."""
    pool = FramePool((2, 3, 4), 1, 1, torch.empty(0))
    one = CausalInput(pool)
    assert one.begin(1).memory is pool.memory
    one.end()
    assert pool.zero in one.history
    pool.give((pool.zero,))
    taken = pool.take(len(pool.free))
    assert pool.zero not in taken
    assert len(taken) == HISTORY * 1 + 2 * 1 - 1
    with pytest.raises(IndexError):
        pool.take(1)


def test_weights_written_through_data() -> None:
    """Weights written where torch counts no writes (EMA, LoRA) are read again too."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 3, 2)
    kernels = ReferenceKernels(torch.float64)  # has copies of them

    def decoded() -> torch.Tensor:
        codec = StepCodec(vae, AutoencoderKLWan, kernels=kernels)
        return walk(codec, latents, 1, "fast")

    before = decoded()
    assert torch.equal(decoded(), before)
    weight = vae.decoder.up_blocks[1].resnets[0].conv2.weight
    version = weight._version
    weight.data.mul_(1.5)
    assert weight._version == version
    after = decoded()
    assert close(after, whole(vae, latents))
    assert not torch.equal(after, before)


def test_shared_once() -> None:
    """Streams one after another read the same images, as long as weights are the same."""
    vae = tiny.wan21()
    latents = noise(1, 4, 1, 3, 2)
    kernels = ReferenceKernels()
    codecs = [StepCodec(vae, AutoencoderKLWan, kernels=kernels) for _ in range(2)]
    for codec in codecs:
        walk(codec, latents, 1, "fast")
    first, second = (codec.latest(CPU) for codec in codecs)
    assert first is second is not None


def test_autocast() -> None:
    """Under autocast the kernels go on computing in their weights' dtype."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 3, 2)
    expected = whole(vae, latents)
    with torch.autocast("cpu", torch.bfloat16):
        given = walk(over(vae), latents, 1, "fast")
    assert given.dtype == torch.float32
    assert float((given - expected).abs().max()) < 0.02  # the prologue is autocast


def test_plan() -> None:
    """What is foretold of memory are this step's own pools, of clips and of tiles."""
    vae = tiny.wan21()
    for batch in (1, 2):
        shape = (batch, 4, 5, 3, 2)
        codec = over(vae)
        plan = codec.plan(shape, None, "fast")
        decoder = begun(codec, noise(*shape))
        with torch.no_grad():
            decoder.decode(noise(*shape)[:, :, :1])
        histories = decoder._clips[0]._walks[0][0]._histories
        held = sum(pool.memory.nbytes for pool in histories.pools.values())
        assert plan.frames == (1, 4, 4, 4, 4)
        assert plan.state_bytes is not None
        prologue = noise(*shape).nbytes
        flag = plan.state_bytes - held - prologue
        assert 0 <= flag <= 4096  # of the last chunk, and norms' gammas
    vae.enable_tiling(32, 32, 24, 24)
    assert (over(vae).plan((1, 4, 2, 5, 7), None, "fast").state_bytes or 0) > held


def test_release() -> None:
    """Packed weights are let go of when they are released, and packed again by the next stream."""
    vae = tiny.wan21()
    kernels = CudaKernels(CPU, EmulatedDriver(shipped_options()))
    codec = StepCodec(vae, AutoencoderKLWan, kernels=kernels)
    held = weakref.ref(codec.rebuilt(CPU, Look(CPU)).network.conv_in.launch)
    assert release() >= kernels.packed_bytes > 0
    gc.collect()
    assert held() is None
    assert codec.latest(CPU) is None
    assert codec.rebuilt(CPU, Look(CPU)) is codec.latest(CPU)
