"""Memory is that of a few chunks, however long the clip; a consumer keeps what it keeps."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from streamvae import HostChunk, stream_decode
from tests import tiny
from tests.codecs.walk import noise

#: Chunks in host memory at most: two queues of two, and one in the hands of each stage, of the
#: copy's thread and of the consumer (the design's bound).
HOST_CHUNKS = 7
#: Latents on their way besides: in the decode stage's hands, launched, and read one ahead.
LATENTS = HOST_CHUNKS + 5


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    """One Wan 2.1 for all."""
    return tiny.wan21()


class Census:
    """Counts the arrays or tensors it has seen that are still alive."""

    def __init__(self) -> None:
        self.refs: list[weakref.ref[object]] = []
        self.peak = 0

    def see(self, one: object) -> None:
        """Take one more into account."""
        self.refs.append(weakref.ref(one))
        self.peak = max(self.peak, self.alive)

    @property
    def alive(self) -> int:
        """How many there are now."""
        return sum(ref() is not None for ref in self.refs)


def latents(length: int) -> torch.Tensor:
    """Latents of one small clip."""
    return noise(1, 4, length, 1, 2)


@pytest.mark.parametrize("length", [4, 24])
@pytest.mark.parametrize("queue_size", [1, 2])
async def test_few_chunks_are_alive(vae, length, queue_size):
    """At no time are there more chunks on the device or the host than the design allows."""
    device, host = Census(), Census()

    def transform(pixels: torch.Tensor) -> torch.Tensor:
        device.see(pixels)
        return pixels

    async def sink(chunk: HostChunk) -> None:
        host.see(chunk.data)

    async with stream_decode(
        latents(length), vae, sinks=sink, transform=transform, queue_size=queue_size
    ) as stream:
        async for frame in stream:
            del frame

    assert len(device.refs) == len(host.refs) == length
    assert device.peak <= HOST_CHUNKS
    assert host.peak <= HOST_CHUNKS


PEAK = """
import asyncio
import torch
from diffusers import AutoencoderKLWan
from streamvae import stream_decode
from tests import tiny
from tests.codecs.walk import noise

torch.set_num_threads(1)
vae = tiny.randomised(AutoencoderKLWan(
    base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
    temperal_downsample=[False, True, True]))

def peak(work):  # in MiB, of this work alone
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    work()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

async def decode(length):
    latents = (noise(1, 4, 1, 8, 8, seed=step) for step in range(length))
    frames = 0
    async for frame in stream_decode(latents, vae, output="float32"):
        frames += 1
    assert frames == 4 * (length - 1) + 1

@torch.no_grad()
def whole():
    assert vae.decode(noise(1, 4, 72, 8, 8)).sample.shape[2] == 285

asyncio.run(decode(2))
print(peak(lambda: asyncio.run(decode(9))), peak(lambda: asyncio.run(decode(72))), peak(whole))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_is_flat():
    """Decoding 72 latents peaks where decoding 9 does; ``vae.decode`` of them, well above."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK],
        cwd=Path(__file__).parent.parent,
        # Freed memory goes back at once, so that the peak is of what is alive.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    short, long, whole = map(float, run.stdout.split())
    sys.stdout.write(f"MiB: 9 latents {short}, 72 latents {long}, vae.decode of 72 {whole}\n")
    assert long - short < 4  # 285 frames of 64 x 64 are 13 MiB of float32
    assert whole - long > 10


async def test_kept_frames_keep_themselves(vae):
    """A consumer who keeps every frame keeps their bytes and nothing else."""
    given = Census()

    async def generating() -> AsyncIterator[torch.Tensor]:
        for step in range(9):
            latent = noise(1, 4, 1, 1, 2, seed=step)
            given.see(latent)
            yield latent

    decoded = Census()

    def transform(pixels: torch.Tensor) -> torch.Tensor:
        decoded.see(pixels)
        return pixels

    frames = [frame async for frame in stream_decode(generating(), vae, transform=transform)]
    gc.collect()

    assert given.alive == decoded.alive == 0
    chunks = {id(frame.data.base): frame.data.base for frame in frames}.values()
    memory = [torch.from_numpy(chunk.copy()).untyped_storage().nbytes() for chunk in chunks]
    assert len(chunks) == 9
    assert sum(memory) == sum(frame.data.nbytes for frame in frames) == 33 * 8 * 16 * 3


async def test_kept_chunk_owns_its_memory(vae):
    """A kept chunk's memory is as large as its pixels: no slot, no decoder's buffer behind it."""
    for output, width in (("uint8", 1), ("float32", 4)):
        stream = stream_decode(latents(3), vae, output=output)
        async for chunk in stream.chunks():
            memory = chunk.data
            while isinstance(memory, np.ndarray) and memory.base is not None:
                memory = memory.base
            size = memory.untyped_storage().nbytes() if torch.is_tensor(memory) else memory.nbytes
            assert size == chunk.data.nbytes == len(chunk) * 8 * 16 * 3 * width


async def test_nobody_reads(vae):
    """A stream that is opened and not read stops at the bound; ``aclose`` then gives all back."""
    given, host = Census(), Census()
    full = asyncio.Event()

    async def generating() -> AsyncIterator[torch.Tensor]:
        for step in range(200):
            latent = noise(1, 4, 1, 1, 2, seed=step)
            given.see(latent)
            yield latent

    async def sink(chunk: HostChunk) -> None:
        host.see(chunk.data)
        if chunk.index == 2:
            full.set()

    stream = stream_decode(generating(), vae, sinks=sink)
    async with stream:
        await full.wait()
        # Time goes by: another stream comes and goes on the same threads.
        await stream_decode(latents(30), vae).finish()
        assert len(given.refs) <= LATENTS
        assert len(host.refs) <= HOST_CHUNKS
    gc.collect()

    assert given.alive == host.alive == 0
    assert len(given.refs) <= LATENTS


@pytest.mark.parametrize("kind", ["iterable", "async iterable"])
async def test_latents_are_not_retained(vae, kind):
    """Latents that come one by one are let go of once they are decoded."""
    given = Census()

    def iterated() -> Iterator[torch.Tensor]:
        for step in range(25):
            latent = noise(1, 4, 1, 1, 2, seed=step)
            given.see(latent)
            yield latent
            del latent

    async def generated() -> AsyncIterator[torch.Tensor]:
        for latent in iterated():
            yield latent
            del latent

    source = iterated() if kind == "iterable" else generated()
    await stream_decode(source, vae).finish()

    assert len(given.refs) == 25
    assert given.peak <= LATENTS
    assert given.alive == 0
