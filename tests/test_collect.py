"""All frames in one array."""

import threading

import numpy as np
import pytest
import torch

from streamvae import DeviceFrames, FrameCountError, HostChunk, UsageError
from streamvae._collect import Collector

Data = np.ndarray | torch.Tensor


def chunks(kind: str, *, device: bool) -> list[HostChunk | DeviceFrames]:
    """Chunks of 1, 3 and 2 steps."""
    made: list[HostChunk | DeviceFrames] = []
    start = 0
    for index, size in enumerate((1, 3, 2)):
        shape = {"video": (2, size, 4, 4, 3), "image": (size, 1, 4, 4, 3), "sound": (2, size, 1)}
        data = np.random.default_rng(index).random(shape[kind]).astype(np.float32)
        if device:
            made.append(DeviceFrames(index, start, kind, torch.from_numpy(data)))  # type: ignore[arg-type]
        else:
            made.append(HostChunk(index, start, kind, data))  # type: ignore[arg-type]
        start += size
    return made


@pytest.mark.parametrize("kind", ["video", "image", "sound"])
@pytest.mark.parametrize("device", [True, False])
@pytest.mark.parametrize("frames", [6, None])
async def test_collected(kind: str, device: bool, frames: int | None) -> None:
    """Everything in order, on the host or on the device, of known number or not."""
    collector, given = Collector(), chunks(kind, device=device)
    for chunk in given:
        await collector.add(chunk, frames)
    whole = await collector.result()
    collector.close()
    parts = [np.asarray(chunk.data) for chunk in given]
    expected = np.concatenate(parts, 0 if kind == "image" else 1)
    if kind == "image":
        expected = expected[:, 0]
    assert isinstance(whole, torch.Tensor if device else np.ndarray)
    assert np.array_equal(np.asarray(whole), expected)


async def test_allocated_once() -> None:
    """With a known number the array is there from the first chunk on; fewer give what came."""
    collector, given = Collector(), chunks("video", device=False)
    await collector.add(given[0], 6)
    whole = collector._whole
    await collector.add(given[1], 6)
    assert collector._whole is whole
    result = await collector.result()
    assert np.shares_memory(result, whole)  # type: ignore[arg-type]
    assert result.shape[1] == 4
    collector.close()


async def test_its_thread_ends() -> None:
    """Closing lets the thread go."""
    collector = Collector()
    await collector.add(chunks("video", device=False)[0], None)
    collector.close()
    for thread in threading.enumerate():
        if thread.name == "streamvae collect":
            thread.join(10)
            assert not thread.is_alive()


async def test_more_than_promised() -> None:
    """More frames than were announced raise what says so, and the array is not overrun."""
    collector, given = Collector(), chunks("video", device=False)
    await collector.add(given[0], 3)
    with pytest.raises(FrameCountError, match="expected 3 frames, got 4"):
        await collector.add(given[1], 3)
    collector.close()


@pytest.mark.parametrize("frames", [6, None])
@pytest.mark.parametrize("device", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 3), (4, 4, 1), (4, 2, 3)])
async def test_a_size_that_changes(
    frames: int | None, device: bool, size: tuple[int, int, int]
) -> None:
    """A chunk of another size is refused, also one that would broadcast to that of the others."""
    collector, (first, *_) = Collector(), chunks("video", device=device)
    await collector.add(first, frames)
    data = torch.zeros(2, 3, *size)
    other = DeviceFrames(1, 1, "video", data) if device else HostChunk(1, 1, "video", data.numpy())
    with pytest.raises(UsageError, match="expected pictures of one size"):
        await collector.add(other, frames)
    collector.close()
