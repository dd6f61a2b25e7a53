"""Sound: convolutions alone, so a window with enough latents around it gives the right samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import nn

from streamvae._errors import ClosedError, DeviceError, LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Decoder

from ._module import ModuleCodec, check_count, check_decode_is_own, check_shape, clips

_LATENTS_PER_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Reach:
    """How samples depend on latents, found by walking a decoder's convolutions.

    A window of the latents [a, b) gives the samples from ``hop * a``, of which those in
    [``hop * a + before``, ``hop * b - after``) are what decoding all latents gives: the others
    saw the zeros around the window instead of the latents there. At the true ends those zeros
    are right.

    Attributes:
        hop: Samples from one latent to the next.
        before: Samples that a missing past spoils.
        after: Samples that a missing future spoils or withholds.
        lost: Samples by which a decode is shorter than ``hop`` a latent (odd strides lose some).
    """

    hop: int
    before: int
    after: int
    lost: int

    @classmethod
    def of(cls, decoder: nn.Module) -> Self:
        """Walk the convolutions in the order they were registered, which is that of execution.

        Residual connections do not count: they see less than the convolutions beside them.
        """
        hop, before, after, lost = 1, 0, 0, 0
        for layer in decoder.modules():
            if isinstance(layer, nn.ConvTranspose1d):
                # Input i adds to the outputs stride * i - padding + [0, span].
                stride, padding, span = _geometry(layer)
                extra = layer.output_padding[0]
                hop, lost = hop * stride, lost * stride + stride - span + 2 * padding - 1 - extra
                before = (before - 1) * stride - padding + span + 1
                after = after * stride + padding
            elif isinstance(layer, nn.Conv1d):
                # Output j reads the inputs j - padding + [0, span]; the stride is always 1.
                _, padding, span = _geometry(layer)
                lost += span - 2 * padding
                before += padding
                after += span - padding
        return cls(hop, before, after, lost)

    @property
    def latents(self) -> tuple[int, int]:
        """Latents before and after one's own that can change its samples, rounded up."""
        return -(-self.before // self.hop), -(-self.after // self.hop)

    def total(self, latents: int) -> int:
        """Samples that ``latents`` latents give."""
        return max(0, self.hop * latents - self.lost)


def _geometry(layer: nn.Conv1d | nn.ConvTranspose1d) -> tuple[int, int, int]:
    padding, span = layer.padding[0], layer.dilation[0] * (layer.kernel_size[0] - 1)
    return layer.stride[0], cast("int", padding), span


class Halo(ModuleCodec):
    """AutoencoderOobleck: (B, C, T) to (B, channels of sound, S), floats as decoded.

    A chunk is decoded together with latents kept from before it; samples that later latents can
    still change are held back until those have come, or until the end (`Decoder.drain`).
    """

    kind: ClassVar[Kind] = "sound"
    layout: ClassVar[str] = "BCT"
    axis: ClassVar[int] = 2
    wants_all: ClassVar[bool] = False
    exactness: ClassVar[str] = "equal to vae.decode within rounding (at most 2e-6 in float32)"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels: int = self.vae.config["decoder_input_channels"]
        self.sample_rate: int = self.vae.config["sampling_rate"]
        self.reach = Reach.of(self.vae.decoder)

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """128 latents a chunk, or as many as asked for: the cut only changes rounding."""
        check_count(latents_per_chunk)
        size = latents_per_chunk or _LATENTS_PER_CHUNK
        return ChunkPlan(size, size)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length, with weights that are there.

        With tiling on, ``vae.decode`` gives the same sound within rounding as long as its tiles
        overlap far enough and no samples are lost between them; then tiling does not matter here.
        """
        check_shape(shape, self.layout, self.channels)
        if any(getattr(m, "weight_g", torch.empty(0)).is_meta for m in self.module.modules()):
            # torch computes a normalised weight before the hook brings what it is made of, so
            # vae.decode gives noise as well.
            raise DeviceError(
                f"expected {self.family} to have its weights, got them offloaded layer by layer, "
                "which its weight normalisation does not survive; offload it as a whole "
                "(enable_model_cpu_offload)"
            )
        overlap = getattr(self.vae, "tile_latent_overlap", 0)
        tiling = getattr(self.vae, "use_tiling", False)  # which older diffusers does not have here
        if tiling and (overlap < max(self.reach.latents) or self.reach.lost):
            raise UsageError(
                f"expected tiles that overlap by at least {max(self.reach.latents)} latents and "
                f"lose no samples while the autoencoder has tiling on, got an overlap of {overlap} "
                f"and {self.reach.lost} samples lost a tile: vae.decode gives another sound than "
                "the one streamed; call vae.disable_tiling()"
            )

    def frames(self, latents: int) -> int:
        """Samples, to the one."""
        return self.reach.total(latents)

    def picture(self, shape: tuple[int, ...]) -> None:  # noqa: ARG002  # sound has no picture
        """None."""
        return

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Once: what waited for latents that did not come."""
        return 1

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Unchanged: the diffusion model works in the decoder's space."""
        return latents

    def decoder(self) -> Decoder:
        """A stream with a window of its own."""
        return _Window(self)

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a window of latents, (B, C, t), each item on its own if the autoencoder slices."""
        self.onload()
        if self.vae.use_slicing and latents.shape[0] > 1:
            return torch.cat([self.vae.decoder(item) for item in clips(latents)])
        return cast("torch.Tensor", self.vae.decoder(latents))


class _Window:
    """One stream's window: the latents that samples to come still depend on."""

    def __init__(self, codec: Halo) -> None:
        self._codec = codec
        self._held: list[torch.Tensor] = []
        self._start = 0  # of the held latents
        self._end = 0  # of the latents that have come
        self._emitted = 0  # samples
        self._closed = False

    def begin(self, latents: torch.Tensor) -> None:
        """Nothing is done to all latents at once."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        self._require_open()
        try:
            return self._decode(latents)
        except BaseException:
            self.close()
            raise

    def _decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        reach = self._codec.reach
        if self._held and self._held[0].shape[:2] != latents.shape[:2]:
            raise LatentsError(
                "expected every chunk to have the batch and channels of the first, "
                f"{tuple(self._held[0].shape[:2])}, got {tuple(latents.shape[:2])}"
            )
        window = torch.cat([*self._held, latents], 2)
        self._end += latents.shape[2]
        samples = self._emit(window, reach.hop * self._end - reach.after)
        keep = max(self._start, (self._emitted - reach.before) // reach.hop)
        # A copy, as torch.cat's is: the giver may write over its latents once the chunk is
        # ready, and a view would keep the whole window alive.
        self._held[:] = [window[..., keep - self._start :].clone()]
        self._start = keep
        return samples

    def _emit(self, window: torch.Tensor, until: int) -> torch.Tensor | None:
        if until <= self._emitted:
            return None
        offset = self._codec.reach.hop * self._start
        samples = self._codec.window(window)[..., self._emitted - offset : until - offset]
        self._emitted = until
        return samples

    def drain(self) -> torch.Tensor | None:
        self._require_open()
        if not self._held:
            return None
        samples = self._emit(self._held[0], self._codec.reach.total(self._end))
        self._held.clear()
        return samples

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("expected an open decoder, got one that was closed")

    def close(self) -> None:
        self._closed = True
        self._held.clear()
