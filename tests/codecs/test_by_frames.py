from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline

from streamvae._errors import ClosedError, LatentsError, UsageError
from streamvae.abc import ChunkPlan, Codec
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, walk
from tests.families.by_frames import svd


@pytest.mark.parametrize("size", [1, 2, 5, 9])
@torch.no_grad()
def test_equals_the_pipeline(size: int) -> None:
    """Frames equal those of StableVideoDiffusionPipeline at the same decode_chunk_size."""
    vae = svd()
    latents = noise(5, 4, 2, 3)
    pipe = SimpleNamespace(vae=vae)
    expected = StableVideoDiffusionPipeline.decode_latents(pipe, latents[None], 5, size)
    codec = codec_for(vae, {"num_frames": 5, "decode_chunk_size": size})

    given = walk(codec, codec.denormalize(latents))

    assert torch.equal(given, expected)
    assert codec.picture((5, 4, 2, 3)) == tuple(expected.shape[3:])
    assert (f"decode_chunk_size={size}" in codec.exactness) == (size != 5)


@pytest.mark.parametrize("call", [{}, {"num_frames": 4}])
@torch.no_grad()
def test_whole_clip(call: dict[str, object]) -> None:
    """Without a chunk size the clip is decoded at once, as vae.decode does it."""
    vae = svd()
    latents = noise(4, 4, 2, 3)
    codec = codec_for(vae, call)
    expected = vae.decode(latents, num_frames=4).sample.movedim(0, 1)[None]

    assert codec.cut(4, None, "exact") == ChunkPlan(4, 4)
    assert codec.needs_length == (not call)
    assert "all frames at once" in codec.exactness
    assert torch.equal(walk(codec, latents), expected)


def test_is_a_codec_over_frames() -> None:
    """Latents are frames of one clip, cut along the first dimension."""
    codec = codec_for(svd())
    assert isinstance(codec, Codec)
    assert (codec.kind, codec.layout, codec.axis, codec.frames(7)) == ("video", "TCHW", 0, 7)


def test_one_clip_only() -> None:
    """Frames of two clips are refused, not decoded as one."""
    codec = codec_for(svd(), {"num_frames": 3})
    codec.check((3, 4, 2, 2))
    codec.check((1, 4, 2, 2))
    for refuse in (lambda: codec.check((6, 4, 2, 2)), lambda: codec.cut(6, None, "exact")):
        with pytest.raises(LatentsError, match="one clip of num_frames=3, got 6 .* on its own"):
            refuse()
    with pytest.raises(LatentsError, match="num_frames=3, got 2"):
        codec.cut(2, None, "exact")
    with pytest.raises(LatentsError, match=r"\(T, C, H, W\) with C = 4.*got shape \(2, 3, 4"):
        codec.check((2, 3, 4, 2, 2))


def test_other_chunks() -> None:
    """Another number of frames at a time is another function: it has to be asked for by name."""
    codec = codec_for(svd(), {"decode_chunk_size": 3})
    assert codec.cut(7, 3, "exact") == codec.cut(None, None, "exact") == ChunkPlan(3, 3)
    for mode in ("exact", "fast"):
        with pytest.raises(UsageError, match=r"=3, .*got 2; .*call=\{'decode_chunk_size': 2\}"):
            codec.cut(7, 2, mode)
    with pytest.raises(UsageError, match="whose number is known"):
        codec_for(svd()).cut(None, None, "exact")


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True])
@pytest.mark.parametrize("name", ["num_frames", "decode_chunk_size"])
def test_bad_arguments(name: str, value: object) -> None:
    """What is no number of frames is refused by name."""
    with pytest.raises(UsageError, match=f"expected {name} of at least 1, got"):
        codec_for(svd(), {name: value})


@torch.no_grad()
def test_closed() -> None:
    """A closed decoder says so."""
    decoder = codec_for(svd()).decoder()
    assert decoder.drain() is None
    decoder.close()
    decoder.close()
    with pytest.raises(ClosedError):
        decoder.decode(noise(1, 4, 2, 2))
    with pytest.raises(ClosedError):
        decoder.drain()
