"""What you may plug in: protocols, no code.

Device code is sync and runs on the backend's threads; flow code is async and runs on the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch

from ._chunks import Array, HostChunk, StreamInfo
from ._events import Event
from ._identity import Identity
from ._pixels import Kind
from ._turns import Ticket

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one launch makes on the device.

    Attributes:
        pixels: As `streamvae._pixels.render` gives them, contiguous.
        finite: Two bools on the device: latents finite, pixels finite.
        picture: Height and width, where ``pixels`` holds the planes of 4:2:0 (see `HostChunk`).
    """

    pixels: torch.Tensor
    finite: torch.Tensor
    picture: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What one copy brought to the host: memory of its own, and the two flags."""

    pixels: Array
    latents_finite: bool
    pixels_finite: bool
    picture: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Latents on the device, or on their way to it.

    Attributes:
        tensors: They, as they were given but for the place.
        arrived: Happen when they are there.
    """

    tensors: tuple[torch.Tensor, ...]
    arrived: tuple[Event, ...] = ()


class Copy(Protocol):
    """A device-to-host copy under way. Its memory is the backend's until ``done`` has happened."""

    @property
    def done(self) -> Event:
        """Happens when the bytes have arrived. One event for each copy."""
        ...


class Backend(Protocol):
    """What a device can do. Futures end on the device's own threads, one to launch, one to copy.

    It owns the streams, the threads and all memory in flight: nothing here becomes unsafe when a
    caller stops waiting, at whatever moment.

    One that makes planes of 4:2:0 from pixels faster than the host does says so by an attribute,
    ``makes_planes = True``. One that can record a chunk's kernels and launch them as one has an
    attribute ``graphs`` (`streamvae._graphs.Graphs`). One that brings latents from host memory
    ahead of their launch has an attribute ``uploads`` (`Uploads`); otherwise the launch does it.
    """

    @property
    def device(self) -> torch.device:
        """The device."""
        ...

    def mark(self, latents: torch.Tensor) -> Event | None:
        """Record where the giver's stream stands; called on the thread that has ``latents``."""
        ...

    def turn(self) -> Ticket:
        """Queue up for a launch: at most two unfinished chunks are launched on a device."""
        ...

    def launch(
        self,
        work: Callable[[], Rendered | None],
        turn: Ticket,
        *,
        after: tuple[Event, ...] = (),
        hold: tuple[object, ...] = (),
    ) -> Future[tuple[object, Event]]:
        """Run ``work`` on the launch thread, its kernels in the compute stream.

        Args:
            work: Launches kernels; None when the decoder has nothing to give yet.
            turn: Given back when the chunk is ready.
            after: Events the compute stream waits for, on the device.
            hold: Kept alive until the chunk is ready (the latents).

        Returns:
            A handle for `download` or `settle`, and the event ``ready``.
        """
        ...

    def slot(self) -> Ticket:
        """Queue up for host memory to copy into."""
        ...

    def download(self, handle: object, ready: Event, slot: Ticket) -> Future[Copy | None]:
        """Start the copy on the copy stream, which waits for ``ready`` on the device.

        None when the launch had nothing to give. The slot is given back by `collect`, or, when
        nobody collects, after the copy is done.
        """
        ...

    def collect(self, copy: Copy) -> Future[Downloaded]:
        """Take a copy that is done out of the slot, into memory of its own."""
        ...

    def settle(self, handle: object) -> Future[Rendered | None]:
        """Give out what a launch made, on the device, its flags on the host; after ``ready``."""
        ...

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Run host code on the launch thread, after every launch already given to it."""
        ...


class Uploads(Protocol):
    """How a `Backend` brings latents from host memory to the device. Memory is its own affair."""

    def wanted(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether any of ``tensors`` has to be brought. Cheap: called on the loop."""
        ...

    def slot(self) -> Ticket:
        """Queue up for host memory to copy from."""
        ...

    def start(self, tensors: tuple[torch.Tensor, ...], slot: Ticket) -> Future[Uploaded]:
        """Start bringing them, on the copy thread; the slot is given back when they are there.

        What comes back is read after its events, and held until it was read, as any latents are.
        """
        ...


