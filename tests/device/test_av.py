"""Video with sound on a CUDA device: both streams in turns on it, and each as diffusers has it."""

import numpy as np
import pytest
import torch

from streamvae import stream_decode_av
from tests.codecs.walk import noise
from tests.families.lookahead import ltx2
from tests.families.sound import ltx2_audio, ltx2_vocoder, ltx2_wide

from . import card

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32: cuDNN takes TF32, of ten bits, unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("make", [ltx2_vocoder, ltx2_wide])
async def test_frames_and_sound_are_those_of_the_parts(make) -> None:
    """In float32 within rounding; in time order, over both queues and one device."""
    vae, audio_vae = ltx2().to(card.DEVICE), ltx2_audio().to(card.DEVICE)
    vocoder = make(in_channels=32).to(card.DEVICE)
    latents = noise(1, 8, 5, 2, 3).to(card.DEVICE), noise(1, 4, 60, 4).to(card.DEVICE)
    with torch.no_grad():
        video = vae.decode(latents[0], return_dict=False)[0]
        sound = vocoder(audio_vae.decode(latents[1], return_dict=False)[0])

    stream = stream_decode_av(
        *latents,
        (vae, (audio_vae, vocoder)),
        fps=24.0,
        output="float32",
        audio_latents_per_chunk=8,
    )
    pictures, blocks, last = [], [], 0.0
    async with stream:
        async for frame in stream:
            assert frame.time >= last
            last = frame.time
            (blocks if frame.is_sound else pictures).append(frame.data)

    # cuDNN may take another algorithm for other shapes: what rounds on a CPU rounds more here.
    for given, expected in (
        (np.stack(pictures), video[0].movedim(0, -1)),
        (np.concatenate(blocks), sound[0].T),
    ):
        wanted = expected.cpu().numpy()
        assert given.shape == wanted.shape
        assert np.abs(given - wanted).max() <= 1e-3
