"""``streamvae decode``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import _info
from .._errors import LatentsError, UsageError
from .._terminal import seconds
from .._warmup import warmup
from ..abc import Codec
from ..codecs import codec_for
from ..sinks import BY_SUFFIX
from ._batch import Batch
from ._options import (
    ChunkOption,
    DeviceOption,
    DtypeOption,
    Mode,
    NormalizedOption,
    OverwriteOption,
    VaeOption,
    autoencoder,
    device_of,
    look_into,
)
from ._outputs import Outputs
from ._sound import Sound
from ._times import ReportOption, TimelineOption, Times


class NonFinite(StrEnum):
    """As `streamvae.stream_decode` has it."""

    stop = "raise"
    warn = "warn"


class Odd(StrEnum):
    """As `streamvae.sinks.VideoFile` has it."""

    pad = "pad"
    refuse = "refuse"


_OUT = (
    f"A path ending in {', '.join(BY_SUFFIX)}, for pictures with a number's place "
    "(frames/%05d.png), {stem} standing for the latents' name; or -: y4m to standard output. "
    "May come several times."
)


def decode(
    latents: Annotated[
        list[Path],
        typer.Argument(
            metavar="LATENTS",
            help=".safetensors, .pt or .npy; several are decoded one after another.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[list[str], typer.Option("--out", "-o", help=_OUT, show_default=False)],
    vae: VaeOption = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; a video needs it.")] = None,
    normalized: NormalizedOption = False,
    mode: Annotated[Mode, typer.Option(help="exact: equal to vae.decode.")] = Mode.exact,
    latents_per_chunk: ChunkOption = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Keep the decoder's values (.npy, .raw, .zarr).")
    ] = False,
    codec: Annotated[
        str | None, typer.Option(help="Of a video: h264, hevc, vp9, av1 or ffv1.")
    ] = None,
    crf: Annotated[float | None, typer.Option(help="Quality of a video, 0 the best.")] = None,
    preset: Annotated[str | None, typer.Option(help="Time for size; the codec's names.")] = None,
    gop: Annotated[
        int | None, typer.Option(help="Frames from one keyframe to the next at most.")
    ] = None,
    odd: Annotated[Odd | None, typer.Option(help="What a video does about odd sizes.")] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            metavar="LATENTS",
            help="Latents of the video's sound: a video gets both, .wav and the like the sound.",
        ),
    ] = None,
    audio_vae: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_ID",
            help="The pipeline whose 'audio_vae' and 'vocoder' decode it; by default --vae.",
        ),
    ] = None,
    nonfinite: Annotated[
        NonFinite, typer.Option(help="What to do about NaN and infinity.")
    ] = NonFinite.stop,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was broken off, compared first.")
    ] = False,
    overwrite: OverwriteOption = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave outputs alone that are there.")
    ] = False,
    warm: Annotated[
        bool,
        typer.Option(
            "--warmup", help="Decode random latents of the first file's size before, untimed."
        ),
    ] = False,
    timeline: TimelineOption = None,
    report: ReportOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary.")] = False,
) -> None:
    """Decode LATENTS into one or several files.

    A file grows under its name and '.partial', and keeps that when it is broken off; --resume goes
    on with it.
    """
    if skip_existing and overwrite:
        raise UsageError("expected --skip-existing or --overwrite, got both")
    told = {"codec": codec, "crf": crf, "preset": _number(preset), "gop": gop}
    told["odd"] = None if odd is None else odd.value
    outputs = Outputs(out, told, fps=fps is not None, overwrite=overwrite)
    outputs.expect_apart(latents)
    times = Times(timeline, report)
    times.check(len(latents))
    batch = Batch(
        latents, outputs, resume=resume, skip_existing=skip_existing, quiet=quiet, times=times
    )
    if len(latents) == 1:  # of several, those that are right are decoded
        outputs.sinks(outputs.of(latents[0]), resume=resume or skip_existing)
        look_into(latents[0])
    sound = None
    if audio is not None:
        sound = Sound(audio, latents, audio_vae or vae)
        sound.load(device_of(device), dtype)
    elif audio_vae is not None:
        raise UsageError("expected --audio with --audio-vae, got none")
    decoder = codec_for(autoencoder(vae, device_of(device), dtype))
    if warm:
        # Of several files each is said to be bad in its turn.
        with contextlib.suppress(*(LatentsError,) if len(latents) > 1 else ()):
            _warm_up(
                decoder, latents[0], mode.value, latents_per_chunk, quiet=quiet or outputs.piped
            )
    batch.run(
        decoder,
        sound,
        fps=fps,
        normalized=normalized,
        mode=mode.value,
        latents_per_chunk=latents_per_chunk,
        output="float32" if float32 else "uint8",
        nonfinite=nonfinite.value,
        resume=resume,
    )


def _warm_up(
    codec: Codec, latents: Path, mode: Literal["exact", "fast"], count: int | None, *, quiet: bool
) -> None:
    """Have threads, kernels and graphs for latents like those in a file; say how long it took."""
    began = time.monotonic()
    asyncio.run(warmup(codec, _info.latents(latents), mode=mode, latents_per_chunk=count))
    if not quiet:
        typer.echo(f"warm after {seconds(time.monotonic() - began)}")


def _number(preset: str | None) -> str | int | None:
    """VP9's and AV1's presets are numbers."""
    return int(preset) if preset is not None and preset.isdecimal() else preset
