"""Bad input gives one clear error, before any work and before any file is touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel, UniPCMultistepScheduler, WanPipeline

import streamvae
from streamvae import (
    ClosedError,
    DeviceError,
    Frame,
    LatentsError,
    NonFiniteError,
    StreamVAEError,
    UnknownSourceError,
    UsageError,
    collect,
    iter_decode,
    save,
    stream_decode,
)
from streamvae.codecs import known_families
from tests import tiny
from tests.codecs.walk import noise


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    """One Wan 2.1 for all; tests that change one make their own."""
    return tiny.wan21()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an earlier result and an earlier run's partial file."""
    (tmp_path / "kept.npy").write_bytes(b"earlier")
    (tmp_path / "new.npy.partial").write_bytes(b"interrupted")
    return tmp_path


def untouched(folder: Path) -> bool:
    """Whether the folder is as it was made."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files == {"kept.npy": b"earlier", "new.npy.partial": b"interrupted"}


GOOD = (1, 4, 2, 3, 2)


def filled(value: float, *shape: int) -> torch.Tensor:
    """Latents whose last number is ``value``."""
    latents = noise(*(shape or GOOD))
    latents.view(-1)[-1] = value
    return latents


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (noise(4, 2, 3, 2), r"\(B, C, T, H, W\) with C = 4 .*got shape \(4, 2, 3, 2\)"),
        (noise(1, 16, 2, 3, 2), r"\(B, C, T, H, W\) with C = 4 .*got shape \(1, 16, 2, 3, 2\)"),
        (noise(1, 4, 0, 3, 2), r"expected at least one latent .*got shape \(1, 4, 0, 3, 2\)"),
        (noise(1, 4, 2, 0, 2), r"no empty dimension, got shape \(1, 4, 2, 0, 2\)"),
        (torch.zeros(GOOD, dtype=torch.int64), "float32, torch.float64, got torch.int64"),
        (torch.zeros(GOOD, dtype=torch.complex64), "float64, got torch.complex64"),
        (np.zeros(GOOD, np.int32), "float64, got torch.int32"),
        (np.zeros(GOOD, "U1"), "expected latents of floating point, got an array of <U1"),
        (noise(*GOOD).to_sparse(), r"expected dense latents, got torch.sparse_coo"),
        (torch.zeros(GOOD, device="meta"), "expected latents that hold numbers, got.* meta"),
        ([], "expected at least one latent, but none came"),
        ([noise(4, 2, 3, 2)], r"got shape \(4, 2, 3, 2\)"),
        ([[1.0, 2.0]], "expected a tensor or a numpy array as piece 0 of the latents, got list"),
    ],
)
def test_latents(vae, folder, latents, said):
    """Latents of another rank, channels, dtype or layout are refused before anything is done."""
    with pytest.raises(LatentsError, match=said):
        save(latents, vae, folder / "new.npy")

    assert untouched(folder)


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (7, "a tensor, a numpy array, the path of a file .*an async iterable, got int"),
        ({"latents": noise(*GOOD)}, "an iterable or an async iterable, got dict"),
        ("missing.npy", "expected a file of latents, found none at 'missing.npy'"),
        ("latents.zip", r"\(.safetensors, .pt, .pth, .npy\), got 'latents.zip'"),
    ],
)
def test_nothing_that_holds_latents(vae, latents, said):
    """What cannot hold latents is refused when the stream is made."""
    with pytest.raises(LatentsError, match=said):
        stream_decode(latents, vae)


@pytest.mark.parametrize(
    ("pieces", "delivered", "said"),
    [
        ([(1, 4, 2, 3, 2), (1, 4, 1, 3, 3)], 5, r"expected piece 1 .*\(1, 4, any, 3, 2\)"),
        ([(1, 4, 1, 3, 2), (1, 4, 0, 3, 2)], 1, "expected at least one latent in piece 1, got"),
    ],
)
def test_later_pieces(vae, tmp_path, pieces, delivered, said):
    """A piece that does not go on as the first began is refused where it comes."""
    frames: list[Frame] = []
    with pytest.raises(LatentsError, match=said):
        frames.extend(
            iter_decode([noise(*shape) for shape in pieces], vae, sinks=tmp_path / "a.npy")
        )

    assert np.load(tmp_path / "a.npy.partial").shape[0] == delivered


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_from_the_start(vae, tmp_path, value):
    """NaN or infinity in the first latent gives an error that says so, and no file."""
    with pytest.raises(NonFiniteError, match="NaN or infinity in chunk 0: the latents already"):
        save(filled(value, 1, 4, 1, 3, 2), vae, tmp_path / "a.npy")

    assert list(tmp_path.iterdir()) == []


async def test_nonfinite_later(vae, tmp_path):
    """NaN in latent k: the frames before it are delivered and kept, readable, then it is said."""
    latents = noise(1, 4, 6, 3, 2)
    latents[:, :, 3] = torch.nan
    expected = collect(latents[:, :, :3], vae)
    frames: list[Frame] = []

    with pytest.raises(NonFiniteError, match="chunk 3") as caught:
        async for frame in stream_decode(latents, vae, sinks=tmp_path / "a.npy"):
            frames.append(frame)

    assert (caught.value.where, caught.value.chunk) == ("latents", 3)
    assert np.array_equal(np.stack([frame.data for frame in frames]), expected[0])
    assert np.array_equal(np.load(tmp_path / "a.npy.partial"), expected[0])
    assert not (tmp_path / "a.npy").exists()
    assert "While stage 'download' worked on chunk 3." in caught.value.__notes__


def test_nonfinite_warned(vae, caplog):
    """With ``nonfinite="warn"`` every frame comes, and the log says which chunks are bad."""
    latents = noise(1, 4, 3, 3, 2)
    latents[:, :, 2] = torch.nan

    assert collect(latents, vae, nonfinite="warn").shape[1] == 9
    assert "NaN or infinity in chunk 2" in caplog.text


def test_overflow_in_the_decoder():
    """Finite latents that a decoder makes infinite are told from latents that were bad."""
    vae = tiny.kl()
    vae.decoder.conv_out.bias.fill_(torch.inf)

    with pytest.raises(NonFiniteError, match="the latents are finite: the decoder") as caught:
        collect(noise(1, 4, 3, 3), vae)
    assert caught.value.where == "pixels"


@pytest.mark.parametrize("source", [object(), torch.nn.Linear(1, 1), 7, tiny.wan21])
def test_unknown_source(folder, source):
    """What nobody knows how to decode with is refused; the known classes are listed."""
    known = ", ".join(known_families())
    assert "AutoencoderKLWan" in known
    got = type(source).__name__
    with pytest.raises(UnknownSourceError, match=f"{known}.*, got an instance of .*{got}"):
        save(noise(*GOOD), source, folder / "new.npy")

    assert untouched(folder)


def test_unknown_pipeline(folder):
    """A pipeline that is not listed is refused, with those that are and what to do instead."""
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    pipe = DDPMPipeline(unet, UniPCMultistepScheduler())

    with pytest.raises(
        UnknownSourceError, match=r"known here \(\w+Pipeline, .*, got DDPMPipeline.*pipe\.vae"
    ):
        save(noise(*GOOD), pipe, folder / "new.npy")
    assert untouched(folder)


def test_pipeline_without_autoencoder(folder):
    """A listed pipeline that was loaded without its autoencoder is refused."""
    scheduler = UniPCMultistepScheduler()
    parts = {"tokenizer": None, "text_encoder": None, "transformer": None}
    pipe = WanPipeline(**parts, vae=None, scheduler=scheduler)

    with pytest.raises(UsageError, match="WanPipeline with its autoencoder, got one with vae=None"):
        save(noise(*GOOD), pipe, folder / "new.npy")
    assert untouched(folder)


def test_nothing_at_the_path(folder):
    """A path without an autoencoder is refused, and named."""
    with pytest.raises(
        UnknownSourceError, match=re.escape(f"autoencoder of diffusers at '{folder}'")
    ):
        save(noise(*GOOD), folder, folder / "new.npy")
    assert untouched(folder)


@pytest.mark.parametrize(
    ("sinks", "said"),
    [
        ("a.gif", r"expected a path ending in .*\.npy.*, got 'a\.gif' \(suffix '\.gif'\)"),
        ("a", r"expected a path ending in .*, got 'a' \(no suffix\)"),
        (7, "expected a path, a sink .* or an async callable, got 7"),
        (print, "got a callable that is not async"),
        (streamvae.NpyFile, r"expected a sink, got the class NpyFile; make one of it"),
        (["a.npy", "a.npy"], "expected every sink once, got a.npy more than once"),
        ([], "expected at least one path or sink to save to, got none"),
    ],
)
def test_nowhere_to_save_to(vae, sinks, said):
    """A sink that is none is refused when the stream is made."""
    with pytest.raises(UsageError, match=said):
        save(noise(*GOOD), vae, sinks)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kept.npy", "kept.npy exists already; pass overwrite=True to the sink to replace it"),
        ("missing/new.npy", "expected a writable directory .*missing"),
        ("new.mp4", "fps"),
    ],
)
def test_files_that_cannot_be(vae, folder, name, said):
    """An existing file, a missing folder and a missing fps are refused before decoding."""
    launched: list[torch.Tensor] = []

    with pytest.raises(UsageError, match=said) as caught:
        save(noise(*GOOD), vae, folder / name, transform=launched.append)

    assert "nothing was decoded" in " ".join(caught.value.__notes__)
    assert not launched
    assert untouched(folder)


def test_device_mismatch(vae, folder):
    """A device that the user's own weights are not on is refused; they are not moved."""
    with pytest.raises(DeviceError, match=r"expected the weights on meta, got .* on cpu; move it"):
        save(noise(*GOOD), vae, folder / "new.npy", device="meta")
    assert untouched(folder)
    assert vae.device == torch.device("cpu")


