"""The table of diffusers' pipelines that make video with sound: what becomes of the latents of it.

Read in diffusers 0.42.1, each from the end of its denoising loop on. Those of the video are in the
table of video pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch

from .._errors import UnknownSourceError, UsageError
from .._recipe import Preparation
from ._pipelines import is_pipeline
from ._row import Decoding, argument, check_call, needed, part

#: From a pipeline and the keyword arguments of its call to how long its sound is at most, in
#: samples, and what is done to its latents.
_Row = Callable[[object, Mapping[str, object]], tuple[int | None, Preparation]]


class SoundOf(NamedTuple):
    """The part of a pipeline that makes sound, as something to decode with.

    Attributes:
        autoencoder: Of mel spectrograms.
        vocoder: Makes sound of them.
        pipe: Whose they are.
    """

    autoencoder: object
    vocoder: object
    pipe: object

    def decoding(self, call: Mapping[str, object]) -> Decoding:
        """Give what decodes the latents of the sound, and how.

        Args:
            call: As for `streamvae.latents.of_pipeline`.

        Raises:
            UsageError: An argument is missing in ``call``, or none that the pipeline takes.
        """
        check_call(self.pipe, call)
        samples, preparation = ROWS[type(self.pipe).__name__](self.pipe, call)
        arguments = {} if samples is None else {"samples": samples}
        return (self.autoencoder, self.vocoder), arguments, preparation


def sound_of(pipe: object) -> SoundOf:
    """Give the part of a diffusers pipeline that makes sound.

    Raises:
        UnknownSourceError: ``pipe`` is no diffusers pipeline that makes video with sound, as far
            as is known here.
        UsageError: It was loaded without its autoencoder of sound, or without its vocoder.
    """
    name = type(pipe).__name__
    if not is_pipeline(pipe) or name not in ROWS:
        raise UnknownSourceError(
            f"expected a pipeline that makes video with sound ({', '.join(sorted(ROWS))}), or a "
            f"pair of what decodes the video and what decodes the sound, got {name}"
        )
    return SoundOf(part(pipe, "audio_vae"), part(pipe, "vocoder"), pipe)


def timed(
    pipe: object, call: Mapping[str, object], fps: float | None
) -> tuple[float, Mapping[str, object]]:
    """Frames a second of a pipeline's video: as given, else as its call was told.

    Args:
        pipe: One that `sound_of` takes.
        call: Keyword arguments that its call was given, as far as decoding depends on them.
        fps: What the user says.

    Returns:
        Frames a second, and ``call`` that tells them.

    Raises:
        UsageError: Nobody says, or both do and disagree.
    """
    told, name, times = call.get("frame_rate"), type(pipe).__name__, _times(pipe)
    if told is None:
        if fps is None:
            raise UsageError(
                f"expected fps, or call={{'frame_rate': ...}} as the call of {name} got it (24.0 "
                "where it got none), got neither: where sound and pictures meet depends on it"
            )
        return fps, {**call, "frame_rate": fps / times}
    if not isinstance(told, (int, float)) or not told > 0:
        raise UsageError(f"expected frame_rate in call to be positive, got {told!r}")
    if fps not in {None, told * times}:
        raise UsageError(
            f"expected fps to be the {told * times:g} frames a second that {name} makes of "
            f"frame_rate={told:g}, got {fps:g}: the sound would not fit"
        )
    return told * times, call


def _times(pipe: object) -> int:
    """Frames that a pipeline gives for each that its call's ``frame_rate`` counts."""
    return 2 if type(pipe).__name__ == "LTX2DFRTemporalRefinePipeline" else 1


def _denormalised(pipe: object, call: Mapping[str, object]) -> tuple[None, Preparation]:  # noqa: ARG001
    """`LTX2Pipeline`: (B, C, T, F), denormalised, which only have to be cast."""
    return None, Preparation()


def _as_long_as_video(pipe: object, call: Mapping[str, object]) -> tuple[int, Preparation]:
    """`LTX2DFRPipeline`: as above, and the sound ends with the video.

    The formulas of both pipelines are kept as they are: they round.
    """
    (frames,) = needed(pipe, call, "num_frames")
    rate = cast("float", argument(pipe, call, "frame_rate"))
    times = _times(pipe)
    seconds = (times * (frames - 1) + 1) / (times * rate)
    samples: int = part(pipe, "vocoder").config["output_sampling_rate"]
    return round(seconds * samples), Preparation()


def _scaled(pipe: object, call: Mapping[str, object]) -> tuple[None, Preparation]:  # noqa: ARG001
    """`Kandinsky6TI2VAPipeline`: (B, C, T), cast, then divided by the factor."""
    factor: float = part(pipe, "audio_vae").config["scaling_factor"]

    def prepare(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
        return latents.to(dtype) / factor

    return None, Preparation(prepare)


#: What to do with the sound's latents of each pipeline, by its class's name.
ROWS: Mapping[str, _Row] = {
    "Kandinsky6TI2VAPipeline": _scaled,
    "LTX2ConditionPipeline": _denormalised,
    "LTX2DFRPipeline": _as_long_as_video,
    "LTX2DFRTemporalRefinePipeline": _as_long_as_video,
    "LTX2ImageToVideoPipeline": _denormalised,
    "LTX2InContextPipeline": _denormalised,
    "LTX2Pipeline": _denormalised,
}
