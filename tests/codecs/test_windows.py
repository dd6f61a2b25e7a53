from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from tests.codecs.walk import finish, noise, pieces, walk, whole
from tests.families.lookahead import ltx_091
from tests.families.windows import (
    allegro,
    hunyuan_video,
    hunyuan_video_whole,
    ltx2_diffusion,
    ltx2_diffusion_tiled,
    ltx2_framewise,
    ltx_framewise,
    minimax_h3,
)

Make = Callable[[], torch.nn.Module]


def seeded(seed: int = 3) -> torch.Generator:
    """A new generator."""
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def emissions(vae: torch.nn.Module, length: int, size: tuple[int, int]) -> list[list[int]]:
    """Frames after each chunk, then after each drain."""
    codec = codec_for(vae)
    decoder = codec.decoder()
    latents = noise(1, codec.channels, length, *size)
    given = [decoder.decode(piece) for piece in pieces(codec, latents)]
    drained = finish(codec, decoder, length)
    return [[0 if one is None else one.shape[2] for one in part] for part in (given, drained)]


@pytest.mark.parametrize(
    ("make", "length", "size", "expected"),
    [
        (hunyuan_video, 4, (2, 2), [[0], [13]]),
        (hunyuan_video, 9, (2, 2), [[13, 12, 0], [8]]),
        (hunyuan_video, 7, (2, 2), [[13, 0], [12]]),
        (allegro, 11, (4, 4), [[16, 16, 0], [12]]),
        (minimax_h3, 12, (1, 1), [[17, 17], [5]]),
        (minimax_h3, 8, (1, 1), [[17, 0], [9]]),
        (ltx_framewise, 4, (1, 1), [[9, 8], [8]]),
        (ltx_framewise, 2, (1, 1), [[0], [9]]),
        (ltx2_diffusion_tiled, 3, (2, 2), [[0], [7, 10]]),
    ],
)
def test_soon(make: Make, length: int, size: tuple[int, int], expected: list[list[int]]) -> None:
    """A window gives its frames as soon as its latents are there; the end gives the rest."""
    assert emissions(make(), length, size) == expected


@pytest.mark.parametrize("make", [hunyuan_video, allegro, minimax_h3])
@torch.no_grad()
def test_chunks_are_not_kept(make: Make) -> None:
    """What is kept of latents are copies: a chunk may be overwritten when it was pushed."""
    codec = codec_for(make())
    latents = noise(1, 4, 12, 4, 4)
    expected = walk(codec, latents, 2)
    decoder = codec.decoder()
    frames = []
    for piece in pieces(codec, latents, 2):
        frames.append(decoder.decode(piece))
        piece.fill_(float("nan"))

    frames += finish(codec, decoder, 12)
    assert torch.equal(torch.cat([part for part in frames if part is not None], 2), expected)


@pytest.mark.parametrize(
    ("size", "stride"), [(8, 4), (16, 4), (16, 16), (18, 12), (4, 4), (24, 16), (13, 8)]
)
def test_other_windows(size: int, stride: int) -> None:
    """Windows of any size that lose no frames give what vae.decode gives with them."""
    vae = hunyuan_video()
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = size, stride
    codec = codec_for(vae)
    for length in (1, 2, 3, 5, 6, 9):
        latents = noise(1, 4, length, 1, 2)
        expected = whole(vae, latents)
        assert torch.equal(walk(codec, latents), expected)
        assert codec.frames(length) == expected.shape[2]


@pytest.mark.parametrize(("size", "stride"), [(16, 10), (16, 20), (16, 0), (3, 4), (16, 2)])
def test_windows_that_lose_frames(size: int, stride: int) -> None:
    """Windows with gaps between them, or that frames do not divide into, are refused."""
    vae = hunyuan_video()
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = size, stride
    with pytest.raises(UsageError, match=rf"multiple of .*=4 .*got {stride} and {size}"):
        codec_for(vae).cut(9, None, "exact")


