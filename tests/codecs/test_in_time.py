"""Pictures that are the frames of a clip."""

import pytest
import torch

import streamvae
from streamvae._errors import LatentsError, UsageError
from streamvae.codecs import codec_for
from tests import tiny
from tests.codecs.walk import noise


def _latents() -> torch.Tensor:
    return noise(1, 4, 5, 3, 2)[0].movedim(0, 1).contiguous()  # (T, C, h, w)


@pytest.mark.parametrize("together", [1, 2, 5, 8])
def test_frames_are_decoded_as_many_together_as_the_pipeline_would(together: int) -> None:
    """Each chunk is one ``vae.decode``, bit for bit, and the frames are those of one clip."""
    vae = tiny.kl()
    latents = _latents()
    with torch.no_grad():
        expected = torch.cat([vae.decode(part).sample for part in latents.split(together)])
    call = {"decode_chunk_size": together}
    streamed = streamvae.collect(latents, vae, call=call, output="float32")
    assert streamed.shape == (1, 5, 6, 4, 3)
    assert torch.equal(torch.from_numpy(streamed[0]), expected.permute(0, 2, 3, 1))


def test_tiling_is_the_autoencoders_own() -> None:
    """With spatial tiling on, frames are those of the tiled decode, and their size is foretold."""
    vae = tiny.kl()
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 2, 4
    latents = _latents()
    with torch.no_grad():
        expected = vae.decode(latents[:2]).sample
    streamed = streamvae.collect(latents, vae, call={"decode_chunk_size": 2}, output="float32")
    assert torch.equal(torch.from_numpy(streamed[0, :2]), expected.permute(0, 2, 3, 1))


def test_another_number_of_frames_together_is_refused_in_exact_mode() -> None:
    """It would change rounding: exact mode refuses, fast mode does it."""
    codec = codec_for(tiny.kl(), {"decode_chunk_size": 4})
    with pytest.raises(UsageError, match=r"expected latents_per_chunk=4 .* got 2"):
        codec.cut(5, 2, "exact")
    assert codec.cut(5, 2, "fast").rest == 2


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_a_chunk_size_that_is_none_is_refused(size: object) -> None:
    """What is no number of frames raises when the codec is made."""
    with pytest.raises(UsageError, match="decode_chunk_size of at least 1"):
        codec_for(tiny.kl(), {"decode_chunk_size": size})


def test_latents_of_another_layout_are_refused() -> None:
    """A clip's latents are (T, C, h, w)."""
    with pytest.raises(LatentsError, match=r"expected latents \(T, C, H, W\)"):
        codec_for(tiny.kl(), {"decode_chunk_size": 1}).check((1, 4, 5, 3, 2))
