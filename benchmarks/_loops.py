"""The ways that programs here compare; `streamvae bench` has the same ones."""

from __future__ import annotations

from streamvae.report._bench_clip import Clip as Case
from streamvae.report._bench_loops import (
    device_alone,
    on_launch_thread,
    rendered,
    stream,
    streamed,
    synchronous,
    timed,
)
from streamvae.report._bench_video import CRF, FPS, PRESET, RealContent

__all__ = [
    "CRF",
    "FPS",
    "PRESET",
    "Case",
    "RealContent",
    "device_alone",
    "on_launch_thread",
    "rendered",
    "stream",
    "streamed",
    "streamed_mp4",
    "streamed_raw",
    "synchronous_mp4",
    "synchronous_raw",
    "timed",
]


def synchronous_raw(case: Case) -> None:
    """Decode a chunk, ``.cpu()``, write; and again."""
    synchronous(case, "raw")


def synchronous_mp4(case: Case) -> None:
    """Decode a chunk, ``.cpu()``, encode a chunk of real content; and again."""
    synchronous(case, "mp4")


async def streamed_raw(case: Case) -> None:
    """Streamvae into a raw file."""
    await stream(case, "raw")


async def streamed_mp4(case: Case) -> None:
    """Streamvae into an MP4 of real content."""
    await stream(case, "mp4")
