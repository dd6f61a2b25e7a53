"""Wan channels last, over torch's own operations on a CPU: the frames of vae.decode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamvae import ClosedError, UsageError, collect
from streamvae.codecs import codec_for
from streamvae.fast import fastest
from streamvae.fast._portable import PortableWan, portable_wan
from streamvae.fast._portable.histories import SlidingHistories, SlidingMemory
from streamvae.fast._wan.interface import Frames
from streamvae.fast._wan.pools import HISTORY
from tests import tiny
from tests.codecs.walk import begun, noise, walk, whole

from .wan import CPU, TOLERANCE, close, wan

META = torch.device("meta")
FAMILIES = [tiny.wan21, tiny.wan22, tiny.qwen_image]


def over(vae: nn.Module) -> PortableWan:
    """The codec, on a CPU."""
    codec = portable_wan(codec_for(vae), CPU, anywhere=True)
    assert isinstance(codec, PortableWan), codec
    return codec


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize(("length", "count"), [(1, 1), (2, 1), (5, 3), (11, 1)])
def test_equals_decode(make: Callable[[], nn.Module], length: int, count: int) -> None:
    """Any number of latents, in chunks of any size, of every family."""
    vae = make()
    latents = noise(1, codec_for(vae).channels, length, 3, 2)
    assert close(walk(over(vae), latents, count, "fast"), whole(vae, latents))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3)])
def test_any_size(size: tuple[int, int]) -> None:
    """Heights and widths that nothing divides."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, *size)
    assert close(walk(over(vae), latents, 1, "fast"), whole(vae, latents))


@pytest.mark.parametrize(
    "config",
    [
        {"dim_mult": [1, 3, 2], "temperal_downsample": [False, False]},
        {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [True, True, True]},
        {"dim_mult": [1, 1, 2], "temperal_downsample": [True, False], "num_res_blocks": 3},
        {"base_dim": 32, "dim_mult": [1, 1], "temperal_downsample": [True]},
        {"z_dim": 33, "dim_mult": [1, 2], "temperal_downsample": [False]},
    ],
)
def test_any_form(config: dict[str, object]) -> None:
    """Other widths, depths and orders of upsampling."""
    vae = wan(**config)
    latents = noise(1, vae.config.z_dim, 6, 3, 2)
    assert close(walk(over(vae), latents, 2, "fast"), whole(vae, latents))


def test_batches_and_tiles() -> None:
    """Clips of a batch have histories of their own, and so have tiles, which are blended."""
    vae = tiny.wan21()
    latents = noise(2, 4, 4, 5, 7)
    assert close(walk(over(vae), latents, 1, "fast"), whole(vae, latents))
    vae.enable_tiling(32, 32, 24, 24)
    given = walk(over(vae), latents, 1, "fast")
    assert float((given - whole(vae, latents)).abs().max()) <= 1e-4