def test_plans() -> None:
    """Chunks make one window whole each; what cannot be walked goes at once."""
    codec = codec_for(hunyuan_video())
    assert codec.cut(None, None, "exact") == ChunkPlan(5, 3)
    assert codec.cut(None, 6, "exact") == ChunkPlan(8, 6)
    assert codec_for(allegro()).cut(None, None, "exact") == ChunkPlan(6, 4)
    assert codec_for(minimax_h3()).cut(None, None, "exact") == ChunkPlan(7, 5)
    assert codec_for(hunyuan_video_whole()).cut(9, None, "exact") == ChunkPlan(9, 9)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec.cut(None, 0, "exact")


def test_says_what_cannot_be_walked() -> None:
    """Where all latents are needed before the first frame, notes say so and what to do."""
    shape = (1, 4, 9, 2, 2)
    assert codec_for(hunyuan_video()).notes(shape) == ()
    (note,) = codec_for(hunyuan_video_whole()).notes(shape)
    assert "set vae.use_framewise_decoding = True" in note
    (note,) = codec_for(ltx2_diffusion()).notes(shape)
    assert "call enable_tiling()" in note
    (note,) = codec_for(ltx2_diffusion_tiled()).notes(shape)
    assert "windows of frames come after the last latent" in note


def test_slicing() -> None:
    """With slicing on, clips are decoded one by one, as vae.decode does it then."""
    for vae, of_diffusers in ((hunyuan_video(), False), (allegro(), True)):
        vae.enable_slicing()
        latents = noise(2, 4, 8, 4, 4)
        expected = whole(vae, latents)
        streamed = walk(codec_for(vae), latents)
        assert torch.equal(streamed, expected.movedim(1, 2) if of_diffusers else expected)


