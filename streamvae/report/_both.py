"""One comparison: the same latents decoded as a stream and as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from anyio.from_thread import start_blocking_portal

from .._chunks import DeviceFrames, HostChunk
from .._errors import FrameCountError
from .._options import Mode, Progress
from .._pixels import Output, render
from .._stream import FrameStream, stream_decode
from ..abc import Codec
from ..codecs import ModuleCodec
from ._compare import TOLERANCES, WIDE_TOLERANCE, difference, equal_share, peak, sha256
from ._errors import Frames, measure_errors
from ._precision import Precision
from ._steps import kind_of
from ._verification import Verdict, Verification
from ._wider import copied, obstacle

#: From latents on the device, in the dtype of the weights, to (B, C, T, H, W), (B, C, H, W) or
#: (B, C, S): what a stream is compared with.
Reference = Callable[[torch.Tensor], torch.Tensor]

#: Values that are decoded in float64 too, at most: that takes long.
_AFFORDABLE = 2**26


class Noise:
    """The generators that decoders draw from: each decoding begins where the others began.

    Args:
        seed: Of torch's global generators, while `kept` is entered.
        call: Arguments of ``decode``, which may hold generators of the user's.
    """

    def __init__(self, seed: int, call: Mapping[str, object]) -> None:
        self._seed = seed
        found: list[torch.Generator] = []
        for value in call.values():
            each = value if isinstance(value, Sequence) else [value]
            found += [one for one in each if isinstance(one, torch.Generator)]
        self._states = [(one, one.get_state()) for one in found]

    def restart(self) -> None:
        """Go back to the beginning."""
        torch.manual_seed(self._seed)
        self._put_back()

    @contextlib.contextmanager
    def kept(self, device: torch.device) -> Iterator[None]:
        """Leave all generators as they were."""
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                self._put_back()

    def _put_back(self) -> None:
        for generator, state in self._states:
            generator.set_state(state)


@dataclass(frozen=True, slots=True)
class _Streamed:
    """What a stream gave, all of it on the host.

    Attributes:
        data: Channels last.
        step: How it decoded its chunks.
        said: What the user should know of it.
        note: What is wrong about how many frames came.
    """

    data: torch.Tensor
    step: str
    said: tuple[str, ...]
    note: str | None


@dataclass(frozen=True, slots=True)
class Both:
    """One comparison: a codec, latents and options."""

    codec: Codec
    latents: torch.Tensor
    reference: Reference | None
    mode: Mode
    latents_per_chunk: int | None
    normalized: bool
    noise: Noise
    progress: Progress = False
    reference_device: torch.device | None = None

    def compared(self) -> Verification:
        """Decode both ways and look."""
        codec, stream = self.codec, self.stream("float32", progress=self.progress)
        own = self.whole()
        sound = codec.kind == "sound"
        streamed = Frames(stream.data, stream.data if sound else self.stream("uint8").data)
        found = difference(streamed.values, own.values)
        tolerance = TOLERANCES.get(codec.dtype, TOLERANCES[torch.float32]) * peak(own.values)
        notes = self.notes_of(stream)
        precision = self.precision(streamed, own, notes)
        verdict: Verdict = "equal" if found == 0 else "different"
        wide = None
        if found > 0 and precision is not None and precision.accepted:
            verdict = "accepted"
        elif 0 < found <= tolerance:
            wide = self.in_double(own.values.numel(), stream.step, notes)
            verdict = "within rounding" if wide is None or wide[0] <= wide[1] else "different"
        axis = 0 if codec.kind == "image" else 1
        return Verification(
            verdict=verdict,
            family=codec.family,
            kind=codec.kind,
            dtype=str(codec.dtype).removeprefix("torch."),
            device=str(codec.device),
            latents_shape=tuple(self.latents.shape),
            latents_from="given",
            mode=self.mode,
            step=stream.step,
            exactness=codec.exactness,
            difference=found,
            tolerance=tolerance,
            wide=None if wide is None else wide[0],
            wide_tolerance=None if wide is None else wide[1],
            precision=precision,
            equal_bytes=equal_share(streamed.bytes, own.bytes),
            frames=streamed.values.shape[axis],
            whole_frames=own.values.shape[axis],
            sha256=sha256(streamed.values),
            whole_sha256=sha256(own.values),
            notes=tuple(notes),
        )

    def notes_of(self, stream: _Streamed) -> list[str]:
        """What is wrong about its frames, and in fast mode what it says of its step."""
        notes = [stream.note] if stream.note else []
        if self.mode == "fast":
            known = self.codec.notes(tuple(self.latents.shape))
            notes += [said for said in stream.said if said not in known]
        return notes

    def precision(self, streamed: Frames, own: Frames, notes: list[str]) -> Precision | None:
        """The errors of both in fast mode; where there are none, a note of why."""
        if self.mode != "fast":
            return None
        if streamed.values.shape != own.values.shape:
            found: Precision | str = "there is another number of frames"
        elif self.reference is not None:
            found = "only the autoencoder's own decode has a wider dtype"
        else:
            found = measure_errors(
                self.codec,
                self.prepared(),
                (streamed, own),
                device=self.reference_device,
                begin=self.noise.restart,
                values=_AFFORDABLE,
            )
        if isinstance(found, Precision):
            return found
        notes.append(f"no errors were measured: {found}")
        return None

    def stream(self, output: Output, *, progress: Progress = False) -> _Streamed:
        """All that a stream gives."""
        self.noise.restart()
        stream = stream_decode(
            self.latents,
            self.codec,
            mode=self.mode,
            latents_per_chunk=self.latents_per_chunk,
            normalized=self.normalized,
            output=output,
            progress=progress,
        )
        with start_blocking_portal("asyncio") as portal:
            chunks, note = portal.call(_gathered, stream)
        axis = 0 if self.codec.kind == "image" else 1
        parts = [chunk.data for chunk in chunks]
        if output == "device":
            data = torch.cat([torch.as_tensor(part) for part in parts], axis).cpu()
        else:
            data = torch.from_numpy(np.concatenate([np.asarray(part) for part in parts], axis))
        return _Streamed(data, stream.info.step, stream.info.notes, note)

    def whole(self) -> Frames:
        """By the autoencoder itself."""
        decoded, kind = self.decoded(), self.codec.kind
        values = render(decoded, kind, "float32").cpu()
        return Frames(values, values if kind == "sound" else render(decoded, kind, "uint8").cpu())

    def prepared(self) -> torch.Tensor:
        """The latents as the decoder gets them."""
        latents = self.latents.to(self.codec.device, self.codec.dtype)
        return self.codec.denormalize(latents) if self.normalized else latents

    def decoded(self) -> torch.Tensor:
        """What the autoencoder itself gives, where it is."""
        latents = self.prepared()
        decode = self.reference or cast("ModuleCodec", self.codec).whole
        self.noise.restart()
        return decode(latents)

    def in_double(self, values: int, step: str, notes: list[str]) -> tuple[float, float] | None:
        """The difference, and what of it may be rounding, when both ways decode in float64.

        None, and a note, if there are too many values, the weights cannot be copied and cast, or
        float64 is decoded by another step.
        """
        codec, found = self.codec, None
        affordable = self.reference is None and values <= _AFFORDABLE and not obstacle(codec)
        if affordable:
            twin = cast("ModuleCodec", codec)._maker()(
                copied(cast("ModuleCodec", codec).module).double()
            )
            both = replace(self, codec=twin, latents=self.latents.double(), progress=False)
            streamed = both.stream("device")
            if kind_of(streamed.step) == kind_of(step):
                own = render(both.decoded(), codec.kind, "device").cpu()
                found = difference(streamed.data, own), WIDE_TOLERANCE * peak(own)
        if found is None:
            notes.append("not decoded in float64 too: judged by the tolerance alone")
        return found


async def _gathered(stream: FrameStream) -> tuple[list[HostChunk | DeviceFrames], str | None]:
    """All chunks; where there are too few or too many frames in them, also what is said of it."""
    chunks: list[HostChunk | DeviceFrames] = []
    try:
        async with stream:
            async for chunk in stream.chunks(bands=False):
                chunks += [chunk]
    except FrameCountError as error:
        if not chunks:
            raise
        return chunks, str(error)
    return chunks, None