class Decoder(Protocol):
    """One stream's state over a codec; used on the launch thread only.

    Latents are not the decoder's memory: what it keeps of them from one call to the next, it keeps
    as a copy.
    """

    def begin(self, latents: torch.Tensor) -> None:
        """Get all latents before the first `decode`, which still gets them chunk by chunk.

        Called only where ``Codec.wants_all`` is set and all latents are known beforehand.
        """
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next chunk: video (B, C, T, H, W), image (B, C, H, W), sound (B, C, S).

        None when it has nothing to give yet.
        """
        ...

    def drain(self) -> torch.Tensor | None:
        """Give what is still held after the last chunk; called ``Codec.drains(n)`` times."""
        ...

    def close(self) -> None:
        """Let go of all state. Called on every way out; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How latents are cut along ``Codec.axis``: ``first``, then ``rest`` again and again."""

    first: int
    rest: int

    def sizes(self) -> Iterator[int]:
        """Sizes without end."""
        yield self.first
        while True:
            yield self.rest


@runtime_checkable
class Codec(Protocol):
    """The weights of one autoencoder with the rules of its family; streams share it."""

    @property
    def family(self) -> str:
        """Class name of the autoencoder."""
        ...

    @property
    def kind(self) -> Kind:
        """What it makes."""
        ...

    @property
    def layout(self) -> str:
        """Names of the latents' dimensions, ``"BCTHW"``, ``"BCHW"`` or ``"BCT"``."""
        ...

    @property
    def axis(self) -> int:
        """Which dimension of the latents is cut into chunks."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        ...

    @property
    def device(self) -> torch.device:
        """Where decoding runs: the hooks' execution device, else the weights' device."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; latents are cast to it, as diffusers' pipelines do."""
        ...

    @property
    def sample_rate(self) -> int | None:
        """Samples a second, for sound."""
        ...

    @property
    def exactness(self) -> str:
        """In a sentence, what the streamed frames equal."""
        ...

    @property
    def wants_all(self) -> bool:
        """Whether the autoencoder does something to all latents at once before it walks them."""
        ...

    @property
    def needs_length(self) -> bool:
        """Whether the first chunk can only be cut when the number of latents is known.

        Latents that come one by one are then gathered before anything is decoded.
        """
        ...

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:
        """How to cut the latents.

        Args:
            latents: How many there are; None if unknown (never where ``needs_length`` is set).
            latents_per_chunk: What the user asked for.
            mode: ``"exact"`` or ``"fast"``.

        Raises:
            UsageError: ``mode`` is ``"exact"`` and this cut would change bits.
        """
        ...

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """What the user of latents of ``shape`` should know: flags ignored, frames lost.

        ``shape`` is that of all latents, or of the first chunk where no more is known.
        """
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse latents this codec cannot stream now (called with all that is known of them).

        Raises:
            LatentsError: Naming what was expected and what came.
            UsageError: An option of the autoencoder cannot be streamed.
        """
        ...

    def frames(self, latents: int) -> int | None:
        """Frames, items or samples that ``latents`` latents give; None if unknown beforehand."""
        ...

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Height and width in pixels for latents of ``shape``; None for sound."""
        ...

    def drains(self, latents: int) -> int:
        """How often ``Decoder.drain`` is called after the last of ``latents`` latents."""
        ...

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Take latents from the diffusion model's space to the decoder's, in their dtype.

        Raises:
            UsageError: The family's formula needs more than the autoencoder's config.
        """
        ...

    def decoder(self) -> Decoder:
        """A new stream's state. Allocates nothing yet."""
        ...


