"""stream_decode_av: a video and its sound, decoded side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ._errors import UsageError
from ._merged import AVStream
from ._options import Mode, Progress, SinkLike, StreamOptions, sinks_of
from ._pixels import Output
from ._stream import stream_decode
from ._tee import OnSinkError
from ._transforms import Transform
from .abc import Backend, Sink
from .latents import LatentsLike, sound_of, timed
from .sinks import VideoFile, both_for
from .stages import NonFinite

if TYPE_CHECKING:
    import torch

#: Keyword arguments that decoding depends on.
Call = Mapping[str, object]


#: A file of both.
BothLike = str | os.PathLike[str] | VideoFile


class AVOptions(StreamOptions, total=False):
    """The options of `stream_decode_av`; see there."""

    sinks: BothLike | Iterable[BothLike]
    video_sinks: SinkLike | Iterable[SinkLike]
    audio_sinks: SinkLike | Iterable[SinkLike]
    audio_latents_per_chunk: int | None


def stream_decode_av(
    video_latents: LatentsLike,
    audio_latents: LatentsLike,
    source: object,
    *,
    fps: float | None = None,
    sinks: BothLike | Iterable[BothLike] = (),
    video_sinks: SinkLike | Iterable[SinkLike] = (),
    audio_sinks: SinkLike | Iterable[SinkLike] = (),
    normalized: bool = False,
    mode: Mode = "exact",
    latents_per_chunk: int | None = None,
    audio_latents_per_chunk: int | None = None,
    output: Output = "uint8",
    transform: Transform | None = None,
    device: str | int | torch.device | None = None,
    queue_size: int = 2,
    progress: Progress = False,
    timeout: float | None = None,
    sink_timeout: float = 10.0,
    write_timeout: float | None = None,
    on_sink_error: OnSinkError = "stop",
    resume: bool = False,
    nonfinite: NonFinite = "raise",
    call: Mapping[str, object] | None = None,
    backend: Backend | None = None,
) -> AVStream:
    """Decode a video and its sound, and stream both in time order, on one clock.

    The pictures are those of `stream_decode`, and the sound is what the pipeline's vocoder makes of
    its autoencoder's mel spectrogram. Both are decoded side by side, and given one after the other
    by their time: a picture when all sound of before it has come, a block of sound (as much as its
    chunk gave) when all pictures of before it have. ``frame.is_sound`` tells which::

        video, audio = pipe(prompt, frame_rate=24.0, output_type="latent", return_dict=False)
        async with stream_decode_av(video, audio, pipe, fps=24.0) as stream:
            async for frame in stream:
                if frame.is_sound:
                    play(frame.time, frame.data)  # (S, channels) float32
                else:
                    show(frame.time, frame.data)  # (H, W, 3) uint8

    A picture's time is its number / ``fps``, a block's its first sample / the sample rate; their
    order is found with fractions. Whichever ends first ends, and the other goes on.

    Args:
        video_latents: As in `stream_decode`, (B, C, T, h, w).
        audio_latents: The same number of clips; LTX-2: (B, C, T, F), Kandinsky 6: (B, C, T).
        source: A diffusers pipeline that makes video with sound (LTX-2's, Kandinsky 6's): latents
            are what its ``output_type="latent"`` returned. Or a pair of what decodes the video and
            what decodes the sound: each anything that `stream_decode` takes, the second mostly
            ``(audio_vae, vocoder)``.
        fps: Frames a second; may be left out where ``call`` has the pipeline's ``frame_rate``.
        sinks: One file of both or several: paths that end in .mp4, .mkv, .mov or .webm, or a
            `VideoFile` (``VideoFile("a.mp4", crf=20)``). Each plays from the first sample and the
            first picture on, whichever of the two ends first.
        video_sinks: As ``sinks`` in `stream_decode`, for the video.
        audio_sinks: The same for the sound.
        normalized: As in `stream_decode`, for both of a pair.
        mode: As in `stream_decode`.
        latents_per_chunk: As in `stream_decode`, for the video.
        audio_latents_per_chunk: The same for the sound: fewer make shorter blocks.
        output: As in `stream_decode`; sound is float32 in either case on the host.
        transform: As in `stream_decode`, for the video.
        device: As in `stream_decode`.
        queue_size: As in `stream_decode`, for each.
        progress: As in `stream_decode`, for the video.
        timeout: As in `stream_decode`.
        sink_timeout: As in `stream_decode`.
        write_timeout: As in `stream_decode`.
        on_sink_error: As in `stream_decode`.
        resume: As in `stream_decode`, for the sinks of both.
        nonfinite: As in `stream_decode`.
        call: As in `stream_decode`: of the pipeline's call; of a pair, for the video.
        backend: As in `stream_decode`.

    Raises:
        UsageError: Options contradict each other, or nobody says how many frames a second there
            are.
        LatentsError: One of the two is nothing that holds latents; once entered, also that they are
            not of the same number of clips.
        UnknownSourceError: ``source`` is no pipeline that makes video with sound, and no pair.
    """
    of_video, of_audio, fps, calls = _parts(source, fps, call or {})
    video_kept, audio_kept = _kept(sinks, video_sinks, audio_sinks)
    every = sinks_of((*video_kept, *audio_kept))  # which sees that none of them comes twice
    if resume and not every:
        raise UsageError("expected sinks to go on with where resume=True, got none")
    both: StreamOptions = {
        "normalized": normalized,
        "mode": mode,
        "output": output,
        "device": device,
        "queue_size": queue_size,
        "timeout": timeout,
        "sink_timeout": sink_timeout,
        "write_timeout": write_timeout,
        "on_sink_error": on_sink_error,
        "nonfinite": nonfinite,
        "backend": backend,
    }
    for_video: StreamOptions = {
        **both,
        "fps": fps,
        "latents_per_chunk": latents_per_chunk,
        "transform": transform,
        "progress": progress,
        "call": calls[0],
        "resume": resume and bool(video_kept),
    }
    for_audio: StreamOptions = {
        **both,
        "latents_per_chunk": audio_latents_per_chunk,
        "call": calls[1],
        "resume": resume and bool(audio_kept),
    }
    video = stream_decode(video_latents, of_video, sinks=video_kept, **for_video)
    audio = stream_decode(audio_latents, of_audio, sinks=audio_kept, **for_audio)
    return AVStream(video, audio)


def _kept(
    both: BothLike | Iterable[BothLike],
    video: SinkLike | Iterable[SinkLike],
    audio: SinkLike | Iterable[SinkLike],
) -> tuple[tuple[Sink, ...], tuple[Sink, ...]]:
    """All that keep the video, and all that keep the sound."""
    if isinstance(both, str | os.PathLike) or not isinstance(both, Iterable):
        both = (both,)
    pairs = [both_for(one) for one in both]
    return (
        (*(pair[0] for pair in pairs), *sinks_of(video)),
        (*(pair[1] for pair in pairs), *sinks_of(audio)),
    )


def _parts(
    source: object, fps: float | None, call: Call
) -> tuple[object, object, float, tuple[Call, Call]]:
    """What decodes the video and what the sound, frames a second, and what each is to know."""
    if isinstance(source, tuple) and len(source) == 2:
        if fps is None:
            raise UsageError("expected fps, since a pair of decoders does not tell it, got none")
        video, audio = source
        audio_call: Call = {}
    else:
        video, audio = source, sound_of(source)
        fps, call = timed(source, call, fps)
        audio_call = call
    if not math.isfinite(fps):
        raise UsageError(f"expected fps to be positive and finite, got {fps!r}")
    return video, audio, fps, (call, audio_call)
