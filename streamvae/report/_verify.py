"""Decode both ways and compare: the stream, and what the family's users decode with otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from anyio.from_thread import start_blocking_portal

from .._errors import LatentsError, UsageError
from .._options import Mode, Progress, device_of
from .._source import resolve
from ..abc import Codec
from ..backends import for_device, mark
from ..codecs import ModuleCodec
from ..latents import LatentSource, is_pipeline, open_latents, whole
from ._both import Both, Noise, Reference
from ._sample import sample
from ._verification import Verification

if TYPE_CHECKING:
    import numpy.typing as npt


def verify(
    source: object = None,
    latents: torch.Tensor | npt.NDArray[Any] | str | os.PathLike[str] | None = None,
    *,
    call: Mapping[str, object] | None = None,
    normalized: bool = False,
    mode: Mode = "exact",
    latents_per_chunk: int | None = None,
    device: str | int | torch.device | None = None,
    seed: int = 0,
    reference: Reference | None = None,
    reference_device: str | int | torch.device | None = None,
    progress: Progress = False,
) -> Verification:
    """Decode latents as a stream and as the autoencoder itself does; compare every value.

    The stream goes the whole way, through queues, threads and copies. The other way is
    ``vae.decode`` of all latents (Stable Video Diffusion: of as many frames as its pipeline
    decodes together; pictures: of each item). Where they are not equal both are tried in float64
    too, in which rounding nearly vanishes, unless the latents are too large for that.

    In fast mode both are held against a third way besides: an exact stream of a copy of the weights
    in float32 (of float32 weights in float64), chunk by chunk, without TF32, which is off in the
    whole process meanwhile. The stream is accepted if its error is not more than 1.02 of that of
    the autoencoder's own decode.

    Noise that a decoder draws starts from the same state both times: torch's global generators are
    seeded for each and put back afterwards, and so are generators in ``call``.

    Args:
        source: An autoencoder, a path or hub id, None for the embedded VAE, or a `Codec`, one's own
            too.
        latents: What to decode: a tensor, an array or the path of a file, in the decoder's space.
            None for small latents of noise that suit the family.
        call: Keyword arguments of the autoencoder's ``decode`` (``temb``, ``num_frames``).
        normalized: The latents are in the diffusion model's space.
        mode: See `streamvae.stream_decode`.
        latents_per_chunk: See `streamvae.stream_decode`.
        device: Where weights loaded here go.
        seed: Of the latents made here, and of noise that the decoder draws.
        reference: What to compare with instead of ``vae.decode``: gets the latents on the device,
            in the dtype of the weights, and returns what the decoder of the codec would, as a
            whole. A `Codec` that is made of no autoencoder needs it.
        reference_device: Where the copy in a wider dtype decodes, in fast mode: it takes twice the
            memory. None for where the weights are.
        progress: As for `streamvae.stream_decode`, for the first of the streams.

    Raises:
        UsageError: ``source`` is a pipeline, has nothing to compare with, or an option is wrong.
        LatentsError: These latents cannot be decoded, or come one by one.
        UnknownSourceError: Nobody knows how to decode with ``source``.
        NonFiniteError: The latents or the frames hold NaN or infinity.
    """
    opened = None if latents is None else _opened(latents)
    aside = device_of(reference_device)
    if aside is not None:
        for_device(aside)  # seen to work
    codec = _codec(source, device_of(device), call or {})
    if reference is None and not isinstance(codec, ModuleCodec):
        raise UsageError(
            f"expected reference, a function to compare {codec.family} with, since that is a codec "
            "without an autoencoder, got none"
        )
    if opened is None:
        codec, notes = _completed(codec, items=1)
        given = sample(codec, seed)
    else:
        codec, notes, given = _read(opened, codec)
    shape = tuple(given.shape)
    codec.check(shape)
    codec.cut(shape[codec.axis], latents_per_chunk, mode)
    noise = Noise(seed, codec._made_of[1] if isinstance(codec, ModuleCodec) else {})
    both = Both(
        codec,
        given,
        reference,
        mode,
        latents_per_chunk,
        normalized=normalized and opened is not None,
        noise=noise,
        progress=progress,
        reference_device=aside,
    )
    with torch.no_grad(), noise.kept(codec.device):
        result = both.compared()
    return replace(
        result,
        latents_from=f"noise, seed {seed}" if opened is None else "given",
        notes=(*codec.notes(shape), *notes, *result.notes),
    )


def _opened(latents: object) -> LatentSource:
    """Look at what was given, before anything is loaded."""
    if not isinstance(latents, (torch.Tensor, np.ndarray, str, os.PathLike)):
        raise LatentsError(
            "expected all latents at once, as a tensor, a numpy array or the path of a file, got "
            f"{type(latents).__name__}"
        )
    return open_latents(latents, mark)


def _codec(source: object, device: torch.device | None, call: Mapping[str, object]) -> Codec:
    if is_pipeline(source):
        raise UsageError(
            f"expected an autoencoder, got a {type(source).__name__}; pass its vae, and latents "
            "as that one decodes them"
        )
    return resolve(source, normalized=False, device=device, call=call)[0]


def _completed(codec: Codec, items: int) -> tuple[Codec, tuple[str, ...]]:
    """The codec with arguments that its ``decode`` cannot do without, and a note of them."""
    missing = codec.missing(items) if isinstance(codec, ModuleCodec) else {}
    if not isinstance(codec, ModuleCodec) or not missing:
        return codec, ()
    again = cast("Callable[..., Codec]", type(codec))
    base, given = codec._made_of
    said = ", ".join(f"{name}={value}" for name, value in missing.items())
    note = f"decoded with {said}, as none was given"
    return again(codec.module, *base, **{**given, **missing}), (note,)


def _read(source: LatentSource, codec: Codec) -> tuple[Codec, tuple[str, ...], torch.Tensor]:
    """All latents, on whatever device they are, and the codec that they complete."""

    async def read() -> tuple[Codec, tuple[str, ...], torch.Tensor]:
        try:
            await source.open()
            completed, notes = _completed(codec, items=(source.shape or (1,))[0])
            piece = await whole(source, completed)
        finally:
            await source.aclose()
        if piece is None:
            raise LatentsError("expected latents whose number is known")
        # Whoever made them did so on the stream that decodes them, too: this thread's.
        return completed, notes, piece.tensor

    with start_blocking_portal("asyncio") as portal:
        return portal.call(read)
