"""Races made to happen: every delay that can show an access too early, and controls for them."""

import logging
import warnings
from collections.abc import AsyncIterator

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import HostChunk, stream_decode
from streamvae._events import Event, Happened
from streamvae.backends._cuda import CudaDriver
from streamvae.backends._driver import Stream
from streamvae.backends._streamed import StreamedBackend

from . import card

pytestmark = pytest.mark.cuda


class SlowCopies(CudaDriver):
    """Each copy comes late on the copy stream."""

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        torch.cuda._sleep(card.CYCLES)
        super().copy(source, into)


class ReadsEarly(SlowCopies):
    """Takes a copy for done as soon as it has begun."""

    def record(
        self,
        stream: Stream,
        *,
        made: tuple[torch.Tensor, ...] = (),
        read: tuple[object, ...] = (),
    ) -> Event:
        event = super().record(stream, made=made, read=read)
        return Happened() if stream == "copy" else event


class DoesNotWait(CudaDriver):
    """Skips what one stream should wait for."""

    def __init__(self, deaf: Stream) -> None:
        super().__init__(card.DEVICE)
        self.deaf = deaf

    def wait(self, stream: Stream, event: Event) -> None:
        if stream != self.deaf:
            super().wait(stream, event)


class Refused(CudaDriver):
    """Asks for more page-locked memory than there are addresses."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        return super().pinned(nbytes + 2**50)


def late(pixels: torch.Tensor) -> torch.Tensor:
    """Transform: have the compute stream write pixels late."""
    torch.cuda._sleep(card.CYCLES)
    return pixels


def written_late(z: torch.Tensor) -> torch.Tensor:
    """Latents that the current stream has yet to write."""
    made = torch.zeros_like(z)
    torch.cuda._sleep(card.CYCLES)
    return made.copy_(z)


async def test_copies_that_come_late(vae: AutoencoderKLWan) -> None:
    """Frames are right however long the copies take."""
    z = card.latents(vae, 6)
    slow = StreamedBackend(SlowCopies(card.DEVICE))
    assert card.equal(await stream_decode(z, vae, backend=slow).collect(), card.whole(vae, z))


async def test_control_reading_early_corrupts(vae: AutoencoderKLWan) -> None:
    """Guards the test above: without the wait for the copy's event the frames are wrong."""
    z = card.latents(vae, 6)
    early = StreamedBackend(ReadsEarly(card.DEVICE))
    frames = await stream_decode(z, vae, backend=early, nonfinite="warn").collect()
    assert not card.equal(frames, card.whole(vae, z))
    torch.cuda.synchronize()


async def test_pixels_that_come_late(vae: AutoencoderKLWan, backend: StreamedBackend) -> None:
    """A copy waits, on the device, for what it copies."""
    z = card.latents(vae, 6)
    frames = await stream_decode(z, vae, transform=late, backend=backend).collect()
    assert card.equal(frames, card.whole(vae, z))


async def test_control_copying_early_corrupts(vae: AutoencoderKLWan) -> None:
    """Guards the test above: a copy stream that does not wait copies something else."""
    z = card.latents(vae, 6)
    deaf = StreamedBackend(DoesNotWait("copy"))
    stream = stream_decode(z, vae, transform=late, backend=deaf, nonfinite="warn")
    assert not card.equal(await stream.collect(), card.whole(vae, z))
    torch.cuda.synchronize()


@pytest.mark.parametrize("on_a_stream_of_its_own", [False, True])
async def test_latents_that_come_late(vae: AutoencoderKLWan, on_a_stream_of_its_own: bool) -> None:
    """Latents are read after their giver's stream has written them, whichever stream it is."""
    z = card.latents(vae, 6)
    giver = (
        torch.cuda.Stream(card.DEVICE)
        if on_a_stream_of_its_own
        else torch.cuda.default_stream(card.DEVICE)
    )
    with torch.cuda.stream(giver):
        stream = stream_decode(written_late(z), vae)
    assert card.equal(await stream.collect(), card.whole(vae, z))


async def test_control_reading_latents_early_corrupts(vae: AutoencoderKLWan) -> None:
    """Guards the test above: a compute stream that does not wait decodes something else."""
    z = card.latents(vae, 6)
    expected = card.whole(vae, z)
    deaf = StreamedBackend(DoesNotWait("compute"))
    frames = await stream_decode(written_late(z), vae, backend=deaf).collect()
    assert not card.equal(frames, expected)


async def test_latents_let_go_of_at_once(vae: AutoencoderKLWan) -> None:
    """A generating model may drop what it gave and use the memory for the next step."""
    z = card.latents(vae, 9)
    expected = card.whole(vae, z)

    async def generating() -> AsyncIterator[torch.Tensor]:
        for step in range(z.shape[2]):
            torch.cuda._sleep(card.CYCLES // 4)
            piece = z[:, :, step : step + 1].clone()
            yield piece
            del piece
            # The allocator gives freed memory to the next of its size on this stream.
            for _ in range(4):
                torch.full_like(z[:, :, :1], torch.nan)

    assert card.equal(await stream_decode(generating(), vae).collect(), expected)


async def test_weights_that_come_late() -> None:
    """Weights still being written by the user's stream are waited for, as latents are."""
    vae = card.wan()
    z = card.latents(vae, 3).cpu()
    expected = card.whole(vae, z.to(card.DEVICE))
    with torch.no_grad():
        right = [parameter.clone() for parameter in vae.parameters()]
        for parameter in vae.parameters():
            parameter.zero_()
        torch.cuda.synchronize()
        torch.cuda._sleep(card.CYCLES * 5)
        for parameter, value in zip(vae.parameters(), right, strict=True):
            parameter.copy_(value)
    assert card.equal(await stream_decode(z, vae).collect(), expected)


async def test_a_sink_that_is_slow(vae: AutoencoderKLWan, backend: StreamedBackend) -> None:
    """A sink may take until the device has run out of work: no frame changes under it."""
    z = card.latents(vae, 9)
    written: list[HostChunk] = []

    async def sink(chunk: HostChunk) -> None:
        before = chunk.data.tobytes()
        await card.launched_is_done(backend)
        assert chunk.data.tobytes() == before
        written.append(chunk)

    frames = await stream_decode(z, vae, sinks=sink, backend=backend).collect()
    expected = card.whole(vae, z)
    assert card.equal(frames, expected)
    assert b"".join(chunk.data.tobytes() for chunk in written) == expected.tobytes()


@pytest.mark.parametrize("refused", [False, True])
async def test_without_page_locked_memory(
    vae: AutoencoderKLWan, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Capped or refused by the driver, one warning and the same frames."""
    z = card.latents(vae, 6)
    backend = (
        StreamedBackend(Refused(card.DEVICE), 2**62)
        if refused
        else StreamedBackend(CudaDriver(card.DEVICE), 0)
    )
    with caplog.at_level(logging.WARNING, "streamvae"):
        for _ in range(2):
            frames = await stream_decode(z, vae, transform=late, backend=backend).collect()
            assert card.equal(frames, card.whole(vae, z))
    assert len([record for record in caplog.records if record.name == "streamvae"]) == 1


@pytest.mark.parametrize("host", [False, True])
async def test_no_hidden_wait_for_the_device(vae: AutoencoderKLWan, host: bool) -> None:
    """Nothing between latents, wherever they are, and frames on the host makes a thread wait."""
    z = card.latents(vae, 6)
    expected = card.whole(vae, z)
    z = z.cpu() if host else z
    await stream_decode(z, vae).collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        frames = await stream_decode(z, vae).collect()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert card.equal(frames, expected)
