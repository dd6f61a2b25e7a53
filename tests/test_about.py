"""What a stream says of itself, as it becomes known."""

import asyncio
import logging

import pytest
import torch

from streamvae import ClosedError
from streamvae._pixels import Kind
from streamvae.testing import TagCodec, one_by_one

from .flow import Scene, tag, take, virtual


@virtual
async def test_info() -> None:
    """What is known of a stream is there once it is entered, and not before."""
    scene = Scene()
    stream = scene.stream(fps=12)
    with pytest.raises(ClosedError, match="inside 'async with'"):
        _ = stream.info
    async with stream:
        info = stream.info
        assert (info.family, info.kind, info.output, info.fps) == ("TagCodec", "video", "uint8", 12)
        assert (info.batch, info.frames, info.height, info.width) == (1, 23, 8, 8)
        assert info.latents_shape == (1, 1, 12, 1, 1)
        assert scene.sink.info == info


@virtual
async def test_info_of_latents_that_come_one_by_one() -> None:
    """Entering does not wait for latents; their shape is known with the first of them."""
    scene = Scene()
    gate = asyncio.Event()

    async def later():  # type: ignore[no-untyped-def]
        await gate.wait()
        async for latent in one_by_one(scene.latents):
            yield latent

    async with scene.stream(later()) as stream:
        assert (stream.info.height, stream.info.frames, stream.info.latents_shape) == (None,) * 3
        assert scene.sink.calls == []
        gate.set()
        await anext(aiter(stream))
        assert (stream.info.height, stream.info.frames) == (8, None)


@virtual
async def test_info_behind_a_transform() -> None:
    """A transform may change the size, so the size is not claimed."""
    scene = Scene()

    def double(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.repeat_interleave(2, 3)

    async with scene.stream(transform=double, normalized=True) as stream:
        assert (stream.info.height, stream.info.width) == (None, None)
        frame = await anext(aiter(stream))
        assert (frame.data.shape, tag(frame.data)) == ((16, 8, 3), 41)  # type: ignore[union-attr]


class Noted(TagCodec):
    """A codec that has to have all latents, and something to say of their shape."""

    needs_length = True

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        return (f"of {shape}", "and more")


@pytest.mark.parametrize("gathered", [False, True])
@virtual
async def test_notes(gathered: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What the stream has to say comes before what the codec says; the log has each line once."""
    scene = Scene(codec=Noted(2))
    with caplog.at_level(logging.WARNING, "streamvae"):
        latents = one_by_one(scene.latents) if gathered else scene.latents
        async with scene.stream(latents) as stream:
            await take(stream, [])
            notes = stream.info.notes
    assert notes[-2:] == ("of (1, 1, 12, 1, 1)", "and more")
    assert [note.partition(" cuts its first chunk")[0] for note in notes[:-2]] == (
        ["TagCodec"] if gathered else []
    )
    assert tuple(record.message for record in caplog.records) == notes


class Sounding(TagCodec):
    """A codec that calls what it gives sound."""

    kind: Kind = "sound"
    sample_rate = 8000


@virtual
async def test_sound_is_never_8_bits() -> None:
    """Sound is what was decoded, and the stream says so; its rate is the codec's."""
    stream = Scene(codec=Sounding(2)).stream()
    await stream.__aenter__()
    try:
        assert (stream.info.output, stream.info.rate) == ("float32", 8000)
    finally:
        await stream.aclose()
