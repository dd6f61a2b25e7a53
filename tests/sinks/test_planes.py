"""Planes of 4:2:0 made on the device: when, and that the video is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from streamvae import NpyFile, UsageError, VideoFile, stream_decode
from streamvae._chunks import HostChunk, StreamInfo
from streamvae.abc import Sink
from streamvae.testing import FakeBackend, MemorySink, TagCodec, tagged_latents
from tests.sinks.streams import psnr, read_mp4


class Planes(MemorySink):
    """A sink that takes planes, and remembers what it got."""

    takes = ("rgb24", "gray", "yuv420p")

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[HostChunk] = []

    async def write(self, chunk: HostChunk) -> None:
        """Remember the chunk."""
        self.chunks.append(chunk)


def coloured(height: int = 48, width: int = 64, channels: int = 3):  # type: ignore[no-untyped-def]
    """A transform that paints waves of colour, which the tag of each frame moves."""

    def paint(pixels: torch.Tensor) -> torch.Tensor:
        tags = pixels[:, :1, :, :1, :1] * 3
        y = torch.linspace(-2, 2, height).view(1, 1, 1, height, 1)
        x = torch.linspace(-3, 3, width).view(1, 1, 1, 1, width)
        waves = [torch.sin(x + tags + y * 0), torch.cos(y - tags + x * 0), torch.sin(x + y + tags)]
        return torch.cat([*waves, waves[0]][:channels], 1) * 0.8

    return paint


async def finish(sinks, *, makes_planes: bool = True, **options) -> StreamInfo:  # type: ignore[no-untyped-def]
    """Run a stream of nine frames to its end for the sinks' sake."""
    stream = stream_decode(
        tagged_latents(9, size=6),
        TagCodec(),
        sinks=sinks,
        backend=FakeBackend(makes_planes=makes_planes),
        **{"fps": 16.0, "transform": coloured(), **options},
    )
    await stream.finish()
    return stream.info


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
async def test_the_video_is_that_of_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    """The same frames as by way of RGB, within rounding; odd sizes padded in the same way."""
    files = [VideoFile(tmp_path / f"{way}.mp4", crf=0) for way in ("pixels", "planes")]
    for file, makes_planes in zip(files, (False, True), strict=True):
        info = await finish(file, makes_planes=makes_planes, transform=coloured(*size))
        assert info.pixel_format == ("yuv420p" if makes_planes else None)
    pixels, planes = (read_mp4(file.path).astype(int) for file in files)
    assert pixels.shape == planes.shape == (9, 48, 64, 3)
    assert np.abs(pixels - planes).max() <= 4  # a level of each plane, and of lossy coding
    assert abs(np.mean(pixels - planes)) < 0.1


async def test_half_the_bytes_and_the_real_size(tmp_path: Path) -> None:
    """A chunk of planes has 1.5 bytes a pixel, its format's name and the picture's real size."""
    sink = Planes()
    info = await finish([sink, VideoFile(tmp_path / "a.mp4")], transform=coloured(47, 63))
    assert info == sink.info
    for chunk in sink.chunks:
        assert (chunk.format, chunk.picture) == ("yuv420p", (47, 63))
        assert chunk.data.shape == (1, len(chunk), 72, 64, 1)
        assert not chunk.data.flags.writeable
        with pytest.raises(UsageError, match="expected pixels to take frames from, got yuv420p"):
            chunk.frames(16.0)
    assert sum(len(chunk) for chunk in sink.chunks) == 9


async def test_grey_is_made_planes_too(tmp_path: Path) -> None:
    """Grey video has chroma of nothing."""
    sink = Planes()
    await finish(sink, transform=None)
    for chunk in sink.chunks:
        assert (chunk.data[0, :, 48:] == 128).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lossless.mkv", {"codec": "ffv1"}),
        ("a.npy", {}),
    ],
)
async def test_not_where_a_sink_needs_pixels(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    """One sink that keeps RGB has all sinks get RGB."""
    path = tmp_path / name
    other: Sink = VideoFile(path, **options) if options else NpyFile(path)  # type: ignore[arg-type]
    sink = Planes()
    info = await finish([sink, other])
    assert info.pixel_format is None
    assert {chunk.format for chunk in sink.chunks} == {"rgb24"}


async def test_not_where_somebody_looks() -> None:
    """Who iterates gets pixels, and so do sinks of a stream that was entered before `finish`."""
    options = {"fps": 16.0, "transform": coloured(), "backend": FakeBackend(makes_planes=True)}
    for way in ("iterated", "entered"):
        sink = Planes()
        stream = stream_decode(tagged_latents(9), TagCodec(), sinks=sink, **options)  # type: ignore[arg-type]
        async with stream:
            if way == "entered":
                await stream.finish()
            else:
                assert {frame.data.shape async for frame in stream} == {(48, 64, 3)}
        assert stream.info.pixel_format is None
        assert {chunk.format for chunk in sink.chunks} == {"rgb24"}


async def test_not_where_there_are_none_or_no_bytes() -> None:
    """Without sinks, and with float32, there is nothing to make planes for or of."""
    assert (await finish(())).pixel_format is None
    assert (await finish(Planes(), output="float32")).pixel_format is None


async def test_transparency_stays(tmp_path: Path) -> None:
    """Pixels of four channels have no planes: the sink gets them and says what it thinks."""
    with pytest.raises(UsageError, match=r"with 1 or 3 channels, got uint8 with 4"):
        await finish(VideoFile(tmp_path / "a.mp4"), transform=coloured(channels=4))


async def test_odd_planes_are_refused_by_choice(tmp_path: Path) -> None:
    """odd='refuse' looks at the picture, not at the planes, which are always even."""
    with pytest.raises(UsageError, match="even size, got 63x47"):
        await finish(VideoFile(tmp_path / "a.mp4", odd="refuse"), transform=coloured(47, 63))


async def test_quality(tmp_path: Path) -> None:
    """The default quality loses as little by way of planes as by way of RGB."""
    file, kept = VideoFile(tmp_path / "a.mp4"), NpyFile(tmp_path / "a.npy")
    await finish(file)
    await finish(kept)
    assert psnr(read_mp4(file.path), np.load(kept.path)) >= 34  # chroma at half the size