def test_the_whole_way() -> None:
    """Through queues, threads and copies too, as levels and as numbers; plans launch nothing."""
    vae = tiny.wan21()
    latents = noise(1, 4, 4, 3, 2)
    expected = whole(vae, latents).movedim(1, -1)
    given = collect(latents, over(vae), output="float32", mode="fast")
    assert float((torch.as_tensor(given) - expected).abs().max()) <= TOLERANCE
    levels = torch.as_tensor(collect(latents, over(vae), mode="fast"))
    apart = levels.float() - ((expected * 0.5 + 0.5) * 255).round()
    assert float(apart.abs().max()) <= 1
    assert over(vae).plan((1, 4, 4, 3, 2), None, "fast").frames == (1, 4, 4, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", FAMILIES)
def test_halves(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Rounded once between convolutions, frames are as near to float32 as those of vae.decode."""
    vae = make()
    latents = noise(1, codec_for(vae).channels, 6, 6, 5).to(dtype)
    right = whole(vae, latents.float())
    vae.to(dtype)
    mine, own = walk(over(vae), latents, 1, "fast"), whole(vae, latents)
    assert mine.dtype == dtype
    errors = [float((one.float() - right).norm()) for one in (mine, own)]
    assert errors[0] <= 1.02 * errors[1]


def test_autocast() -> None:
    """Under autocast too, the dtype of the weights is what is computed in."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 3, 2)
    expected = walk(over(vae), latents, 1, "fast")
    with torch.autocast("cpu", torch.bfloat16):
        codec = over(vae)
        with torch.autocast("cpu", enabled=False):
            hidden = codec.prologue(latents)
        step = codec.walk()
        with torch.no_grad():
            parts = [step.push(hidden[:, :, turn : turn + 1]) for turn in range(3)]
    assert torch.equal(torch.cat(parts, 2).clamp(-1, 1), expected)


def test_nothing_unwritten_is_read() -> None:
    """With all new memory NaN frames are the same: nothing is read before it was written."""
    vae = tiny.wan21()
    latents = noise(2, 4, 4, 3, 2)
    expected = walk(over(vae), latents, 1, "fast")
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    try:
        assert torch.empty(1).isnan()
        given = walk(over(vae), latents, 1, "fast")
    finally:
        torch.use_deterministic_algorithms(mode=deterministic)
    assert torch.equal(given, expected)


def test_streams_in_turns() -> None:
    """Many streams over one autoencoder, of other sizes, share weights and nothing else."""
    vae = tiny.wan21()
    clips = [noise(1, 4, 4, 2 + k % 3, 3, seed=k) for k in range(5)]
    decoders = [begun(over(vae), clip) for clip in clips]
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


def test_closed() -> None:
    """A closed stream holds no memory, and says so when it is asked to decode."""
    vae = tiny.wan21()
    latents = noise(1, 4, 2, 3, 2)
    decoder = begun(over(vae), latents)
    with torch.no_grad():
        decoder.decode(latents[:, :, :1])
    (clip,) = decoder._clips
    (step,) = clip.walks()
    assert isinstance(step._histories, SlidingHistories)
    decoder.close()
    assert step._histories is None
    with pytest.raises(ClosedError):
        decoder.decode(latents[:, :, 1:])
    with pytest.raises(UsageError, match="first chunk of 1 latent, got 2"):
        over(vae).walk().push(latents)


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


def test_says_why_not() -> None:
    """What would be lost, or does not pay, is left to others, and it is said why."""
    assert portable_wan(codec_for(tiny.kl()), CPU) == ""
    assert portable_wan(codec_for(tiny.wan21()), CPU) == "this is cpu, not CUDA"
    assert portable_wan(codec_for(tiny.wan21()), META) == "this is meta, not CUDA"
    vae = tiny.wan21()
    vae.decoder.mid_block.register_forward_hook(print)
    assert "hook" in str(portable_wan(codec_for(vae), CPU, anywhere=True))


@pytest.mark.parametrize("make", FAMILIES)
def test_is_no_step_on_a_cpu(make: Callable[[], nn.Module]) -> None:
    """A CPU decodes as ever: there it is further from the truth than is accepted."""
    assert "no channels last" in fastest(codec_for(make()), CPU).step()


def slide(memory: SlidingMemory, frames: int) -> None:
    """What a chunk does: each input begins after the one before it has been read."""
    places = range(len(memory.starts))
    for place in places:
        if place == 0:
            memory.make_room(frames)
        memory.starts[place] += frames


@pytest.mark.parametrize("inputs", [1, 2, 3, 7])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_histories_never_overlap(inputs: int, chunk: int) -> None:
    """However long a clip is, histories lie side by side in the memory, and keep their frames."""
    memory = SlidingMemory((1, 1, 1), inputs, chunk, torch.empty(0))
    assert not memory.memory[: HISTORY * inputs].any()
    for turn in range(11):
        slide(memory, 1 if turn == 0 else chunk)
        for place, start in enumerate(memory.starts):
            memory.memory[start] = place
            memory.memory[start + 1] = place + 0.5
        memory.make_room(chunk)
        for place, start in enumerate(memory.starts):
            kept = memory.memory[start : start + HISTORY].flatten().tolist()
            assert kept == [place, place + 0.5]
    with pytest.raises(ValueError, match=f"at most {2 * chunk} frames, got {2 * chunk + 1}"):
        memory.make_room(2 * chunk + 1)


def test_frames_that_lie_apart() -> None:
    """Kernels that read frames in one piece say so when they do not lie so."""
    from streamvae.fast._portable.kernels import adjacent

    memory = torch.arange(4.0).view(4, 1, 1, 1)
    assert adjacent(Frames(memory, (1, 2))).flatten().tolist() == [1, 2]
    with pytest.raises(ValueError, match="one after another"):
        adjacent(Frames(memory, (1, 3)))
