"""The public API as a type checker sees it: checked by mypy, strictly; never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal, assert_type

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from streamvae import (
    AVInfo,
    AVStats,
    AVStream,
    Band,
    ChunkSpan,
    DeviceFrames,
    Frame,
    FrameStream,
    HostChunk,
    NonFiniteError,
    NpyFile,
    Percentiles,
    Plan,
    RawFile,
    SinkTimeout,
    StageTimeout,
    StageTimes,
    StreamInfo,
    StreamStats,
    StreamVAEError,
    Verification,
    VideoFile,
    asave,
    collect,
    collect_av,
    iter_decode,
    iter_decode_av,
    save,
    save_av,
    stream_decode,
    stream_decode_av,
    stream_pipeline,
    verify,
)
from streamvae.abc import Backend, Codec, Sink
from streamvae.testing import FakeBackend, MemorySink, TagCodec

Array = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


async def streaming(latents: torch.Tensor, pipe: object) -> None:
    """A stream is iterated over, asked for what is known of it, and left."""
    assert_type(stream_decode(latents), FrameStream)
    async with stream_decode(latents, pipe, fps=16) as stream:
        assert_type(stream, FrameStream)
        assert_type(stream.info, StreamInfo)
        assert_type(stream.info.plan, Plan | None)
        async for frame in stream:
            assert_type(frame, Frame)
            assert_type(frame.index, int)
            assert_type(frame.time, float | None)
            assert_type(frame.batch_index, int)
            assert_type(frame.data, Array | torch.Tensor)
            assert_type(frame.to_pil(), Image)
        assert_type(stream.stats, StreamStats)
        assert_type(stream.stats.stages, tuple[StageTimes, ...])
        assert_type(stream.stats.bottleneck, str)
        assert_type(stream.stats.timeline, tuple[ChunkSpan, ...])
        assert_type(stream.stats.device_busy, float | None)
        assert_type(stream.stats.between_frames, Percentiles | None)
    await stream.aclose()


async def with_sound(video: torch.Tensor, audio: torch.Tensor, pipe: object) -> None:
    """Video and its sound are one stream, of a pipeline or of a pair of decoders."""
    assert_type(stream_decode_av(video, audio, pipe, fps=24), AVStream)
    async with stream_decode_av(video, audio, (pipe, (pipe, pipe)), fps=24.0) as stream:
        assert_type(stream, AVStream)
        assert_type(stream.info, AVInfo)
        assert_type((stream.info.video, stream.info.audio), tuple[StreamInfo, StreamInfo])
        async for frame in stream:
            assert_type(frame, Frame)
            assert_type(frame.is_sound, bool)
        assert_type(stream.stats, AVStats)
        assert_type(stream.stats.video, StreamStats)
    stream = stream_decode_av(
        video,
        audio,
        pipe,
        video_sinks="out.mp4",
        audio_sinks=["out.npy", own_sink],
        audio_latents_per_chunk=4,
        call={"frame_rate": 24.0},
    )
    assert_type(await stream.finish(), AVStats)
    both = await stream.collect()
    assert_type(both, tuple[Array | torch.Tensor, Array | torch.Tensor])
    async for chunk in stream.chunks():
        assert_type(chunk, HostChunk | DeviceFrames)
    assert_type(
        collect_av(video, audio, pipe, fps=24), tuple[Array | torch.Tensor, Array | torch.Tensor]
    )
    for frame in iter_decode_av(video, audio, pipe, fps=24, audio_sinks="out.npy", mode="fast"):
        assert_type(frame, Frame)
    stream_decode_av(video, audio)  # type: ignore[call-arg]
    stream_decode_av(video, audio, pipe, sinks="out.mp4")
    stream_decode_av(video, audio, pipe, sinks=lambda chunk: None)  # type: ignore[arg-type]
    assert_type(save_av(video, audio, pipe, sinks=["a.mp4", VideoFile("b.mkv")]), AVStats)


async def generating(pipe: object) -> None:
    """A pipeline is run first; what is no option of a stream is an argument of its call."""
    assert_type(stream_pipeline(pipe, prompt="a cat", num_inference_steps=4), FrameStream)
    stream_pipeline(pipe, sinks="out.mp4", fps=16, output="float32", prompt="a cat")
    stream_pipeline(pipe, output="uint16")  # type: ignore[arg-type]


def planning(plan: Plan) -> None:
    """A plan tells chunks at once; what may be unknown is None."""
    assert_type(plan.chunks, tuple[int, ...])
    assert_type(plan.frames, tuple[int, ...] | None)
    assert_type((plan.total, plan.drained), tuple[int | None, int | None])
    assert_type((plan.state_bytes, plan.launch_bytes), tuple[int | None, int | None])
    assert_type((plan.device_bytes, plan.host_bytes), tuple[int | None, int | None])
    assert_type(str(plan), str)


async def whole(latents: torch.Tensor) -> None:
    """What gives more than a frame at a time."""
    async for chunk in stream_decode(latents).chunks():
        assert_type(chunk, HostChunk | DeviceFrames)
        assert_type(chunk.band, Band | None)
        assert_type(len(chunk), int)
        assert_type(chunk.frames(24.0), Iterator[Frame])
    assert_type(await stream_decode(latents).finish(), StreamStats)
    assert_type(await stream_decode(latents).collect(), Array | torch.Tensor)


def without_a_loop(latents: torch.Tensor, vae: torch.nn.Module) -> None:
    """The calls for people without a loop take the options of `stream_decode`."""
    assert_type(save(latents, vae, "out.mp4", fps=16), StreamStats)
    assert_type(collect(latents, vae, output="float32"), Array | torch.Tensor)
    for frame in iter_decode(latents, vae, fps=24, nonfinite="warn"):
        assert_type(frame, Frame)
    save(latents, vae, "out.mp4", fps="16")  # type: ignore[arg-type]
    collect(latents, vae, frames_per_second=16)  # type: ignore[call-arg]


def proving(vae: torch.nn.Module, array: npt.NDArray[np.float32]) -> None:
    """A verification is told what to decode with, and what to decode or nothing."""
    found = verify(vae)
    assert_type(found, Verification)
    assert_type(found.verdict, Literal["equal", "accepted", "within rounding", "different"])
    assert_type((found.difference, found.equal_bytes), tuple[float, float])
    assert_type((found.wide, found.wide_tolerance), tuple[float | None, float | None])
    assert_type(str(found), str)
    verify(None, array)
    verify("path/or/id", "latents.npy", call={"temb": torch.tensor([0.05])}, mode="fast")
    verify(vae, Path("latents.npy"), reference=lambda latents: latents, normalized=True, seed=1)
    verify(vae, mode="quick")  # type: ignore[arg-type]
    verify(vae, 7)  # type: ignore[arg-type]


async def one_by_one() -> AsyncIterator[torch.Tensor]:
    """A model that is still generating."""
    yield torch.zeros(1, 16, 1, 60, 104)


async def latents_from_anywhere(array: npt.NDArray[np.float32]) -> None:
    """Latents may come as a tensor, an array, a path, or one by one."""
    stream_decode(array)
    stream_decode("latents.safetensors")
    stream_decode(Path("latents.npy"))
    stream_decode([torch.zeros(1), torch.zeros(1)])
    stream_decode(array for _ in range(3))
    stream_decode(one_by_one())
    stream_decode(7)  # type: ignore[arg-type]


async def own_sink(chunk: HostChunk) -> None:
    """A sink in its smallest form."""
    assert_type(chunk.data, Array)


async def sinks(latents: torch.Tensor, pipe: object, tmp: Path, other: Sink) -> None:
    """Sinks are paths, sinks with options, or async callables; one or several."""
    stream_decode(latents, pipe, sinks="out.npy")
    stream_decode(latents, pipe, sinks=tmp / "out.raw")
    stream_decode(latents, pipe, sinks=own_sink)
    stream_decode(latents, pipe, sinks=[tmp / "out.mp4", other, own_sink])
    await asave(latents, pipe, [NpyFile(tmp / "a.npy"), RawFile("b.raw", overwrite=True)])
    await asave(latents, pipe, VideoFile("out.mp4", fps=16, crf=18))
    stream_decode(latents, pipe, sinks=print)  # type: ignore[arg-type]
    stream_decode(latents, pipe, sinks=7)  # type: ignore[arg-type]


async def options(latents: torch.Tensor, pipe: object) -> None:
    """Every option, and what is not one."""
    stream_decode(
        latents,
        pipe,
        fps=23.976,
        normalized=True,
        mode="fast",
        latents_per_chunk=4,
        output="device",
        transform=lambda pixels: pixels.clamp(0, 1),
        device=torch.device("cuda", 1),
        queue_size=1,
        progress=lambda done, total: [done, total],
        timeout=60,
        sink_timeout=5,
        write_timeout=20,
        on_sink_error="continue",
        nonfinite="warn",
    )
    stream_decode(latents, pipe, device="cuda:0", progress=True)
    stream_decode(latents, pipe, mode="quick")  # type: ignore[arg-type]
    stream_decode(latents, pipe, output="uint16")  # type: ignore[arg-type]
    stream_decode(latents, pipe, transform=len)  # type: ignore[arg-type]


def plugging_in() -> None:
    """What ships as a stand-in is what may be plugged in."""
    backend: Backend = FakeBackend()
    codec: Codec = TagCodec()
    sink: Sink = MemorySink()
    stream_decode(torch.zeros(1), codec, sinks=sink, backend=backend)


def errors(latents: torch.Tensor) -> None:
    """Errors say where and what."""
    try:
        save(latents, None, "out.npy")
    except NonFiniteError as error:
        assert_type(error.chunk, int)
        assert_type(error.where, str)
    except StageTimeout as error:
        assert_type((error.stage, error.chunk, error.seconds), tuple[str, int, float])
    except SinkTimeout as error:
        assert_type(error.sink, str)
    except StreamVAEError as error:
        assert_type(error, StreamVAEError)
