"""The demo: the embedded VAE and its latents, streamed, looked at and compared."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ._chunks import StreamInfo
from ._errors import UsageError
from ._stats import StreamStats
from ._terminal import mebibytes, run_stream, seconds
from ._whole import Whole, compare_with_whole
from .codecs import codec_for
from .models import default_vae, demo_latents
from .report._memory import PeakMemory
from .sinks import RawFile, VideoFile

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: Written into the contact sheet, so that the next demo knows what it may replace.
MARK = "streamvae demo"

ROWS, COLUMNS = 3, 4
#: Pixels across one picture of the contact sheet.
ACROSS = 224


@dataclass(frozen=True, slots=True)
class Streamed:
    """What the demo's stream was like.

    Attributes:
        info: What was known of it.
        stats: What its stages did.
        peak: Bytes that it added to the memory in use, at most; None where that is not known.
        video: The film.
        sheet: The contact sheet.
        whole: What ``vae.decode`` is like.
    """

    info: StreamInfo
    stats: StreamStats
    peak: int | None
    video: Path
    sheet: Path
    whole: Whole


def run_demo(folder: Path, *, overwrite: bool, device: str, limit: float | None) -> Streamed:
    """Stream the embedded clip into ``demo.mp4`` and ``demo.png``; compare with ``vae.decode``.

    Args:
        folder: Where to; made if it is not there.
        overwrite: Whether files of these names may be replaced, even if no demo wrote them.
        device: Where to decode.
        limit: Seconds of the clip; None for all of it.

    Raises:
        UsageError: Files of these names are there that no demo wrote.
        MissingDependencyError: PyAV is not installed.
    """
    video, sheet = folder / "demo.mp4", folder / "demo.png"
    there = [str(path) for path in (video, sheet) if path.exists()]
    if there and not overwrite and not _is_ours(sheet):
        raise UsageError(
            f"{' and '.join(there)} would be replaced, and no earlier demo wrote it; "
            "pass --overwrite, or --out with another folder"
        )
    film = VideoFile(video, overwrite=True)
    from .sinks import _encoder  # noqa: F401  # its libraries are loaded before memory is measured

    vae = default_vae().to(device)
    latents, fps = demo_latents()
    latents = _first(latents, vae, fps, limit)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="streamvae-") as room:
        frames = RawFile(Path(room, "frames.raw"))
        memory = PeakMemory(device)
        info, stats = run_stream(latents, vae, [film], "streaming", [frames], fps=fps)
        peak = memory.above()
        shape = json.loads(frames.sidecar.read_text(encoding="utf-8"))["shape"]
        pixels = np.memmap(frames.path, np.uint8, "r", shape=tuple(shape))
        _save_sheet(contact_sheet(pixels, fps), sheet)
        del pixels  # Windows removes no file that is mapped
        try:
            whole = compare_with_whole(frames.path, device, latents.shape[2])
        except BaseException as error:
            error.add_note(f"{video} and {sheet} are complete, but not compared with vae.decode")
            raise
    return Streamed(info, stats, peak, video, sheet, whole)


def contact_sheet(frames: npt.NDArray[np.uint8], fps: float) -> Picture:
    """Lay out twelve frames from first to last, each with its time.

    Args:
        frames: (N, H, W, 3), uint8 RGB.
        fps: Frames a second.
    """
    from PIL import Image, ImageDraw

    count, height, width = frames.shape[:3]
    size = (ACROSS, round(ACROSS * height / width))
    chosen = np.unique(np.linspace(0, count - 1, ROWS * COLUMNS).round().astype(int))
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * size[0], rows * size[1]))
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        corner = (place % COLUMNS * size[0], place // COLUMNS * size[1])
        sheet.paste(Image.fromarray(frames[index]).resize(size, Image.Resampling.LANCZOS), corner)
        text = f"{index / fps:.2f} s"
        at = (corner[0] + 4, corner[1] + 2)
        draw.rectangle(draw.textbbox(at, text), fill="black")
        draw.text(at, text, fill="white")
    return sheet


def lines(demo: Streamed) -> list[str]:
    """What the demo says, a line each."""
    info, stats, whole = demo.info, demo.stats, demo.whole
    rate, whole_rate = stats.frames / stats.total, whole.frames / whole.seconds
    table = (
        ("", "streamed", "vae.decode"),
        ("first frame after", seconds(stats.first_chunk), seconds(whole.seconds)),
        ("all frames after", seconds(stats.total), seconds(whole.seconds)),
        ("frames a second", f"{rate:.1f}", f"{whole_rate:.1f}"),
        ("memory added, at most", mebibytes(demo.peak), mebibytes(whole.peak)),
    )
    size = f"{info.width}x{info.height}"
    return [
        f"{stats.frames} frames of {size}, {info.family} on {info.device}",
        *(f"{name:24}{one:>14}{other:>14}" for name, one, other in table),
        "(the stream encoded and wrote its video meanwhile; vae.decode wrote nothing)",
        f"exact: {exactness(whole, stats.frames)}",
        f"limit: {stats.bottleneck}",
        f"wrote {demo.video} and {demo.sheet}",
    ]


def is_exact(whole: Whole, frames: int) -> bool:
    """Whether every compared frame was equal, and none was missing."""
    return whole.equal == whole.frames == frames and whole.float_equal


def exactness(whole: Whole, frames: int) -> str:
    """How the streamed frames compare with those of ``vae.decode``, in words."""
    equal = "equal" if whole.float_equal else "not equal"
    floats = f"float32: the first {whole.float_frames} frames {equal}"
    if whole.equal == whole.frames == frames:
        return f"all {frames} frames equal those of vae.decode, byte for byte ({floats})"
    return (
        f"NO: {whole.equal} of {frames} streamed frames equal those of vae.decode, "
        f"which gave {whole.frames} ({floats})"
    )


def _first(
    latents: torch.Tensor, vae: torch.nn.Module, fps: float, limit: float | None
) -> torch.Tensor:
    """The latents of the first ``limit`` seconds, at least one."""
    codec, count = codec_for(vae), latents.shape[2]
    if limit is not None:
        enough = (n for n in range(1, count) if (codec.frames(n) or 0) >= limit * fps)
        count = next(enough, count)
    return latents[:, :, :count]


def _is_ours(sheet: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(sheet) as picture:
            return picture.info.get("Software") == MARK
    except OSError:
        return False


def _save_sheet(sheet: Picture, path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", MARK)
    partial = path.with_name(path.name + ".partial")
    few = sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)  # a third of the bytes
    few.save(partial, "PNG", pnginfo=text, optimize=True)
    partial.replace(path)
