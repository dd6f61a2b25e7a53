"""Latents in host memory: on their way ahead of their launch, and nobody waits for the device."""

import asyncio
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import stream_decode
from streamvae._pixels import Output
from streamvae.backends._cuda import CudaDriver
from streamvae.backends._streamed import StreamedBackend
from tests import tiny

from . import card
from .test_races import DoesNotWait, Refused, SlowCopies

pytestmark = pytest.mark.cuda

STEPS = 6


def strided(z: torch.Tensor) -> torch.Tensor:
    """The same latents in memory that is not dense."""
    wide = torch.zeros(*z.shape[:-1], 2 * z.shape[-1], dtype=z.dtype)
    wide[..., ::2] = z
    return wide[..., ::2]


def read_only(z: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    """The same latents as an array that torch cannot view."""
    array = z.float().numpy().copy()
    array.flags.writeable = False
    return array


def one_by_one(z: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same latents, each in memory of its own that goes at once."""
    for step in range(z.shape[2]):
        yield z[:, :, step : step + 1].clone()


#: Ways in which latents lie in host memory; bfloat16 is exact in all of these.
KINDS: dict[str, Callable[[torch.Tensor], object]] = {
    "pageable": lambda z: z,
    "pinned": lambda z: z.pin_memory(),
    "pinned, one by one": lambda z: (one.pin_memory() for one in one_by_one(z)),
    "strided": strided,
    "channels last": lambda z: z.to(memory_format=torch.channels_last_3d),
    "float64": lambda z: z.double(),
    "float32": lambda z: z.float(),
    "one by one": one_by_one,
    "in pieces": lambda z: [z[:, :, :2], z[:, :, 2:3], z[:, :, 3:]],
    "an array": lambda z: z.float().numpy(),
    "a read-only array": read_only,
}


@contextmanager
def no_waits() -> Iterator[None]:
    """Whatever makes a thread wait for the device raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("output", ["uint8", "float32"])
@pytest.mark.parametrize("kind", KINDS)
async def test_no_hidden_wait(vae: AutoencoderKLWan, kind: str, output: Output) -> None:
    """However latents lie in host memory, no thread waits for the device, and frames are right."""
    z = card.latents(vae, STEPS)
    expected, host = card.whole(vae, z, output), z.cpu()
    await stream_decode(KINDS[kind](host), vae, output=output).collect()  # type: ignore[arg-type]
    given = KINDS[kind](host)
    with no_waits():
        frames = await stream_decode(given, vae, output=output).collect()  # type: ignore[arg-type]
    assert card.equal(frames, expected)


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
async def test_families_that_want_all_latents_at_once(make: Callable[[], torch.nn.Module]) -> None:
    """All latents are brought before the first launch, without a wait; frames equal decode's."""
    vae = make().to(card.DEVICE, torch.float32)
    z = card.latents(vae, 5)
    host = z.cpu()
    await stream_decode(host, vae).collect()
    with no_waits():
        frames = await stream_decode(host, vae, output="float32").collect()
    assert card.equal(frames, card.whole(vae, z, "float32"))


@pytest.mark.parametrize("kind", ["pageable", "pinned", "one by one", "in pieces"])
async def test_latents_that_come_late(vae: AutoencoderKLWan, kind: str) -> None:
    """A launch waits, on the device, for latents that take their time; slots are not used early."""
    z = card.latents(vae, 12)
    slow = StreamedBackend(SlowCopies(card.DEVICE))
    given = KINDS[kind](z.cpu())
    frames = await stream_decode(given, vae, backend=slow).collect()  # type: ignore[arg-type]
    assert card.equal(frames, card.whole(vae, z))


class SlowUploads(SlowCopies, DoesNotWait):
    """Latents come late, and launches do not wait for them."""

    def __init__(self) -> None:
        DoesNotWait.__init__(self, "compute")


async def test_control_not_waiting_corrupts(vae: AutoencoderKLWan) -> None:
    """Guards the test above: launches that do not wait for latents decode something else."""
    z = card.latents(vae, STEPS, seed=7)  # what no other test has left in memory
    expected = card.whole(vae, z)
    early = StreamedBackend(SlowUploads())
    frames = await stream_decode(z.cpu(), vae, backend=early, nonfinite="warn").collect()
    assert not card.equal(frames, expected)
    torch.cuda.synchronize()


@pytest.mark.parametrize("refused", [False, True])
async def test_without_page_locked_memory(vae: AutoencoderKLWan, refused: bool) -> None:
    """Capped or refused, latents go up from ordinary memory, still without a wait on the launch."""
    z = card.latents(vae, STEPS)
    driver, most = (Refused(card.DEVICE), 2**62) if refused else (CudaDriver(card.DEVICE), 0)
    backend = StreamedBackend(driver, most)
    frames = await stream_decode(z.cpu(), vae, backend=backend).collect()
    assert card.equal(frames, card.whole(vae, z))
    assert backend.pinned_bytes == 0


async def test_streams_side_by_side(vae: AutoencoderKLWan, backend: StreamedBackend) -> None:
    """Streams share the slots, and each gets its own latents."""
    given = [card.latents(vae, 9, seed=seed) for seed in range(4)]
    streams = [stream_decode(z.cpu(), vae, backend=backend).collect() for z in given]
    for z, frames in zip(given, await asyncio.gather(*streams), strict=True):
        assert card.equal(frames, card.whole(vae, z))


async def test_a_stream_that_is_left(vae: AutoencoderKLWan) -> None:
    """A stream that is left while latents are under way leaves nothing that hurts the next one."""
    z = card.latents(vae, 9)
    slow = StreamedBackend(SlowCopies(card.DEVICE))
    for left_after in (0, 1, 2):
        async with stream_decode(z.cpu(), vae, backend=slow) as stream:
            async for frame in stream:
                if frame.index >= left_after:
                    break
        frames = await stream_decode(z.cpu(), vae, backend=slow).collect()
        assert card.equal(frames, card.whole(vae, z))
