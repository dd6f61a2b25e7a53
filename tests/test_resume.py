"""Streams that go on where an earlier one was broken off."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from streamvae import (
    AVStream,
    LatentsError,
    NpyFile,
    UsageError,
    VideoFile,
    collect,
    save,
    stream_decode,
    stream_decode_av,
)
from streamvae.sinks import Stills
from streamvae.testing import TagCodec, one_by_one, tagged_latents
from tests import tiny
from tests.families.sound import ltx2_audio, ltx2_vocoder
from tests.flow import others, until

LATENTS = torch.randn(1, 4, 4, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    """A tiny Wan 2.1."""
    return tiny.wan21()


def read(directory: Path) -> dict[str, bytes]:
    """Everything there."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


async def break_off(latents: Any, source: object, sinks: Any, *, after: int, **options: Any) -> int:
    """Leave a stream once so many frames were seen, and its hashes are known."""
    async with stream_decode(latents, source, sinks=sinks, **options) as stream:
        frames = aiter(stream)
        for _ in range(after):
            await anext(frames)
        await until(lambda: "streamvae hash" not in map(named, others()), "hashes", seconds=1)
    return after


def named(task: asyncio.Task[Any]) -> str:
    """What a task is called."""
    return task.get_name()


async def test_it_is_as_if_it_had_never_stopped(vae: torch.nn.Module, tmp_path: Path) -> None:
    """Every file is bit for bit the uninterrupted one's; nothing else is left."""
    sinks = ["a.npy", "a.raw", "%02d.png"]
    (tmp_path / "once").mkdir()
    await stream_decode(LATENTS, vae, sinks=[f"once/{one}" for one in sinks]).finish()
    await break_off(LATENTS, vae, sinks, after=2)
    left = set(read(tmp_path))
    assert {"a.npy.partial", "a.npy.partial.manifest.json", "00.png"} <= left
    frames = await stream_decode(LATENTS, vae, sinks=sinks, resume=True).collect()
    once = read(tmp_path / "once")
    assert {name: data for name, data in read(tmp_path).items() if "once" not in name} == once
    assert np.array_equal(np.asarray(frames)[0], np.load("a.npy"))  # who watches sees all of it


@pytest.mark.parametrize("given", ["tensor", "array", "file"])
async def test_other_latents_or_weights(given: str, vae: torch.nn.Module, tmp_path: Path) -> None:
    """What is not the same is named before anything is decoded, and nothing is touched."""

    def latents(tensor: torch.Tensor) -> Any:
        save_file({"latents": tensor}, "z.safetensors")
        return {"tensor": tensor, "array": tensor.numpy(), "file": "z.safetensors"}[given]

    await break_off(latents(LATENTS), vae, "a.npy", after=1)
    before = Path("a.npy.partial").read_bytes()
    other = tiny.wan21()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    for changed, source, options, said in (
        (LATENTS + 1, vae, {}, "other latents;"),
        (LATENTS, other, {}, "other weights;"),
        (LATENTS, vae, {"output": "float32"}, "output float32 and not uint8;"),
        (LATENTS, vae, {"normalized": True}, "normalized True and not False;"),
        (LATENTS[:, :, :3], vae, {}, "other latents, latents 1 x 4 x 3 x 4 x 6 and not 1 x 4 x 4"),
        (LATENTS[..., :5], vae, {}, "size 40 x 32 and not 48 x 32"),
    ):
        seen = list[object]()
        with pytest.raises(UsageError, match=said) as caught:
            async with stream_decode(
                latents(changed.contiguous()),
                source,
                sinks="a.npy",
                resume=True,
                progress=lambda *done, seen=seen: seen.append(done),
                **options,
            ) as stream:
                await stream.finish()
        assert "nothing was decoded" in caught.value.__notes__[0]
        assert seen == []
    assert Path("a.npy.partial").read_bytes() == before
    assert json.loads(Path("a.npy.partial.manifest.json").read_text())["about"]["torch"]
    await stream_decode(latents(LATENTS), vae, sinks="a.npy", resume=True).finish()
    assert np.array_equal(np.load("a.npy"), np.asarray(collect(LATENTS, vae))[0])


