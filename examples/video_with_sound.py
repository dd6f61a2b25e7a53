"""Video with sound into one MP4, in time order; by LTX-2's own classes, tiny and untrained."""

import asyncio

import av
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from streamvae import VideoFile, stream_decode_av

FPS = 24


def decoders() -> tuple[object, tuple[object, object]]:
    """What a pipeline holds as ``pipe.vae``, ``pipe.audio_vae`` and ``pipe.vocoder``."""
    video = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_block_out_channels=(16, 32, 64),
        decoder_layers_per_block=(1, 1, 1, 1),
    )
    mel = AutoencoderKLLTX2Audio(base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1)
    vocoder = LTX2Vocoder(hidden_channels=32)  # 240 samples a mel frame: 24 kHz
    return video.eval(), (mel.eval(), vocoder.eval())


async def main() -> None:
    """Decode two seconds of noise.

    With a pipeline it is the pipeline that decodes, and latents are those that its call gave with
    ``output_type="latent", return_dict=False``: ``stream_decode_av(*latents, pipe, fps=24)``.
    """
    torch.manual_seed(0)
    video_latents = torch.randn(1, 8, 7, 4, 6)  # 49 frames of 192 x 128 pixels
    audio_latents = torch.randn(1, 8, 51, 16)  # 201 mel frames of 64 bins
    async with stream_decode_av(
        video_latents,
        audio_latents,
        decoders(),
        fps=FPS,
        sinks=VideoFile("video_with_sound.mp4", crf=20, overwrite=True),
        audio_latents_per_chunk=8,
    ) as stream:
        async for frame in stream:  # for the sinks' sake alone, await stream.finish()
            what = f"{len(frame.data)} samples" if frame.is_sound else f"picture {frame.index}"
            print(f"{frame.time:6.3f} s  {what}")
    with av.open("video_with_sound.mp4") as kept:
        for track in kept.streams:
            print(f"{track.type}: {float(track.duration * track.time_base):.3f} s")


asyncio.run(main())
