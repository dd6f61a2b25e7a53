"""The data on its way: a chunk's nouns by place, the frame, and what is known of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ._errors import UsageError
from ._events import Event
from ._pixels import Kind, Output
from ._plan import Plan

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: How the numbers of a host chunk are to be read.
Format = Literal[
    "gray",
    "ya8",
    "rgb24",
    "rgba",
    "yuv420p",
    "grayf32",
    "yaf32",
    "rgbf32",
    "rgbaf32",
    "pcmf32",
]
_BYTES: Mapping[int, Format] = {1: "gray", 2: "ya8", 3: "rgb24", 4: "rgba"}
_FLOATS: Mapping[int, Format] = {1: "grayf32", 2: "yaf32", 3: "rgbf32", 4: "rgbaf32"}

Array = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Band:
    """Which part of a picture a chunk holds: all columns of some of its rows.

    Bands of a picture come one after another, from top to bottom, and cover every row once.

    Attributes:
        rows: The rows, numbered from the top of the picture.
        height: Rows of the whole picture.
    """

    rows: range
    height: int

    @property
    def last(self) -> bool:
        """Whether the picture is complete with it."""
        return self.rows.stop == self.height


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
        band: Which part of a picture it is; None where pictures are whole.
    """

    index: int
    data: object
    ready: Event
    band: Band | None = None


@dataclass(frozen=True, slots=True)
class HostChunk:
    """A chunk in its own memory. Produced by `stages.download`, consumed by `stages.persist`.

    Attributes:
        index: Its number in the stream, from 0.
        start: Where it begins: frame number (video), item number (image), sample (sound).
        kind: What it is a chunk of.
        data: Read-only, C-contiguous. Video (B, T, H, W, C); image (b, 1, H, W, C); sound
            (B, S, C). uint8 in 0..255, or float32: pixels in [-1, 1], sound as decoded. Channels
            as decoded: RGB, of some autoencoders RGBA or grey.
        band: Where ``data`` is a part of one picture, which rows of it: H is then how many these
            are. None for whole pictures, and for sound.
        picture: Height and width of the pictures where ``data`` holds their planes in 4:2:0, BT.709
            limited range (for sinks that take them, see `streamvae.abc.Sink`): uint8
            (B, T, 3 * H / 2, W, 1) with both rounded up to even numbers, H rows of luma and then
            both chroma planes, each contiguous. None where it holds pixels.
    """

    index: int
    start: int
    kind: Kind
    data: Array
    band: Band | None = None
    picture: tuple[int, int] | None = None

    @property
    def format(self) -> Format:
        """The name that ffmpeg has for it; without the byte order, which is the machine's.

        By channels: ``"gray"``, ``"ya8"`` (grey and alpha), ``"rgb24"`` and ``"rgba"`` (uint8), or
        ``"grayf32"``, ``"yaf32"``, ``"rgbf32"`` and ``"rgbaf32"`` (float32). ``"yuv420p"`` is
        planes, ``"pcmf32"`` is sound.

        Raises:
            UsageError: A ``transform`` gave pixels of more channels, which have no name.
        """
        if self.kind == "sound":
            return "pcmf32"
        if self.picture is not None:
            return "yuv420p"
        channels = self.data.shape[4]
        names = _BYTES if self.data.dtype == np.uint8 else _FLOATS
        if channels not in names:
            raise UsageError(f"expected pixels of 1 to 4 channels for a format, got {channels}")
        return names[channels]

    def __len__(self) -> int:
        """How far it reaches from ``start``: frames, items or samples that end in it.

        So a band counts as 0, the last one of its picture as 1.
        """
        return _ended(self)

    def frames(self, rate: float | None) -> Iterator[Frame]:
        """Its frames as views, in time order. ``rate`` is frames (sound: samples) a second.

        Raises:
            UsageError: It is a band, which holds no frame, or it holds planes.
        """
        if self.picture is not None:
            raise UsageError(f"expected pixels to take frames from, got {self.format}")
        return _frames(self, rate)


@dataclass(frozen=True, slots=True)
class DeviceFrames:
    """A finished chunk left on the device, for ``output="device"``. Produced by `stages.settle`.

    It may be read on any ``torch.cuda.Stream`` and dropped before that has happened. Who reads it
    on a stream that is not torch's own keeps it until then, or calls ``data.record_stream(...)``.

    Attributes:
        index: Its number in the stream, from 0.
        start: As in `HostChunk`.
        kind: As in `HostChunk`.
        data: Laid out as in `HostChunk`, in the dtype of the weights, pixels in [-1, 1].
        band: As in `HostChunk`.
    """

    index: int
    start: int
    kind: Kind
    data: torch.Tensor
    band: Band | None = None

    def __len__(self) -> int:
        """As in `HostChunk`."""
        return _ended(self)

    def frames(self, rate: float | None) -> Iterator[Frame]:
        """As in `HostChunk`."""
        return _frames(self, rate)


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

    @property
    def is_sound(self) -> bool:
        """Whether this is a block of sound, not a picture."""
        return self.data.ndim == 2

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


def _ended(chunk: HostChunk | DeviceFrames) -> int:
    if chunk.band is None:
        return length(chunk.kind, chunk.data.shape)
    return int(chunk.band.last)


def _frames(chunk: HostChunk | DeviceFrames, rate: float | None) -> Iterator[Frame]:
    if chunk.band is not None:
        rows, height = chunk.band.rows, chunk.band.height
        raise UsageError(
            f"expected whole pictures to take frames from, got a band, rows {rows.start} to "
            f"{rows.stop} of {height}; iterate over the stream itself, or over chunks(bands=False)"
        )
    return split(chunk.data, chunk.kind, chunk.start, rate)


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
        bands: Chunks that each picture comes in (of the first latents' size): as many as rows of
            tiles where the autoencoder tiles its pictures, else 1.
        pixel_format: What pixels are turned into on the device, where nobody but the sinks wants
            them and all sinks take it (``"yuv420p"``); None where they come as they were decoded.
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
    bands: int = 1
    pixel_format: Format | None = None
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
