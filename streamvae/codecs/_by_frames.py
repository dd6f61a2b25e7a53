"""Clips decoded some frames at a time, each of these chunks as if it were a clip of its own."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._decoder import StreamDecoder
from ._module import ModuleCodec, check_count, check_shape


class ByFrames(ModuleCodec):
    """AutoencoderKLTemporalDecoder (SVD): frames of one clip, (T, C, h, w), to (1, 3, T, H, W).

    Source: ``StableVideoDiffusionPipeline.decode_latents``, which has ``vae.decode`` decode so many
    frames at a time that memory suffices. All frames of such a chunk depend on each other, and on
    none of another chunk: its size is part of the function. Each chunk goes through ``vae.decode``
    itself, so whatever the autoencoder does there is honoured.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        num_frames: Frames of the clip, if they are to be checked or come one by one.
        decode_chunk_size: Frames decoded together; None for all of the clip.

    Raises:
        UsageError: One of the two is no number of frames.
    """

    kind: ClassVar[Kind] = "video"
    layout: ClassVar[str] = "TCHW"
    axis: ClassVar[int] = 0
    sample_rate: ClassVar[None] = None
    wants_all: ClassVar[bool] = False
    arguments: ClassVar[tuple[str, ...]] = ("num_frames", "decode_chunk_size")

    def __init__(
        self,
        module: nn.Module,
        base: type,
        num_frames: object = None,
        decode_chunk_size: object = None,
    ) -> None:
        super().__init__(module, base)
        self.channels: int = self.vae.config["latent_channels"]
        self._scale: int = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self._num_frames = _count("num_frames", num_frames)
        self._together = _count("decode_chunk_size", decode_chunk_size) or self._num_frames

    @property
    def exactness(self) -> str:
        """What the streamed frames equal."""
        if self._together is None or self._together == self._num_frames:
            return "equal bit for bit to vae.decode of all frames at once"
        return (
            f"equal bit for bit to StableVideoDiffusionPipeline with decode_chunk_size="
            f"{self._together}: to vae.decode of as many frames at a time"
        )

    @property
    def needs_length(self) -> bool:
        """Whether all frames are decoded together, and nobody said how many there are."""
        return self._together is None

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """``decode_chunk_size`` frames at a time, else all of them."""
        check_count(latents_per_chunk)
        if latents is not None:
            self._check_frames(latents)
        size = self._together or latents
        if size is None:
            raise UsageError("expected frames whose number is known before they are cut")
        if latents_per_chunk not in {None, size}:
            raise UsageError(
                f"expected latents_per_chunk={size}, the frames that are decoded together, since "
                f"another number gives other frames, got {latents_per_chunk}; to change it pass "
                f"call={{'decode_chunk_size': {latents_per_chunk}}}"
            )
        return ChunkPlan(size, size)

    def check(self, shape: tuple[int, ...]) -> None:
        """Frames of one clip, any size."""
        check_shape(shape, self.layout, self.channels)
        if self._num_frames is not None and shape[0] > self._num_frames:
            self._check_frames(shape[0])

    def _check_frames(self, frames: int) -> None:
        if self._num_frames not in {None, frames}:
            raise LatentsError(
                f"expected latents ({', '.join(self.layout)}) of one clip of "
                f"num_frames={self._num_frames}, got {frames} frames; stream every clip of a batch "
                "on its own"
            )

    def frames(self, latents: int) -> int:
        """As many as latents."""
        return latents

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 8 pixels a latent in every release."""
        return shape[2] * self._scale, shape[3] * self._scale

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Nothing is held back."""
        return 0

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's scaling factor, in the order of operations of diffusers' pipeline."""
        return 1 / cast("float", self.vae.config["scaling_factor"]) * latents

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: as many frames together as the pipeline decodes."""
        vae = cast("Any", self.vae)
        parts = torch.split(latents, self._together or len(latents))
        frames = torch.cat([vae.decode(part, num_frames=len(part))[0] for part in parts])
        return frames.movedim(0, 1)[None]

    def decoder(self) -> Decoder:
        """A stream over a clip; it has no state."""
        return _Frames(self)


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"expected {name} of at least 1, got {value!r}")
    return value


class _Frames(StreamDecoder):
    """One stream's place in its clip: nothing but whether it has ended."""

    def __init__(self, codec: ByFrames) -> None:
        self._codec = codec

    def _push(self, latents: torch.Tensor) -> torch.Tensor:
        self._codec.check(tuple(latents.shape))
        vae = cast("Any", self._codec.vae)
        frames: torch.Tensor = vae.decode(latents, num_frames=latents.shape[0], return_dict=False)[
            0
        ]
        return frames.movedim(0, 1)[None]
