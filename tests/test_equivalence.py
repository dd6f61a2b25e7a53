"""The law of the face: a stream gives what ``vae.decode``, or the pipeline, gives."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor
from safetensors.torch import save_file

from streamvae import (
    DeviceFrames,
    Frame,
    ShapeError,
    UsageError,
    asave,
    collect,
    iter_decode,
    save,
    stream_decode,
)
from tests import tiny
from tests.codecs.walk import noise, whole

VIDEO = ("wan21", "wan22", "qwen_image")
FAMILIES = pytest.mark.parametrize("family", VIDEO)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHAPES = [(1, 1, 3, 2), (2, 2, 3, 2), (1, 3, 1, 5), (1, 9, 2, 1)]


@functools.cache
def model(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A tiny autoencoder, made once; tests that change one make their own."""
    return getattr(tiny, family)().to(dtype)


def latents_for(
    vae: torch.nn.Module, *shape: int, seed: int = 1, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Seeded latents (B, C, T, h, w) of the autoencoder's channels and dtype."""
    batch, *rest = shape
    return noise(batch, vae.config.z_dim, *rest, seed=seed, dtype=dtype or vae.dtype)


def pil_bytes(vae: torch.nn.Module, latents: torch.Tensor) -> np.ndarray:
    """The bytes of the pictures that diffusers itself makes of what ``vae.decode`` gives."""
    decoded = whole(vae, latents)
    if decoded.ndim == 4:
        pictures = VaeImageProcessor().postprocess(decoded, output_type="pil")
        return np.stack([np.asarray(picture) for picture in pictures])
    clips = VideoProcessor().postprocess_video(decoded, output_type="pil")
    return np.stack([[np.asarray(picture) for picture in clip] for clip in clips])


def floats(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What ``vae.decode`` gives, as float32, channels last."""
    return whole(vae, latents).float().movedim(1, -1)


@FAMILIES
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_video_equals_decode(family, dtype, shape):
    """Frames equal diffusers' own pictures byte for byte, and its floats before quantisation."""
    vae = model(family, dtype)
    latents = latents_for(vae, *shape)

    quantised = collect(latents, vae)
    exact = collect(latents, vae, output="float32")

    assert quantised.dtype == np.uint8
    assert np.array_equal(quantised, pil_bytes(vae, latents))
    assert exact.dtype == np.float32
    assert torch.equal(torch.from_numpy(exact), floats(vae, latents))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With more than one thread torch picks among more algorithms; chosen after a first stream."""
    before = torch.get_num_threads()
    collect(noise(1, 4, 1, 1, 1), model("wan21"))
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("normalized", [False, True])
def test_large_latents_equal_decode(normalized):
    """Equal also where torch takes another algorithm for all latents than for one alone."""
    vae = tiny.wan21(channels=48)
    latents = noise(1, 48, 9, 48, 2)
    first = vae.post_quant_conv(latents[:, :, :1])
    if torch.equal(first, vae.post_quant_conv(latents)[:, :, :1]):
        pytest.skip("torch takes the same algorithm here, so there is nothing to tell apart")
    decoded = latents
    if normalized:
        mean, std = (
            torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )
        decoded = latents / (1.0 / std) + mean

    streamed = collect(latents, vae, output="float32", normalized=normalized)

    assert torch.equal(torch.from_numpy(streamed), floats(vae, decoded))


@FAMILIES
async def test_frames_come_in_time_order(family):
    """Frames come in time order, the batch innermost, each knowing its number, time and item."""
    vae = model(family)
    latents = latents_for(vae, 2, 3, 3, 2)
    expected = pil_bytes(vae, latents)

    async with stream_decode(latents, vae, fps=16) as stream:
        info = stream.info
        frames = [frame async for frame in stream]

    assert (info.frames, info.batch) == (9, 2) == (expected.shape[1], expected.shape[0])
    assert (info.height, info.width) == expected.shape[2:4]
    assert [(f.index, f.batch_index) for f in frames] == [(t, b) for t in range(9) for b in (0, 1)]
    assert [frame.time for frame in frames] == [frame.index / 16 for frame in frames]
    for frame in frames:
        assert np.array_equal(frame.data, expected[frame.batch_index, frame.index])
        assert frame.to_pil().tobytes() == expected[frame.batch_index, frame.index].tobytes()
        with pytest.raises(ValueError, match="read-only"):
            frame.data[0, 0, 0] = 1


@FAMILIES
def test_slicing(family):
    """With slicing on, clips are decoded one by one, as ``vae.decode`` does it then."""
    vae = getattr(tiny, family)()
    vae.enable_slicing()
    latents = latents_for(vae, 3, 2, 3, 2)

    assert np.array_equal(collect(latents, vae), pil_bytes(vae, latents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_latents_are_cast_to_the_weights_dtype(dtype):
    """Latents of another dtype are cast once, as pipelines do with ``latents.to(vae.dtype)``."""
    vae = model("wan21", torch.bfloat16)
    latents = latents_for(vae, 1, 2, 3, 2, dtype=dtype)

    assert np.array_equal(collect(latents, vae), pil_bytes(vae, latents.to(torch.bfloat16)))


def test_latents_in_any_layout():
    """Strided latents, latents that require grad and inference tensors are read as they are."""
    vae = model("wan21")
    latents = latents_for(vae, 1, 3, 4, 2)
    with torch.inference_mode():
        inference = latents.clone()

    given = [
        latents.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        latents.to(memory_format=torch.channels_last_3d),
        latents.clone().requires_grad_(),
        inference,
    ]

    expected = pil_bytes(vae, latents)
    assert all(np.array_equal(collect(one, vae), expected) for one in given)


def _pieces(latents: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(latents.split([1, 3, 2, 1, 2], dim=2))


async def _generated(latents: torch.Tensor) -> AsyncIterator[torch.Tensor]:
    for piece in latents.split([3, 1, 4, 1], dim=2):
        yield piece.clone()


def _saved(write: Callable[[Path], object], path: Path) -> Path:
    write(path)
    return path


WHOLE: dict[str, Callable[[torch.Tensor, Path], object]] = {
    "array": lambda latents, folder: latents.numpy(),
    ".npy": lambda latents, folder: _saved(lambda p: np.save(p, latents.numpy()), folder / "a.npy"),
    ".safetensors": lambda latents, folder: _saved(
        lambda p: save_file({"latents": latents, "noise": latents.flip(2)}, p),
        folder / "a.safetensors",
    ),
    ".pt": lambda latents, folder: str(_saved(lambda p: torch.save(latents, p), folder / "a.pt")),
}
IN_PIECES: dict[str, Callable[[torch.Tensor, Path], object]] = {
    "list": lambda latents, folder: list(latents.split(2, dim=2)),
    "generator": lambda latents, folder: _pieces(latents),
    "arrays": lambda latents, folder: (piece.numpy() for piece in _pieces(latents)),
    "async generator": lambda latents, folder: _generated(latents),
}
GIVEN = WHOLE | IN_PIECES


@pytest.mark.parametrize("how", GIVEN)
def test_latents_from_anywhere(how, tmp_path):
    """Frames do not depend on whether latents come as a tensor, a file or in pieces."""
    vae = model("wan21")
    latents = latents_for(vae, 1, 9, 3, 2)
    given = GIVEN[how](latents, tmp_path)

    assert np.array_equal(collect(given, vae), pil_bytes(vae, latents))


@pytest.mark.parametrize("how", GIVEN)
async def test_frame_count_beforehand(how, tmp_path):
    """How many frames there will be is known before decoding, wherever the latents' length is."""
    vae = model("wan21")
    given = GIVEN[how](latents_for(vae, 1, 9, 3, 2), tmp_path)

    async with stream_decode(given, vae) as stream:
        if how in WHOLE:
            assert stream.info.latents_shape == (1, 4, 9, 3, 2)
            assert stream.info.frames == 33
        else:
            assert stream.info.frames is None


@FAMILIES
@DTYPES
def test_normalized(family, dtype):
    """``normalized=True`` is the formula of the families' pipelines, then ``vae.decode``."""
    vae = model(family, dtype)
    latents = latents_for(vae, 1, 2, 3, 2, dtype=torch.float32)
    # As it stands in WanPipeline and QwenImagePipeline.
    cast = latents.to(vae.dtype)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(cast.device, cast.dtype)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(
        cast.device, cast.dtype
    )

    assert np.array_equal(collect(latents, vae, normalized=True), pil_bytes(vae, cast / std + mean))


@DTYPES
def test_wan_pipeline(dtype):
    """The latents of a WanPipeline, streamed with it, give the very pictures that it gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=8,
            ffn_dim=8,
            num_layers=1,
        ).eval()
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny.wan21().to(dtype),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)

    def generate(output_type: str) -> object:
        return pipe(
            prompt_embeds=noise(1, 4, 8),
            guidance_scale=1.0,
            height=16,
            width=32,
            num_frames=9,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            output_type=output_type,
        ).frames

    streamed = collect(generate("latent"), pipe)

    (pictures,) = generate("pil")
    assert np.array_equal(streamed[0], np.stack([np.asarray(picture) for picture in pictures]))


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_autoencoder_from_a_folder(subfolder, tmp_path):
    """The path of an autoencoder, or of a pipeline that has one, does as well as the object."""
    vae = model("wan21")
    vae.save_pretrained(tmp_path / subfolder)
    latents = latents_for(vae, 1, 2, 3, 2)

    assert np.array_equal(collect(latents, tmp_path), pil_bytes(vae, latents))


@DTYPES
def test_images_item_by_item(dtype):
    """Pictures equal those of ``vae.decode`` with slicing on, byte for byte, and as floats."""
    vae = tiny.kl().to(dtype)
    latents = noise(3, 4, 5, 7, dtype=dtype)
    frames = list(iter_decode(latents, vae, fps=8))
    exact = collect(latents, vae, output="float32")
    vae.enable_slicing()
    expected = pil_bytes(vae, latents)

    assert [(f.index, f.batch_index, f.time) for f in frames] == [(k, k, None) for k in range(3)]
    assert all(np.array_equal(f.data, expected[f.index]) for f in frames)
    assert torch.equal(torch.from_numpy(exact), floats(vae, latents))
    assert np.array_equal(collect(iter(latents.split(2)), vae), expected)


def test_tiled_images():
    """A tiled AutoencoderKL decodes tiled: what ``vae.decode`` does is what is streamed."""
    vae = tiny.kl(sample_size=16)
    vae.enable_tiling()
    vae.enable_slicing()
    latents = noise(2, 4, 20, 13)

    assert latents.shape[-2] > vae.tile_latent_min_size
    tiled = pil_bytes(vae, latents)
    assert np.array_equal(collect(latents, vae), tiled)
    vae.disable_tiling()
    assert not np.array_equal(pil_bytes(vae, latents), tiled)


@pytest.mark.parametrize(
    ("batch", "latents_per_chunk"), [(1, None), (2, 1), (1, 3), (2, 7), (1, 64)]
)
def test_sound(batch, latents_per_chunk):
    """Sound equals ``vae.decode`` within 1e-5 however it is cut, and says when it is played."""
    vae = tiny.oobleck(strides=(2, 3, 2))
    latents = noise(batch, 8, 20)
    expected = floats(vae, latents)

    blocks = list(iter_decode(latents, vae, latents_per_chunk=latents_per_chunk))

    assert {block.data.dtype for block in blocks} == {np.dtype(np.float32)}
    assert [block.time for block in blocks] == [block.index / 44100 for block in blocks]
    for item in range(batch):
        mine = [block for block in blocks if block.batch_index == item]
        sound = torch.from_numpy(np.concatenate([block.data for block in mine]))
        torch.testing.assert_close(sound, expected[item], rtol=0, atol=1e-5)


def _upscaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("family", ["wan21", "kl"])
def test_transform(family):
    """A transform works on the decoder's float pixels and may change their size."""
    vae = model(family)
    latents = noise(2, 4, 3, 2) if family == "kl" else latents_for(vae, 1, 2, 3, 2)

    frames = collect(
        latents, vae, transform=lambda pixels: _upscaled(pixels).neg(), output="float32"
    )

    expected = -floats(vae, latents).repeat_interleave(2, -2).repeat_interleave(2, -3)
    if family == "kl":  # decoded one by one
        torch.testing.assert_close(torch.from_numpy(frames), expected, rtol=0, atol=1e-5)
    else:
        assert torch.equal(torch.from_numpy(frames), expected)


async def test_transform_may_not_change_time():
    """A transform that drops frames is refused, with what was expected and what came."""
    vae = model("wan21")
    latents = latents_for(vae, 1, 2, 3, 2)
    frames: list[Frame] = []

    with pytest.raises(ShapeError, match=r"axes \(0, 2\) of \(1, 3, 4, 24, 16\), got .*\(1, 3, 2,"):
        async for frame in stream_decode(latents, vae, transform=lambda pixels: pixels[:, :, ::2]):
            frames.append(frame)

    assert [frame.index for frame in frames] == [0]  # the first chunk is one frame long


@FAMILIES
@DTYPES
async def test_frames_left_on_the_device(family, dtype):
    """``output="device"`` gives tensors in the weights' dtype, values as they were decoded."""
    vae = model(family, dtype)
    latents = latents_for(vae, 1, 3, 3, 2)

    chunks = [chunk async for chunk in stream_decode(latents, vae, output="device").chunks()]

    assert all(isinstance(chunk, DeviceFrames) for chunk in chunks)
    joined = torch.cat([chunk.data for chunk in chunks], 1)
    assert joined.dtype == dtype
    assert torch.equal(joined, whole(vae, latents).movedim(1, -1))
    assert torch.equal(collect(latents, vae, output="device"), joined)
    with pytest.raises(TypeError, match="expected uint8 pixels for a PIL image, got Tensor"):
        next(chunks[0].frames(None)).to_pil()


@FAMILIES
async def test_larger_chunks(family):
    """Chunks of several latents are refused in exact mode; in fast mode they differ by rounding."""
    vae = model(family)
    latents = latents_for(vae, 1, 8, 2, 3)

    with pytest.raises(UsageError, match="expected latents_per_chunk=1 in exact mode"):
        collect(latents, vae, latents_per_chunk=2)
    async with stream_decode(
        latents, vae, latents_per_chunk=2, mode="fast", output="float32"
    ) as stream:
        assert (stream.info.mode, stream.info.latents_per_chunk) == ("fast", 2)
        frames = await stream.collect()

    expected = floats(vae, latents)
    torch.testing.assert_close(torch.from_numpy(frames), expected, rtol=0, atol=1e-5)


async def test_files_hold_the_frames(tmp_path):
    """What ``save`` and ``asave`` leave on disk are the frames, and nothing else."""
    vae = model("wan21")
    latents = latents_for(vae, 1, 3, 3, 2)
    expected = pil_bytes(vae, latents)[0]

    stats = save(latents, vae, [tmp_path / "a.npy", str(tmp_path / "b.raw")])
    await asave(latents, vae, tmp_path / "c.npy", output="float32")

    assert stats.frames == 9
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    assert (tmp_path / "b.raw").read_bytes() == expected.tobytes()
    assert np.array_equal(np.load(tmp_path / "c.npy"), floats(vae, latents)[0].numpy())
    assert not list(tmp_path.glob("*.partial"))