@pytest.mark.parametrize(
    ("kernel", "stride"), [((24, 16, 24), (24, 8, 16)), ((16, 24, 16), (8, 16, 8))]
)
def test_allegro_other_windows(kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
    """Windows and tiles of other sizes are faded and added as diffusers does it."""
    vae = allegro()
    vae.kernel, vae.stride = kernel, stride
    for length in (6, 9):
        latents = noise(1, 4, length, 3, 4)
        assert torch.equal(walk(codec_for(vae), latents), whole(vae, latents).movedim(1, 2))


def test_allegro_zeros() -> None:
    """Pixels that no window of diffusers reaches are zero, as there, and notes say which."""
    vae = allegro()
    latents = noise(1, 4, 8, 5, 4)
    codec = codec_for(vae)

    frames = walk(codec, latents)

    assert torch.equal(frames, whole(vae, latents).movedim(1, 2))
    assert not frames[:, :, 24:].any()
    assert not frames[..., 32:, :].any()
    time, height = codec.notes(tuple(latents.shape))
    assert "the last 2 latents in time" in time
    assert "can be decoded: 6 and 4 more each" in time
    assert "the last 1 latents of the height" in height
    assert codec.notes((1, 4, 10, 4, 7)) == ()


def test_allegro_refuses() -> None:
    """What diffusers fails at, or answers with zeros alone, is refused with what to do."""
    vae = allegro()
    codec = codec_for(vae)
    with pytest.raises(UsageError, match=r"batch of 2; call vae.enable_slicing\(\)"):
        codec.check((2, 4, 6, 4, 4))
    with pytest.raises(LatentsError, match="at least 4x4 latents.*got 4x3"):
        codec.check((1, 4, 6, 4, 3))
    with pytest.raises(LatentsError, match="at least 6 latents.*got 5"):
        codec.cut(5, None, "exact")
    vae.stride = (8, 24, 24)
    with pytest.raises(UsageError, match="overlap by half at most"):
        codec.check((1, 4, 6, 4, 4))
    vae.stride = (16, 24, 32)
    codec.check((1, 4, 6, 4, 4))
    with pytest.raises(UsageError, match="tiles that overlap"):
        codec.check((1, 4, 6, 4, 8))
    vae.use_tiling = False
    with pytest.raises(UsageError, match=r"got use_tiling=False; call vae.enable_tiling\(\)"):
        codec.check((1, 4, 6, 4, 4))


@pytest.mark.parametrize(
    "config",
    [
        {"token_drop": 0},
        {"token_drop": 1},
        {"token_drop": 4},
        {"clip_length": 9, "token_drop": 1},
        {"clip_length": 16},
    ],
)
def test_minimax_h3_other_windows(config: dict[str, int]) -> None:
    """Windows follow the config: how long a clip is, how many of its latents are dropped."""
    vae = minimax_h3(**config)
    codec = codec_for(vae)
    for length in range(5, 13):
        latents = noise(1, 4, length, 1, 1)
        expected = whole(vae, latents)
        assert codec.frames(length) == expected.shape[2]
        assert torch.equal(walk(codec, latents), expected)


def test_minimax_h3_refuses() -> None:
    """Clips and tiles that diffusers fails at, or loses pixels of, are refused."""
    vae = minimax_h3()
    codec = codec_for(vae)
    with pytest.raises(LatentsError, match="at least 3 latents.*got 2"):
        codec.cut(2, None, "exact")
    vae.tile_sample_min_height = 250
    with pytest.raises(UsageError, match="multiples of 16 pixels, got 250 and 64"):
        codec.check((1, 4, 7, 4, 4))
    vae.tile_sample_min_height = 64
    with pytest.raises(UsageError, match="smaller .*got 64 and 64"):
        codec.check((1, 4, 7, 4, 4))
    with pytest.raises(UsageError, match="token_drop below the 5 latents.*got 6"):
        codec_for(minimax_h3(token_drop=6))


@pytest.mark.parametrize("make", [allegro, minimax_h3])
@torch.no_grad()
def test_too_few_at_the_end(make: Make) -> None:
    """Where latents come one by one, too few of them are refused at the end."""
    codec = codec_for(make())
    decoder = codec.decoder()
    for piece in noise(1, 4, 2, 4, 4).split(1, 2):
        assert decoder.decode(piece) is None
    with pytest.raises(LatentsError, match=r"expected at least \d latents.*got 2"):
        decoder.drain()


def test_minimax_h3_dtypes() -> None:
    """Latents are taken in the dtype of the weights that see them first, as by vae.decode."""
    vae = minimax_h3()
    vae.post_quant_conv.bfloat16()
    vae.decoder.proj_in.bfloat16()
    assert codec_for(vae).dtype == torch.bfloat16


@torch.no_grad()
def test_ltx_framewise() -> None:
    """LTX in windows takes its timestep and torch's noise as vae.decode does, and says so."""
    vae = ltx_091()
    vae.use_framewise_decoding = True
    latents = noise(1, 8, 4, 1, 2)
    call = {"temb": torch.tensor([0.3])}
    codec = codec_for(vae, call)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = vae.decode(latents, **call, return_dict=False)[0]
        torch.manual_seed(3)
        assert torch.equal(walk(codec, latents), expected)
    other, shared = codec.notes(tuple(latents.shape))
    assert "other frames than without" in other
    assert "global generator, window by window" in shared
    with pytest.raises(UsageError, match="call torch.manual_seed"):
        codec_for(vae, {**call, "generator": seeded()}).check(tuple(latents.shape))


@torch.no_grad()
def test_ltx2_framewise_causal() -> None:
    """LTX-2 in windows can be told to be causal when it is called."""
    vae = ltx2_framewise()
    latents = noise(1, 8, 4, 2, 2)
    expected = vae.decode(latents, causal=True, return_dict=False)[0]

    assert torch.equal(walk(codec_for(vae, {"causal": True}), latents), expected)
    assert not torch.equal(walk(codec_for(vae), latents), expected)


def test_flag_by_stream() -> None:
    """The flag counts when a stream begins: one codec gives either function."""
    vae = ltx_framewise()
    codec = codec_for(vae)
    latents = noise(1, 8, 4, 2, 2)
    assert torch.equal(walk(codec, latents), whole(vae, latents))
    vae.use_framewise_decoding = False
    assert codec.notes(tuple(latents.shape)) == ()
    torch.testing.assert_close(walk(codec, latents), whole(vae, latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [ltx2_diffusion, ltx2_diffusion_tiled])
@torch.no_grad()
def test_generator(make: Make) -> None:
    """Streams draw what decode would from a generator, one after the other as well."""
    model = make()
    ours, theirs = seeded(), seeded()
    codec = codec_for(model, {"generator": ours})
    for seed in (1, 2):
        latents = noise(1, 4, 3, 2, 2, seed=seed)
        expected = model.decode(latents, generator=theirs, return_dict=False)[0]
        assert torch.equal(walk(codec, latents), expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


@torch.no_grad()
def test_generator_by_turns() -> None:
    """Streams that begin from one generator by turns all get what decode would draw then."""
    model = ltx2_diffusion_tiled()
    generator = seeded()
    codec = codec_for(model, {"generator": generator})
    latents = noise(1, 4, 3, 2, 2)
    expected = model.decode(latents, generator=seeded(), return_dict=False)[0]
    decoders = [codec.decoder(), codec.decoder()]
    for decoder in decoders:
        decoder.decode(latents)

    parts = [[decoder.drain() for decoder in decoders] for _ in range(codec.drains(3))]

    for streamed in zip(*parts, strict=True):
        assert torch.equal(torch.cat(streamed, 2), expected)


@pytest.mark.parametrize("output", ["x0", "v"])
@pytest.mark.parametrize("steps", [None, 2])
@torch.no_grad()
def test_denoising_steps(output: str, steps: int | None) -> None:
    """More steps start tiles from one canvas, as diffusers draws it; each clip may have a seed."""
    model = ltx2_diffusion(decoder_model_output_type=output)
    model.enable_tiling(64, 64, 8, 48, 32, 4)
    latents = noise(2, 4, 2, 2, 3)
    call = {"num_inference_steps": steps}
    expected = model.decode(latents, [seeded(1), seeded(2)], steps, return_dict=False)[0]

    streamed = walk(codec_for(model, {**call, "generator": [seeded(1), seeded(2)]}), latents)

    assert torch.equal(streamed, expected)


@pytest.mark.parametrize(("size", "stride"), [(8, 2), (8, 8), (12, 4)])
@torch.no_grad()
def test_denoised_other_windows(size: int, stride: int) -> None:
    """Windows of any size, also several that reach the end of the clip, equal diffusers'."""
    model = ltx2_diffusion()
    model.enable_tiling(tile_sample_min_num_frames=size, tile_sample_stride_num_frames=stride)
    for length in (2, 3):
        latents = noise(1, 4, length, 2, 2)
        expected = model.decode(latents, generator=seeded(), return_dict=False)[0]
        codec = codec_for(model, {"generator": seeded()})
        assert torch.equal(walk(codec, latents), expected)


def test_denoised_refuses() -> None:
    """Clips that the windows of attention do not fit into are refused, as diffusers fails there."""
    kernels = ((3, 2, 4), (3, 2, 4), (3, 2, 4), (3, 2, 4))
    model = ltx2_diffusion(decoder_stage_kernels=kernels, decoder_stage5_kernel=(11, 3, 3))
    codec = codec_for(model)
    with pytest.raises(LatentsError, match="at least 2x4 latents.*got 3x3"):
        codec.check((1, 4, 3, 3, 3))
    with pytest.raises(LatentsError, match="at least 3 latents.*got 2"):
        codec.cut(2, None, "exact")
    with pytest.raises(UsageError, match="torch.Generator or a list of them, got 'x'"):
        codec_for(model, {"generator": "x"})
    with pytest.raises(UsageError, match="at least 1, got 0"):
        codec_for(model, {"num_inference_steps": 0})
    codec.check((1, 4, 3, 2, 4))
    with pytest.raises(ValueError, match="at least its kernel size"):
        whole(model, noise(1, 4, 2, 2, 4))
    assert whole(model, noise(1, 4, 3, 2, 4)).shape[2] == codec.frames(3)
    with pytest.raises(ValueError, match="at least its kernel size"):
        whole(model, noise(1, 4, 3, 2, 3))


def test_denormalize() -> None:
    """Latents of the diffusion model are scaled in the order of operations of its pipeline."""
    latents = noise(1, 4, 2, 2, 2)
    assert torch.equal(codec_for(hunyuan_video()).denormalize(latents), latents / 0.476986)
    assert torch.equal(codec_for(allegro()).denormalize(latents), 1 / 0.13 * latents)
    vae = minimax_h3()
    mean, std = (
        torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1)
        for key in ("latents_mean", "latents_std")
    )
    assert torch.equal(codec_for(vae).denormalize(latents), latents * std + mean)
    model = ltx2_diffusion(scaling_factor=0.7)
    model.latents_mean.copy_(mean.flatten())
    model.latents_std.copy_(std.flatten())
    assert torch.equal(codec_for(model).denormalize(latents), latents * std / 0.7 + mean)
