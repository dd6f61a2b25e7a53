"""The stages alone: async generators over a fake device."""

import logging
from collections.abc import AsyncIterator

import pytest
import torch

from streamvae import HostChunk
from streamvae._chunks import DeviceChunk, LatentChunk
from streamvae._errors import NonFiniteError
from streamvae._recipe import Recipe
from streamvae._tee import Tee
from streamvae.stages import check_finite, decode, download, persist, settle
from streamvae.testing import FakeBackend, MemorySink, TagCodec, tagged_latents

from .flow import drained, virtual


async def latent_chunks(count: int) -> AsyncIterator[LatentChunk]:
    """Chunks of one latent each."""
    latents = tagged_latents(count)
    for step in range(count):
        yield LatentChunk(step, (latents[:, :, step : step + 1].clone(),))


async def given(chunks: list[DeviceChunk]) -> AsyncIterator[DeviceChunk]:
    """Chunks that are there, each let go of as it is given."""
    while chunks:
        yield chunks.pop(0)


def recipe(codec: TagCodec) -> Recipe:
    """A fresh stream's."""
    return Recipe(codec, codec.decoder(), "uint8")


async def launched(backend: FakeBackend, codec: TagCodec, count: int) -> list[DeviceChunk]:
    """What `decode` makes of ``count`` latents."""
    return await drained(decode(latent_chunks(count), recipe(codec), backend))


@pytest.mark.parametrize("held", [0, 2])
@virtual
async def test_decode_numbers_its_chunks(held: int) -> None:
    """Every launch is a chunk, those of the drain too; ready comes with the device."""
    backend = FakeBackend(decode=1)
    chunks = await launched(backend, TagCodec(held=held), 4)
    assert [chunk.index for chunk in chunks] == list(range(4 + held))
    assert not chunks[-1].ready.query()


@pytest.mark.parametrize("held", [0, 2])
@virtual
async def test_download_gives_what_was_launched(held: int) -> None:
    """Chunks with nothing to give are passed over; the others know where they begin."""
    backend = FakeBackend(decode=1, download=1)
    chunks = await launched(backend, TagCodec(3, held=held), 4)
    hosts = await drained(download(given(chunks), backend, "video"))
    assert [host.start for host in hosts] == [0, 1, 4, 7]
    assert [len(host) for host in hosts] == [1, 3, 3, 3]
    assert [host.index for host in hosts] == list(range(held, held + 4))
    assert backend.copying == 0


@virtual
async def test_settle_gives_what_was_launched() -> None:
    """Chunks stay on the device, are given when they are ready, and know where they begin."""
    backend = FakeBackend(decode=1)
    chunks = await launched(backend, TagCodec(3, held=1), 3)
    frames = await drained(settle(given(chunks), backend, "video"))
    assert [(one.index, one.start, len(one)) for one in frames] == [(1, 0, 1), (2, 1, 3), (3, 4, 3)]
    assert backend.copying == 0


@pytest.mark.parametrize("sinks", [0, 1, 3])
@virtual
async def test_persist_is_a_tap(sinks: int) -> None:
    """Each chunk goes on as it came, after every sink, side by side, has accepted it."""
    backend = FakeBackend()
    chunks = await launched(backend, TagCodec(), 3)
    hosts = await drained(download(given(chunks), backend, "video"))
    taps = [MemorySink(seconds=number + 1, name=f"{number}") for number in range(sinks)]

    async def source() -> AsyncIterator[HostChunk]:
        for host in hosts:
            yield host

    passed = [host async for host in persist(source(), Tee(taps))]
    assert all(one is other for one, other in zip(passed, hosts, strict=True))
    assert [tap.indices for tap in taps] == [[0, 1, 2]] * sinks


@pytest.mark.parametrize(
    ("latents", "pixels", "where"), [(False, False, "latents"), (True, False, "pixels")]
)
def test_check_finite(
    latents: bool, pixels: bool, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A flag that is down raises, or is said once, and names the first that was bad."""
    with pytest.raises(NonFiniteError, match="in chunk 3") as caught:
        check_finite(3, "raise", latents=latents, pixels=pixels)
    assert caught.value.where == where
    with caplog.at_level(logging.WARNING, "streamvae"):
        check_finite(3, "warn", latents=latents, pixels=pixels)
    assert len(caplog.records) == 1
    check_finite(4, "raise", latents=True, pixels=True)


@virtual
async def test_launches_do_not_keep_latents() -> None:
    """Latents are held by the device only, until it has read them."""
    backend = FakeBackend(decode=1)
    latents = tagged_latents(1)
    held = latents.clone()

    async def one() -> AsyncIterator[LatentChunk]:
        yield LatentChunk(0, (held,))

    await drained(decode(one(), recipe(TagCodec()), backend))
    assert torch.equal(held, latents)
