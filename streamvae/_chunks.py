"""The data on its way: a chunk's nouns by place, the frame, and what is known of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ._events import Event
from ._pixels import Kind, Output
from ._plan import Plan

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: How the numbers of a host chunk are to be read.
Format = Literal["rgb24", "rgbf32", "pcmf32"]
Array = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LatentChunk:
    """A numbered run of latents. Produced by `streamvae.latents`, consumed by `stages.decode`.

    Attributes:
        index: Its number in the stream, from 0.
        pieces: Latents as the codec wants them (video (B, C, t, h, w), image (b, C, h, w), sound
            (B, C, t)), as they were given: device, dtype, and in one or more pieces, which the
            launch thread joins (a launch on the loop would block it).
        arrived: Happen when the givers' device has written the pieces; empty for host memory.
    """

    index: int
    pieces: tuple[torch.Tensor, ...]
    arrived: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceChunk:
    """A chunk the device still makes. Produced by `stages.decode`, consumed by `stages.download`.

    Attributes:
        index: Its number in the stream, from 0.
        data: The backend's handle of rendered pixels and flags; opaque to the stages.
        ready: Happens when the device has made it.
    """

    index: int
    data: object
    ready: Event


@dataclass(frozen=True, slots=True)
class HostChunk:
    """A chunk in its own memory. Produced by `stages.download`, consumed by `stages.persist`.

    Attributes:
        index: Its number in the stream, from 0.
        start: Where it begins: frame number (video), item number (image), sample (sound).
        kind: What it is a chunk of.
        data: Read-only, C-contiguous. Video (B, T, H, W, C); image (b, 1, H, W, C); sound
            (B, S, C). uint8 RGB in 0..255, or float32: pixels in [-1, 1], sound as decoded.
    """

    index: int
    start: int
    kind: Kind
    data: Array

    @property
    def format(self) -> Format:
        """``"rgb24"`` (uint8), ``"rgbf32"`` (float32 pixels) or ``"pcmf32"`` (float32 sound)."""
        if self.kind == "sound":
            return "pcmf32"
        return "rgb24" if self.data.dtype == np.uint8 else "rgbf32"

    def __len__(self) -> int:
        """How far it reaches from ``start``: frames, items or samples."""
        return length(self.kind, self.data.shape)

    def frames(self, rate: float | None) -> Iterator[Frame]:
        """Its frames as views, in time order. ``rate`` is frames (sound: samples) a second."""
        return split(self.data, self.kind, self.start, rate)


@dataclass(frozen=True, slots=True)
class DeviceFrames:
    """A finished chunk left on the device, for ``output="device"``. Produced by `stages.settle`.

    Attributes:
        index: Its number in the stream, from 0.
        start: As in `HostChunk`.
        kind: As in `HostChunk`.
        data: Laid out as in `HostChunk`, in the dtype of the weights, pixels in [-1, 1].
    """

    index: int
    start: int
    kind: Kind
    data: torch.Tensor

    def __len__(self) -> int:
        """As in `HostChunk`."""
        return length(self.kind, self.data.shape)

    def frames(self, rate: float | None) -> Iterator[Frame]:
        """As in `HostChunk`."""
        return split(self.data, self.kind, self.start, rate)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, or one block of sound.

    Attributes:
        index: Frame number in its clip (video), item number (image), first sample (sound).
        time: Seconds from the start; None where there is no rate.
        batch_index: Which item of the batch.
        data: (H, W, C) picture or (S, C) sound, a read-only view of its chunk: uint8 RGB, float32,
            or a tensor on the device for ``output="device"``.
    """

    index: int
    time: float | None
    batch_index: int
    data: Array | torch.Tensor

    def to_pil(self) -> Image:
        """The picture as a PIL image. Needs uint8 pixels and Pillow.

        Raises:
            TypeError: The frame holds sound, float pixels or device memory.
        """
        from PIL import Image

        if not isinstance(self.data, np.ndarray) or self.data.dtype != np.uint8:
            got = f"{type(self.data).__name__} of {self.data.dtype}"
            raise TypeError(f"expected uint8 pixels for a PIL image, got {got}")
        pixels = self.data[:, :, 0] if self.data.shape[2] == 1 else self.data
        return Image.fromarray(pixels)


def length(kind: Kind, shape: tuple[int, ...]) -> int:
    """How many frames, items or samples a chunk of ``shape`` holds along its way."""
    return shape[0] if kind == "image" else shape[1]


def split(
    data: Array | torch.Tensor, kind: Kind, start: int, rate: float | None
) -> Iterator[Frame]:
    """Split a chunk into frames: views, in time order, the batch innermost."""
    time = None if rate is None else start / rate
    if kind == "sound":
        for item in range(data.shape[0]):
            yield Frame(start, time, item, data[item])
    elif kind == "image":
        for item in range(data.shape[0]):
            yield Frame(start + item, None, start + item, data[item, 0])
    else:
        for step in range(data.shape[1]):
            time = None if rate is None else (start + step) / rate
            for item in range(data.shape[0]):
                yield Frame(start + step, time, item, data[item, step])


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known of a stream. None stands for what is not known before it has run.

    Attributes:
        family: Class name of the autoencoder.
        kind: What it makes.
        output: What consumers get.
        mode: ``"exact"`` or ``"fast"``.
        step: How a chunk is decoded, for people (``"eager"``, ...).
        device: Where.
        latents_shape: Shape of all latents; None when they come one by one.
        latents_per_chunk: Latents in a steady chunk (the first may be shorter).
        batch: Clips side by side.
        frames: Frames of a clip (video), items (image), samples (sound).
        height: Pixels; None for sound and behind a ``transform``.
        width: Pixels; None for sound and behind a ``transform``.
        fps: Frames a second, as given.
        sample_rate: Samples a second (sound).
        exactness: In a sentence, what the frames equal.
        notes: What the user should know: fallbacks taken, flags not honoured.
        plan: Chunks, frames of each, and memory; found out when asked for, see there. None when
            the latents come one by one.
    """

    family: str
    kind: Kind
    output: Output
    mode: str
    step: str
    device: str
    latents_shape: tuple[int, ...] | None = None
    latents_per_chunk: int = 1
    batch: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    sample_rate: int | None = None
    exactness: str = ""
    notes: tuple[str, ...] = ()
    plan: Plan | None = field(default=None, repr=False, compare=False)

    @property
    def rate(self) -> float | None:
        """Steps a second on the way: frames for video, samples for sound, None for images."""
        if self.kind == "sound":
            return self.sample_rate
        return self.fps if self.kind == "video" else None