@runtime_checkable
class Banded(Protocol):
    """What a `Codec` of pictures may be besides: one that gives a picture in bands of rows.

    Asked for chunks of one item only. Pictures that somebody transforms are decoded whole.
    """

    def bands(self, shape: tuple[int, ...], mode: str) -> tuple[range, ...]:
        """Rows of each band, top to bottom, of the picture that latents of ``shape`` give.

        Cheap: called on the loop. Empty where the picture comes in one piece.

        Args:
            shape: Of the latents of one item.
            mode: ``"exact"`` or ``"fast"``.
        """
        ...

    def in_bands(self, latents: torch.Tensor, mode: str) -> Iterator[torch.Tensor]:
        """Decode latents to these bands, (1, C, rows, W) each, in place of ``Decoder.decode``.

        Every step runs on the launch thread. What it keeps from one to the next it lets go of at
        its end, or when it is collected.
        """
        ...


@runtime_checkable
class Uint8Decoder(Decoder, Protocol):
    """A `Decoder` of pictures that may give uint8, quantised as diffusers' PIL rule has it.

    Which of the two `decode` and `drain` give is told by the dtype; axes are the same.
    """

    @property
    def finite(self) -> torch.Tensor | None:
        """Whether what was quantised last was finite: a bool on the device; None if not looked."""
        ...


@runtime_checkable
class Uint8Codec(Protocol):
    """What a `Codec` of pictures may be besides: one that can quantise while it decodes."""

    def uint8_decoder(self) -> Uint8Decoder:
        """Give what `Codec.decoder` gives, for a stream of which nobody wants the floats."""
        ...


class Sink(Protocol):
    """Where frames are kept. Lossless: a slow sink slows the stream. Calls never overlap.

    One that takes bands of pictures (`HostChunk.band`) says so by an attribute,
    ``takes_bands = True``. Where there is any other, all sinks get whole pictures.

    One that takes video as planes (`HostChunk.picture`), besides pixels, says so by an attribute
    too, ``takes = ("yuv420p", "rgb24", ...)``: formats of `HostChunk.format`. Where all do, nobody
    else looks at the frames and the device is good at it (``Backend.makes_planes``), planes are
    what they get, of uint8 RGB or grey.
    """

    @property
    def name(self) -> str:
        """What it calls itself in errors, its path for a file."""
        ...

    @property
    def committed(self) -> int:
        """Frames (items, samples) that a reader would find now, should the process die."""
        ...

    async def open(self, info: StreamInfo) -> None:
        """Check that this stream can be kept here, and get ready; before anything is decoded."""
        ...

    async def write(self, chunk: HostChunk) -> None:
        """Accept a chunk; when it returns the chunk is kept (as far as fsync is not asked for)."""
        ...

    async def close(self) -> None:
        """Complete: make the result appear under its name."""
        ...

    async def abort(self) -> None:
        """Stop early: keep what was accepted, readable, as ``.partial``. Works in any state."""
        ...


@runtime_checkable
class Resumable(Sink, Protocol):
    """What a `Sink` may be besides: one that goes on with what an interrupted stream has left.

    It keeps the stream's identity beside that, to know it again.
    """

    async def identify(self, identity: Identity) -> None:
        """Learn what the stream is.

        Called before the sink is opened, and again when the hashes are there, which may be at any
        moment until it is closed, also while another call is under way.
        """
        ...

    async def resume(self, info: StreamInfo) -> int:
        """`open`, but keep what is there, and give the number of its frames (items, samples).

        Raises:
            UsageError: It is of another stream, or nobody knows of which. It is as it was.
        """
        ...

    async def recheck(self, chunk: HostChunk) -> bool:
        """Compare a chunk, all of which is there, with what is there; in order, before any `write`.

        False: it is another, and was given up with all that comes after, so `write` gets it next.

        Raises:
            LatentsError: It is another, and nobody knows that the latents are those of before.
        """
        ...