def test_weights_on_meta(folder):
    """An autoencoder that was never loaded is refused."""
    with pytest.raises(DeviceError, match="expected AutoencoderKLWan to have its weights, got"):
        save(noise(*GOOD), tiny.wan21().to("meta"), folder / "new.npy")
    assert untouched(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "quick"}, "expected mode to be one of 'exact', 'fast', got 'quick'"),
        ({"output": "uint16"}, "expected output to be one of 'uint8', 'float32', 'device', got"),
        ({"nonfinite": "ignore"}, "expected nonfinite to be one of 'raise', 'warn', got 'ignore'"),
        ({"fps": 0}, "expected fps to be positive, got 0"),
        ({"fps": float("nan")}, "expected fps to be positive, got nan"),
        ({"timeout": -1}, "expected timeout to be positive, got -1"),
        ({"sink_timeout": 0}, "expected sink_timeout to be positive, got 0"),
        ({"queue_size": 0}, "expected queue_size to be a whole number from 1, got 0"),
        ({"queue_size": 1.5}, "expected queue_size to be a whole number from 1, got 1.5"),
        ({"latents_per_chunk": 0}, "expected latents_per_chunk to be a whole number from 1, got 0"),
        ({"device": "gpu"}, "expected a torch device, got 'gpu'"),
        ({"transform": 7}, "expected transform to be callable, got 7"),
        ({"progress": 7}, "expected progress to be a bool, .* or a callable, got 7"),
        ({"output": "device", "sinks": "a.npy"}, "expected no sinks with output='device'"),
    ],
)
def test_options(vae, options, said):
    """An option out of its range is refused when the stream is made, with its range."""
    with pytest.raises(UsageError, match=said):
        stream_decode(noise(*GOOD), vae, **options)


