"""``vae.decode`` as it is, in a process of its own: what the demo compares its stream with.

In one process the second of two measurements would find the memory the first one left behind.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ._sync import iter_decode
from .models import default_vae, demo_latents
from .report._memory import PeakMemory, told_by

#: Frames also compared as float32, which takes a second stream; it is left after these.
FLOAT_FRAMES = 9


@dataclass(frozen=True, slots=True)
class Whole:
    """One ``vae.decode`` of the demo's latents, and how the streamed frames compare.

    Attributes:
        seconds: How long it took; its first frame comes with its last.
        peak: Bytes that it added to the memory in use, at most; None where that is not known.
        frames: Frames it gave.
        equal: Frames whose every byte equals the streamed one, quantised by diffusers.
        float_frames: Frames compared as float32 too.
        float_equal: Whether all of those are equal.
    """

    seconds: float
    peak: int | None
    frames: int
    equal: int
    float_frames: int
    float_equal: bool


def compare_with_whole(frames: Path, device: str, latents: int) -> Whole:
    """Decode the demo's latents with ``vae.decode`` in a fresh process and compare.

    Args:
        frames: The streamed frames: bare uint8, (N, H, W, 3).
        device: Where to decode.
        latents: How many of the demo's latents were streamed.

    Raises:
        StreamVAEError: The process failed, as it does without enough memory.
    """
    # With another number of threads torch may take other algorithms, which round otherwise.
    said_to = (str(frames), device, str(latents), str(torch.get_num_threads()))
    told = told_by(__name__, *said_to, what="vae.decode")
    return Whole(**cast("dict[str, Any]", told))


def _main(frames: str, device: str, latents: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    vae, z = default_vae().to(device), demo_latents()[0][:, :, : int(latents)]
    on_device = z.to(device, vae.dtype)
    peak = PeakMemory(device)
    began = time.perf_counter()
    with torch.inference_mode():
        decoded: torch.Tensor = vae.decode(on_device, return_dict=False)[0]
        if decoded.is_cuda:
            torch.cuda.synchronize(decoded.device)
    took, used = time.perf_counter() - began, peak.above()
    with contextlib.closing(iter_decode(z, vae, output="float32")) as stream:
        first = islice(stream, FLOAT_FRAMES)
        floats = torch.stack([torch.as_tensor(frame.data) for frame in first])
    like = decoded[0, :, : len(floats)].permute(1, 2, 3, 0).float().cpu()
    result = Whole(
        seconds=took,
        peak=used,
        frames=decoded.shape[2],
        equal=_equal_frames(decoded, Path(frames)),
        float_frames=len(floats),
        float_equal=torch.equal(floats, like),
    )
    sys.stdout.write(json.dumps(asdict(result)))


def _equal_frames(decoded: torch.Tensor, path: Path) -> int:
    """How many frames equal the streamed ones, brought to bytes by diffusers' own code."""
    from diffusers.video_processor import VideoProcessor

    pictures: list[Any] = VideoProcessor().postprocess_video(decoded, output_type="pil")[0]
    height, width = decoded.shape[3:]
    streamed = torch.from_numpy(np.fromfile(path, np.uint8)).view(-1, height, width, 3)
    whole = (torch.from_numpy(np.array(picture)) for picture in pictures)
    if len(streamed) != len(pictures):
        return 0
    return sum(torch.equal(one, other) for one, other in zip(whole, streamed, strict=True))


if __name__ == "__main__":
    _main(*sys.argv[1:])
