"""What people do without streamvae: decode the whole clip, make numpy pictures of it, write them.

As a pipeline's last lines and diffusers' `export_to_video` do it, with PyAV in imageio's place and
real pictures in the place of those that random weights give.
"""

from __future__ import annotations

import functools
import gc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _loops import CRF, FPS, PRESET, Case, on_launch_thread
from _measure import Json, alternate
from diffusers.video_processor import VideoProcessor


def ways(case: Case, rounds: int) -> dict[str, Json]:
    """Seconds into an MP4: with the streams' preset, and with what PyAV's encoder does by itself.

    Without a run beforehand: the clip has been decoded in one piece before, to compare bits.
    """
    same = {"crf": str(CRF), "preset": PRESET}
    timed = {
        f"mp4, what people do, {PRESET}": functools.partial(_all_at_once, options=same),
        "mp4, what people do, no options": functools.partial(_all_at_once, options={}),
    }
    runs = {name: functools.partial(on_launch_thread, case, way) for name, way in timed.items()}
    return alternate(runs, rounds, warm=False)


def _all_at_once(case: Case, options: dict[str, str]) -> None:
    with torch.no_grad():
        video = case.vae.decode(case.z, return_dict=False)[0]
    frames = VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="np")[0]
    del video
    _written(case.scratch / "out.mp4", frames, case.real, options)
    del frames
    gc.collect()


def _written(
    path: Path,
    frames: npt.NDArray[np.float32],
    real: npt.NDArray[np.uint8] | None,
    options: dict[str, str],
) -> None:
    import av

    if real is None:
        raise RuntimeError("expected pictures for the encoder")
    pictures = [(frame * 255).astype(np.uint8) for frame in frames]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture, _ in zip(real, pictures, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