async def test_iterated_without_async(vae):
    """A plain ``for`` or ``with`` over a stream says that it is async."""
    stream = stream_decode(noise(*GOOD), vae)
    with pytest.raises(TypeError, match=r"'FrameStream' object is not iterable.*"):
        list(stream)
    with pytest.raises(TypeError, match="context manager protocol"), stream:
        pass


async def test_used_again(vae):
    """A second iteration, a step after the end, and info before the start are refused."""
    stream = stream_decode(noise(*GOOD), vae)
    with pytest.raises(ClosedError, match="expected an opened stream: info is there inside"):
        _ = stream.info
    await stream.collect()
    with pytest.raises(ClosedError, match="expected a fresh stream, got one that was iterated"):
        aiter(stream)
    with pytest.raises(ClosedError, match="expected an open stream, got one that has ended"):
        async with stream:
            pass


@pytest.mark.parametrize("step", [lambda stream: anext(aiter(stream)), lambda s: s.__aenter__()])
def test_outside_of_asyncio(vae, step: Callable[[streamvae.FrameStream], object]):
    """A stream driven by anything but asyncio says what it needs."""
    stream = stream_decode(noise(*GOOD), vae)
    awaitable = step(stream)

    with pytest.raises(StreamVAEError, match="expected a running asyncio loop"):
        awaitable.__await__().send(None)  # as another framework's loop would step it