async def test_latents_that_come_one_by_one(tmp_path: Path) -> None:
    """They cannot be hashed beforehand: frames are compared, and others end it untouched."""
    codec = TagCodec(2)
    latents = tagged_latents(6, start=40)
    sinks = ["a.raw", "%02d.png"]

    await break_off(one_by_one(latents), codec, sinks, after=4)
    kept = Path("a.raw.partial").read_bytes()
    with pytest.raises(LatentsError, match="expected the latents that .* was begun with"):
        await stream_decode(
            one_by_one(tagged_latents(6, start=90)), codec, sinks=sinks, resume=True
        ).finish()
    assert Path("a.raw.partial").read_bytes() == kept
    await stream_decode(one_by_one(latents), codec, sinks=sinks, resume=True).finish()
    expected = codec.expected(latents)
    raw = np.fromfile("a.raw", np.uint8).reshape(len(expected), -1)
    assert raw[:, 0].tolist() == expected
    assert len(list(tmp_path.glob("*.png"))) == len(expected)


def test_save_goes_on(vae: torch.nn.Module) -> None:
    """Without a loop it is the same; without anything there it begins."""
    asyncio.run(break_off(LATENTS, vae, NpyFile("a.npy"), after=3))
    save(LATENTS, vae, ["a.npy", Stills("b%d.png")], resume=True)
    assert np.array_equal(np.load("a.npy"), np.asarray(collect(LATENTS, vae))[0])
    assert Path("b12.png").exists()


def test_what_cannot_go_on_is_refused(vae: torch.nn.Module) -> None:
    """Without sinks, or with one that cannot be read again, there is nothing to resume."""

    async def take(chunk: object) -> None:
        """Keep nothing."""

    with pytest.raises(UsageError, match="expected sinks to go on with where resume=True"):
        stream_decode(LATENTS, vae, resume=True)
    with pytest.raises(UsageError, match="take, which cannot"):
        stream_decode(LATENTS, vae, sinks=take, resume=True)


async def test_weights_that_cannot_be_hashed(vae: torch.nn.Module) -> None:
    """They prove nothing, so frames are compared; the stream itself does not care."""
    codec = TagCodec()
    codec.module = torch.nn.Linear(2, 2, device="meta")  # type: ignore[attr-defined]
    latents = tagged_latents(5)
    await break_off(latents, codec, "a.raw", after=2)
    manifest = json.loads(Path("a.raw.partial.manifest.json").read_text())
    assert manifest["hashes"]["weights"] == "unknown"
    await stream_decode(latents, codec, sinks="a.raw", resume=True).finish()
    raw = np.fromfile("a.raw", np.uint8).reshape(5, -1)
    assert raw[:, 0].tolist() == codec.expected(latents)


async def test_a_complete_file_is_not_resumed(vae: torch.nn.Module) -> None:
    """What is complete is refused as ever, and stays."""
    await stream_decode(LATENTS, vae, sinks="a.npy").finish()
    with pytest.raises(UsageError, match="exists already"):
        await stream_decode(LATENTS, vae, sinks="a.npy", resume=True).finish()


async def test_a_video_with_sound(vae: torch.nn.Module, tmp_path: Path) -> None:
    """A file of both is made anew, by both, while the old one stays."""
    pytest.importorskip("av")
    sound = torch.randn(1, 4, 9, 4, generator=torch.Generator().manual_seed(1))
    source = (vae, (ltx2_audio(), ltx2_vocoder(in_channels=32)))

    def stream(**options: Any) -> AVStream:
        sinks = VideoFile("a.mp4", gop=2)
        return stream_decode_av(LATENTS, sound, source, fps=8.0, sinks=sinks, **options)

    async with stream() as first:
        async for frame in first:
            if frame.index == 9:
                await until(lambda: "streamvae hash" not in map(named, others()), "hashes")
                break
    assert {"a.mp4.partial", "a.mp4.partial.manifest.json"} <= set(read(tmp_path))
    old = Path("a.mp4.partial").read_bytes()
    with pytest.raises(UsageError, match="other latents"):
        await stream_decode_av(
            LATENTS + 1, sound, source, fps=8.0, sinks="a.mp4", resume=True
        ).finish()
    assert Path("a.mp4.partial").read_bytes() == old
    stats = await stream(resume=True).finish()
    assert stats.video.frames == 13
    assert set(read(tmp_path)) == {"a.mp4"}
    with pytest.raises(UsageError, match="expected sinks to go on with"):
        stream_decode_av(LATENTS, sound, source, fps=8.0, resume=True)
