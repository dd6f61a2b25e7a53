"""What the launch thread does with one chunk: prepare, decode, transform, render, check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch

from ._bands import bands_of
from ._caller import CallerContext, autocasts
from ._chunks import Band
from ._errors import ShapeError
from ._pixels import Output, all_finite, channels_last, render, yuv420p
from .abc import Banded, Codec, Decoder, Rendered, Uint8Codec, Uint8Decoder

P = ParamSpec("P")
T = TypeVar("T")

#: From latents as they were given (on the device of the weights), the index of the first of them
#: along the codec's axis, and the dtype of the weights, to latents the decoder takes.
Prepare = Callable[[torch.Tensor, int, torch.dtype], torch.Tensor]


def cast_to_weights(latents: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG001
    """Latents that are ready to decode but for their dtype.

    Under autocast the autoencoder takes them as they are: it casts for itself, all but float64.
    """
    if autocasts(latents.device.type) and latents.dtype is not torch.float64:
        return latents
    return latents.to(dtype)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What lies between the latents as they are given, the codec, and the pixels.

    For a bare autoencoder next to nothing; for a pipeline all it does around ``vae.decode``.

    Attributes:
        prepare: What is done to each chunk of latents, on the compute stream: elementwise, or to
            put into order what ``view`` only relabelled.
        view: What takes latents as they are given to the codec's layout, by views only: it runs on
            the loop, over whatever comes at once (also on ``meta``, for the shape).
        finish: What is done to the decoder's pixels, on the compute stream, to have them in
            [-1, 1] as the `streamvae._pixels` rule wants them.
        picture: Height and width in pixels after ``finish``; None where it keeps the decoder's.
    """

    prepare: Prepare = cast_to_weights
    view: Callable[[torch.Tensor], torch.Tensor] | None = None
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None
    picture: tuple[int, int] | None = None


