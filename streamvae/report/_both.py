"""One comparison: the same latents decoded as a stream and as a whole."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import nn

from .._chunks import DeviceFrames, HostChunk
from .._errors import FrameCountError
from .._loop_thread import run_on_loop_thread
from .._options import Mode, Progress
from .._pixels import Output, render
from .._stream import FrameStream, stream_decode
from ..abc import Codec
from ..codecs import ModuleCodec
from ._compare import TOLERANCES, WIDE_TOLERANCE, difference, equal_share, peak, sha256
from ._verification import Verdict, Verification

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
class _Way:
    """What came one way: the decoder's values, and uint8 pixels (sound: the values again)."""

    values: torch.Tensor
    bytes: torch.Tensor
    note: str | None = None


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

    def compared(self) -> Verification:
        """Decode both ways and look."""
        codec, streamed, own = self.codec, self.streamed(), self.whole()
        found = difference(streamed.values, own.values)
        share = TOLERANCES.get(codec.dtype, TOLERANCES[torch.float32])
        tolerance = share * peak(own.values)
        notes = [streamed.note] if streamed.note else []
        verdict: Verdict = "equal" if found == 0 else "different"
        wide = None
        if 0 < found <= tolerance:
            verdict = "within rounding"
            wide = self.in_double(own.values.numel())
            if wide is None:
                notes.append("not decoded in float64 too: judged by the tolerance alone")
            elif not wide[0] <= wide[1]:
                verdict = "different"
        axis = 0 if codec.kind == "image" else 1
        return Verification(
            verdict=verdict,
            family=codec.family,
            kind=codec.kind,
            dtype=str(codec.dtype).removeprefix("torch."),
            device=str(codec.device),
            latents_shape=tuple(self.latents.shape),
            latents_from="given",
            exactness=codec.exactness,
            difference=found,
            tolerance=tolerance,
            wide=None if wide is None else wide[0],
            wide_tolerance=None if wide is None else wide[1],
            equal_bytes=equal_share(streamed.bytes, own.bytes),
            frames=streamed.values.shape[axis],
            whole_frames=own.values.shape[axis],
            sha256=sha256(streamed.values),
            whole_sha256=sha256(own.values),
            notes=tuple(notes),
        )

    def streamed(self) -> _Way:
        """As a stream: once for the values, once for the bytes."""
        values, note = self.stream("float32", progress=self.progress)
        sound = self.codec.kind == "sound"
        return _Way(values, values if sound else self.stream("uint8")[0], note)

    def stream(
        self, output: Output, *, progress: Progress = False
    ) -> tuple[torch.Tensor, str | None]:
        """All that a stream gives, on the host; and what is wrong about how much it is."""
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
        chunks, note = run_on_loop_thread(_gathered, stream)
        axis = 0 if self.codec.kind == "image" else 1
        parts = [chunk.data for chunk in chunks]
        if output == "device":
            return torch.cat([torch.as_tensor(part) for part in parts], axis).cpu(), note
        return torch.from_numpy(np.concatenate([np.asarray(part) for part in parts], axis)), note

    def whole(self) -> _Way:
        """By the autoencoder itself."""
        decoded, kind = self.decoded(), self.codec.kind
        values = render(decoded, kind, "float32").cpu()
        return _Way(values, values if kind == "sound" else render(decoded, kind, "uint8").cpu())

    def decoded(self) -> torch.Tensor:
        """What the autoencoder itself gives, where it is."""
        codec = self.codec
        latents = self.latents.to(codec.device, codec.dtype)
        if self.normalized:
            latents = codec.denormalize(latents)
        decode = self.reference or cast("ModuleCodec", codec).whole
        self.noise.restart()
        return decode(latents)

    def in_double(self, values: int) -> tuple[float, float] | None:
        """The difference, and what of it may be rounding, when both ways decode in float64.

        None if there are too many values, or the weights cannot be copied and cast.
        """
        codec = self.codec
        if self.reference is not None or not isinstance(codec, ModuleCodec):
            return None
        if values > _AFFORDABLE or not _castable(codec):
            return None
        twin = codec._maker()(_copied(codec.module).double())
        both = replace(self, codec=twin, latents=self.latents.double(), progress=False)
        streamed, _ = both.stream("device")
        own = render(both.decoded(), codec.kind, "device").cpu()
        return difference(streamed, own), WIDE_TOLERANCE * peak(own)


def _castable(codec: ModuleCodec) -> bool:
    """Whether a copy of the weights in float64 decodes as they do, and on this device at all."""
    module = codec.module
    # Weights that are elsewhere, hooks, and methods bound to the original do not survive a copy.
    hooks = {"_hf_hook", "_diffusers_hook"}
    hooked = any(hooks & vars(part).keys() for part in module.modules())
    own = "decode" in vars(module)
    return codec.device.type in {"cpu", "cuda"} and not hooked and not own


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of what torch has computed from weights (``weight_norm``)."""
    tensors = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor)
    ]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in tensors})


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
