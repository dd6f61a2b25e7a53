"""Planes of 4:2:0 made on a CUDA device: those of swscale, chosen by itself, the same video."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from diffusers import AutoencoderKLWan

from streamvae import HostChunk, StreamInfo, VideoFile, asave, stream_decode
from streamvae._pixels import yuv420p
from streamvae.abc import Sink
from streamvae.testing import MemorySink
from tests.sinks.streams import read_mp4

from . import card

pytestmark = pytest.mark.cuda


class _Seen(MemorySink):
    """A sink that takes planes and keeps them, with what is known of the stream."""

    takes = ("rgb24", "gray", "yuv420p")

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[HostChunk] = []

    async def write(self, chunk: HostChunk) -> None:
        """Keep it."""
        self.chunks.append(chunk)


async def _saved(latents: torch.Tensor, vae: AutoencoderKLWan, file: Sink) -> StreamInfo:
    seen = _Seen()
    await asave(latents, vae, [seen, file], fps=16.0)
    assert seen.info is not None
    return seen.info


@pytest.mark.parametrize("size", [(720, 1280), (255, 447), (48, 64)])
def test_planes_are_swscale_s_within_a_level(size: tuple[int, int]) -> None:
    """Noise, the worst there is, comes within one level of FFmpeg's conversion on the host."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (1, 2, height, width, 3), generator=generator, dtype=torch.uint8)
    made = yuv420p(picture.to(card.DEVICE)).cpu()
    assert torch.equal(made, yuv420p(picture)) or (made.int() - yuv420p(picture)).abs().max() <= 1
    even = np.pad(picture[0].numpy(), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    for planes, pixels in zip(made[0].numpy(), even, strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR
            | Interpolation.ACCURATE_RND
            | Interpolation.FULL_CHR_H_INP,
        )
        assert np.abs(planes.astype(int) - frame.to_ndarray()).max() <= 1


async def test_the_mp4_is_that_of_pixels(vae: AutoencoderKLWan, tmp_path: Path) -> None:
    """A sink alone gets planes, beside somebody who looks RGB; both files show the same."""
    z = card.latents(vae, 5)
    planes, pixels = (VideoFile(tmp_path / f"{way}.mp4", crf=0) for way in ("planes", "pixels"))
    assert (await _saved(z, vae, planes)).pixel_format == "yuv420p"
    async with stream_decode(z, vae, sinks=pixels, fps=16.0) as stream:
        async for _ in stream:
            assert stream.info.pixel_format is None
    left, right = (read_mp4(file.path).astype(int) for file in (planes, pixels))
    assert left.shape == right.shape
    # crf=0 keeps the planes as they are: what is left is a level of each, times the matrix.
    assert np.abs(left - right).max() <= 4
    assert abs(np.mean(left - right)) < 0.1


async def test_half_the_bytes_arrive(vae: AutoencoderKLWan) -> None:
    """A chunk of planes is half of what its pixels would be."""
    z = card.latents(vae, 3)
    seen, rgb = _Seen(), card.whole(vae, z)
    await asave(z, vae, [seen], fps=16.0)
    assert sum(chunk.data.nbytes for chunk in seen.chunks) == rgb.nbytes // 2
    assert {chunk.format for chunk in seen.chunks} == {"yuv420p"}
    assert {chunk.picture for chunk in seen.chunks} == {rgb.shape[2:4]}
