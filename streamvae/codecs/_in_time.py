"""Pictures that are the frames of a clip, which pipelines decode some at a time."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._by_item import ByItem
from ._module import check_count


class PicturesInTime(ByItem):
    """AutoencoderKL under AnimateDiff: frames of one clip, (T, C, h, w), to (1, 3, T, H, W).

    Source: ``AnimateDiffPipeline.decode_latents``. Frames do not depend on each other, but those
    that are decoded together are rounded together.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        decode_chunk_size: Frames that the pipeline decodes together.
    """

    kind: ClassVar[Kind] = "video"
    layout: ClassVar[str] = "TCHW"
    arguments: ClassVar[tuple[str, ...]] = ("decode_chunk_size",)
    exactness: ClassVar[str] = (
        "equal bit for bit to the pipeline's frames if it decodes as many together (others, and "
        "those of pipelines that decode all at once: within rounding, about 3e-6 in float32)"
    )

    def __init__(self, module: nn.Module, base: type, decode_chunk_size: object) -> None:
        super().__init__(module, base)
        if not isinstance(decode_chunk_size, int) or decode_chunk_size < 1:
            raise UsageError(f"expected decode_chunk_size of at least 1, got {decode_chunk_size!r}")
        self._together = decode_chunk_size

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """``decode_chunk_size`` frames a chunk; any number in fast mode."""
        check_count(latents_per_chunk)
        size = latents_per_chunk or self._together
        if mode == "exact" and size != self._together:
            raise UsageError(
                f"expected latents_per_chunk={self._together} in exact mode, the frames that the "
                f"pipeline decodes together, got {size}; pass mode='fast'"
            )
        return ChunkPlan(size, size)

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: as many frames together as the pipeline decodes."""
        parts = torch.split(latents, self._together)
        pictures = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in parts])
        return pictures.movedim(0, 1)[None]

    def decoder(self) -> Decoder:
        """A stream over a clip; it has no state."""
        return _Clip(super().decoder())


class _Clip:
    """Pictures, seen as the frames of one clip."""

    def __init__(self, pictures: Decoder) -> None:
        self._pictures = pictures

    def begin(self, latents: torch.Tensor) -> None:
        self._pictures.begin(latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        pictures = self._pictures.decode(latents)
        return None if pictures is None else pictures.movedim(0, 1)[None]

    def drain(self) -> torch.Tensor | None:
        return self._pictures.drain()

    def close(self) -> None:
        self._pictures.close()