#: Runs on the compute stream over a decoder's float pixels; may change height, width, channels.
Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class Recipe:
    """One stream's way from latents to rendered pixels; called on the launch thread only.

    Attributes:
        codec: Rules and weights.
        decoder: This stream's state.
        output: What consumers get.
        preparation: What is done around the decoder.
        transform: Runs over the decoder's pixels, (B, C, T, H, W) or (B, C, H, W), in [-1, 1].
        mode: ``"exact"`` or ``"fast"``.
        planes: Whether uint8 RGB and grey video is made planes of 4:2:0.
        caller: Runs whatever is not ours as the stream's caller would; None: as it is.
    """

    codec: Codec
    decoder: Decoder
    output: Output
    preparation: Preparation = Preparation()
    transform: Transform | None = None
    #: All latents in one or more pieces, where they are known beforehand and the codec wants them;
    #: used once.
    everything: tuple[torch.Tensor, ...] = ()
    #: Latents decoded so far.
    latents: int = 0

    #: Device and dtype of the weights. Finding out means walking all modules: once is enough.
    place: tuple[torch.device, torch.dtype] | None = None
    mode: str = "exact"
    planes: bool = False
    caller: CallerContext | None = None
    #: Whether latents that have given no pixels yet are finite; a bool on the device.
    _finite: torch.Tensor | None = None
    #: At most one: the bands that the picture begun last has yet to give.
    _coming: list[Iterator[torch.Tensor]] = field(default_factory=list)

    def bands(self, pieces: tuple[torch.Tensor, ...]) -> tuple[Band, ...]:
        """What bands a chunk is decoded in, on whatever thread; empty if in one piece."""
        axis = self.codec.axis
        shape = list(pieces[0].shape)
        shape[axis] = sum(piece.shape[axis] for piece in pieces)
        changed = self.transform is not None or self.preparation.finish is not None
        return () if changed else bands_of(self.codec, tuple(shape), self.mode)

    def decode(self, pieces: tuple[torch.Tensor, ...], band: Band | None = None) -> Rendered | None:
        """Decode the next chunk, given in one or more pieces, or the next band of it."""
        return self._render(self._run(self._decoded, pieces, band))

    def close(self) -> None:
        """Let go of the decoder's state, and of a picture that is not complete."""
        self._coming.clear()
        self._run(self.decoder.close)

    def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what is not ours (autoencoder, pipeline's steps, transform) in the caller's world."""
        return (
            call(*args, **kwargs) if self.caller is None else self.caller.run(call, *args, **kwargs)
        )

    def _decoded(self, pieces: tuple[torch.Tensor, ...], band: Band | None) -> torch.Tensor | None:
        if band is not None and band.rows.start:
            return self._next(band)
        latents = self._prepared(pieces)
        if band is None:
            return self._finished(self.decoder.decode(latents))
        assert isinstance(self.codec, Banded)  # noqa: S101  # whose band it is
        self._coming.append(self.codec.in_bands(latents, self.mode))
        return self._next(band)

    def _finished(self, decoded: torch.Tensor | None) -> torch.Tensor | None:
        finish = self.preparation.finish
        return decoded if decoded is None or finish is None else finish(decoded)

    def _next(self, band: Band) -> torch.Tensor | None:
        decoded = next(self._coming[0], None)
        if band.last:
            self._coming.clear()
        height = 0 if decoded is None else decoded.shape[-2]
        if height != len(band.rows):
            raise ShapeError(
                f"expected {len(band.rows)} rows of {self.codec.family}, got {height}; leave "
                "tiling as it is while a stream runs"
            )
        return self._finished(decoded)

    def _prepared(self, pieces: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """What the decoder takes, in one piece, where it takes it."""
        place = self.place = self.place or (self.codec.device, self.codec.dtype)
        latents = self._joined(pieces, place[0])
        if self.everything:
            whole = self._joined(self.everything, place[0])
            self.everything = ()
            self.decoder.begin(self.preparation.prepare(whole, 0, place[1]))
            del whole
        latents = self.preparation.prepare(latents, self.latents, place[1])
        self.latents += latents.shape[self.codec.axis]
        finite = all_finite(latents)
        self._finite = finite if self._finite is None else self._finite & finite
        return latents

    def _joined(self, pieces: tuple[torch.Tensor, ...], device: torch.device) -> torch.Tensor:
        moved = [piece.to(device) for piece in pieces]
        return moved[0] if len(moved) == 1 else torch.cat(moved, self.codec.axis)

    def drain(self) -> Rendered | None:
        """Give what the decoder still holds."""
        return self._render(self._run(lambda: self._finished(self.decoder.drain())))

    def _pixels_finite(self, decoded: torch.Tensor) -> torch.Tensor:
        finite = None
        if decoded.dtype is torch.uint8 and isinstance(self.decoder, Uint8Decoder):
            finite = self.decoder.finite
        return all_finite(decoded) if finite is None else finite

    def _render(self, decoded: torch.Tensor | None) -> Rendered | None:
        if decoded is None:
            return None
        pixels_finite = self._pixels_finite(decoded)
        latents_finite = pixels_finite | True if self._finite is None else self._finite
        self._finite = None
        if self.transform is not None:
            decoded = _checked(self._run(self.transform, decoded), decoded)
        if decoded.dtype is torch.uint8:
            pixels = channels_last(decoded, self.codec.kind).contiguous()
        else:
            pixels = render(decoded, self.codec.kind, self.output)
        picture = None
        if self.planes and pixels.shape[-1] in {1, 3}:
            picture = (pixels.shape[2], pixels.shape[3])
            pixels = yuv420p(pixels).unsqueeze(-1)
        return Rendered(pixels, torch.stack((latents_finite, pixels_finite)), picture)


def decoder_for(
    codec: Codec, output: Output, preparation: Preparation, transform: Transform | None
) -> Decoder:
    """A new stream's decoder: one that gives uint8, where nobody wants the floats."""
    plain = transform is None and preparation.finish is None
    if output == "uint8" and plain and isinstance(codec, Uint8Codec):
        return codec.uint8_decoder()
    return codec.decoder()


def _checked(transformed: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Refuse a transform that changes what may not change."""
    fixed = (0, 2) if decoded.ndim in {3, 5} else (0,)
    shape = getattr(transformed, "shape", ())
    if len(shape) != decoded.ndim or any(shape[axis] != decoded.shape[axis] for axis in fixed):
        came = f"shape {tuple(shape)}" if shape else f"{type(transformed).__name__}"
        raise ShapeError(
            f"expected transform to keep the dimensions and axes {fixed} of "
            f"{tuple(decoded.shape)}, got {came}"
        )
    return transformed
