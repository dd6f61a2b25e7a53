"""The one task behind a stream: what it opens and in which order, and that it closes it again."""

import asyncio

import pytest
import torch

from streamvae import stream_decode
from streamvae.testing import FakeBackend, MemorySink, TagCodec, tagged_latents

from .flow import Scene, no_thread_left, take, virtual


class Journal(TagCodec):
    """A codec that writes down what is asked of it."""

    def __init__(self) -> None:
        super().__init__(2)
        self.said: list[str] = []

    def check(self, shape: tuple[int, ...]) -> None:
        self.said.append("check")
        super().check(shape)

    def decoder(self):  # type: ignore[no-untyped-def]
        self.said.append("decoder")
        return super().decoder()


@virtual
async def test_checks_come_first() -> None:
    """Latents are checked before a sink is opened, sinks are opened before a decoder is made."""
    codec = Journal()
    scene = Scene(codec=codec, sink=MemorySink(fail_open=True))
    with pytest.raises(OSError, match="when opened"):
        await take(scene.stream(), [])
    assert codec.said == ["check"]
    bad = MemorySink()
    with pytest.raises(ValueError, match="expected latents of shape"):
        await take(scene.stream(torch.zeros(1, 2, 1, 1, 1), sinks=bad), [])
    assert bad.calls == []


@virtual
async def test_the_source_is_closed() -> None:
    """An async source is closed on every way out, before the stream says that it has ended."""
    ends = list[str]()

    async def source():  # type: ignore[no-untyped-def]
        try:
            for step in range(12):
                yield tagged_latents(12)[:, :, step : step + 1]
        finally:
            await asyncio.sleep(0.01)
            ends.append("closed")

    scene = Scene()
    async with scene.stream(source()) as stream:
        await take(stream, [], stop_after=2)
    assert ends == ["closed"]
    await take(scene.stream(source(), sinks=()), [])
    assert ends == ["closed"] * 2
    await scene.nothing_left()


@virtual
async def test_the_loading_thread_ends() -> None:
    """Weights are loaded on a thread that is gone afterwards, also if nothing was loaded."""
    with pytest.raises(TypeError):
        await take(stream_decode(tagged_latents(2), object(), backend=FakeBackend()), [])
    no_thread_left()


@virtual
async def test_a_stream_nobody_reads() -> None:
    """Entered and left alone, a stream fills its queues and rests."""
    scene = Scene()
    async with scene.stream():
        await asyncio.sleep(5)
        assert scene.backend.unfinished == 0
        assert scene.backend.host_chunks.alive == 6
        assert len(scene.sink.indices) == 3
    await scene.check([])
