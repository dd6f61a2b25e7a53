"""Memory over length, in a process of its own: what ran before would leave its memory behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch

from ..codecs import codec_for
from ..fast import release
from ._bench_clip import Clip, autoencoder, latents
from ._bench_loops import EXACT, FAST, PEOPLE, people, stream, streamed, timed
from ._memory import PeakMemory, told_by


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that a clip takes above what lay there before, its latents among that.

    Attributes:
        way: How it is decoded; into nothing, frames come to the host and are dropped.
        latents: Of the clip.
        frames: Of the clip.
        nbytes: What torch keeps of the device from others, cached or in use; on a CPU the
            process's resident bytes. None where there was not enough, or nobody tells.
        allocated: On a CUDA device, what tensors take of that. A graph's memory is not, while it
            runs, any tensor's.
    """

    way: str
    latents: int
    frames: int
    nbytes: int | None
    allocated: int | None


def peaks(
    source: str | None,
    device: torch.device,
    dtype: torch.dtype | None,
    size: tuple[int, int],
    lengths: tuple[int, ...],
    *,
    ways: tuple[str, ...] = (PEOPLE, EXACT),
) -> tuple[Peak, ...]:
    """Measure each way at each length.

    On a CPU each way has a process of its own, for a process gives no memory back.

    Args:
        source: As for `autoencoder`.
        device: Where.
        dtype: Of the weights.
        size: Height and width of the pictures.
        lengths: Latents, ascending.
        ways: As for `measured`.

    Raises:
        StreamVAEError: A process failed.
    """
    told: list[dict[str, object]] = []
    for group in [ways] if device.type == "cuda" else [(way,) for way in ways]:
        asked = {
            "source": source,
            "device": str(device),
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "size": size,
            "lengths": lengths,
            "ways": group,
            "threads": torch.get_num_threads(),
        }
        said = told_by(__name__, json.dumps(asked), what="measuring memory")
        told += cast("list[dict[str, object]]", said)
    return tuple(Peak(**row) for row in told)  # type: ignore[arg-type]  # as `_main` wrote them


def measured(
    vae: torch.nn.Module, size: tuple[int, int], lengths: tuple[int, ...], ways: tuple[str, ...]
) -> Iterator[Peak]:
    """Measure in this process; of a way that had not enough memory, no longer clips are tried.

    Args:
        vae: What decodes.
        size: Height and width of the pictures.
        lengths: Latents, ascending.
        ways: `PEOPLE`, `EXACT`, `FAST`, or some of them.
    """
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner() as runner:
        for way in ways:
            yield from _of_one(vae, size, lengths, way, (Path(scratch), runner))


def _of_one(
    vae: torch.nn.Module,
    size: tuple[int, int],
    lengths: tuple[int, ...],
    way: str,
    room: tuple[Path, asyncio.Runner],
) -> Iterator[Peak]:
    codec = codec_for(vae)
    device = str(codec.device)
    clips = {steps: Clip(vae, latents(codec, size, steps), *room) for steps in lengths}
    release()
    reserved = PeakMemory(device, reserved=True)
    allocated = PeakMemory(device) if codec.device.type == "cuda" else None
    with contextlib.suppress(torch.OutOfMemoryError):
        _WAYS[way](clips[lengths[0]])  # what is loaded and chosen once, and stays
    enough = True
    for steps, clip in clips.items():
        reserved.restart()
        if allocated is not None:
            torch.cuda.empty_cache()
        try:
            if enough:
                _WAYS[way](clip)
        except torch.OutOfMemoryError:
            enough = False
        frames = codec.frames(steps) or 0
        own = None if allocated is None or not enough else allocated.above()
        yield Peak(way, steps, frames, reserved.above() if enough else None, own)


def _people(clip: Clip) -> None:
    timed(clip, lambda: people(clip, "nothing"))


def _exact(clip: Clip) -> None:
    streamed(clip, lambda: stream(clip, "nothing"))


def _fast(clip: Clip) -> None:
    streamed(clip, lambda: stream(clip, "nothing", "fast"))


_WAYS: dict[str, Callable[[Clip], None]] = {PEOPLE: _people, EXACT: _exact, FAST: _fast}


def _main(said: str) -> None:
    asked = json.loads(said)
    torch.set_num_threads(asked["threads"])
    dtype = None if asked["dtype"] is None else getattr(torch, asked["dtype"])
    vae = autoencoder(asked["source"], asked["device"], dtype)
    rows = measured(vae, tuple(asked["size"]), tuple(asked["lengths"]), tuple(asked["ways"]))
    sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
