"""Windows as ``use_framewise_decoding`` lays them: each is faded into the one before.

HunyuanVideo is released with it, LTX and LTX-2 have it as an option
(``_temporal_tiled_decode`` in ``autoencoder_kl_{hunyuan_video,ltx,ltx2}.py`` of diffusers).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan

from ._module import check_decode_is_own
from ._tiles import Grid
from ._walk import Walk, WalkingCodec
from ._windows import HeldWalk, Windows, WindowWalk, cut_held

#: Methods of ``decode`` that windows are decoded without.
METHODS = ("decode", "_decode", "_temporal_tiled_decode")


@dataclass(frozen=True, slots=True)
class Framewise:
    """How an autoencoder decodes framewise, as its options are set now.

    Attributes:
        windows: How its windows lie, in latents. A clip shorter than one is decoded in one go.
        stride: Frames from one window to the next.
        blend: Frames faded into the window before.
        kept: Which frames of every window but the first are used: all but its first, or its last.
    """

    windows: Windows
    stride: int
    blend: int
    kept: slice

    @classmethod
    def of(cls, vae: nn.Module, kept: slice) -> Self | None:
        """Read the options; None where ``use_framewise_decoding`` is off.

        Raises:
            UsageError: The options make diffusers lose or repeat frames.
        """
        options = cast("Any", vae)
        if not options.use_framewise_decoding:
            return None
        ratio: int = options.temporal_compression_ratio
        size, stride = options.tile_sample_min_num_frames, options.tile_sample_stride_num_frames
        if not 0 < stride <= size or stride % ratio or size < ratio:
            raise UsageError(
                "expected tile_sample_stride_num_frames to be a multiple of "
                f"temporal_compression_ratio={ratio} and at most tile_sample_min_num_frames, since "
                f"windows would lose or repeat frames, got {stride} and {size}"
            )
        windows = Windows(size // ratio + 1, stride // ratio)
        return cls(windows, stride, size - stride, kept)

    def drains(self, latents: int) -> int:
        """How many windows are left after the last whole one; those that give no frame are not."""
        if not self.windows.whole(latents):
            return 1
        return -(-(self.windows.left(latents) - 1) // self.windows.stride)

    def walk(self, vae: nn.Module, decode: Callable[[torch.Tensor], torch.Tensor]) -> Walk:
        """A new walk.

        Args:
            vae: Whose ``blend_t`` fades.
            decode: Decodes the latents of a window, (B, C, t, h, w), to frames of its own.
        """
        return WindowWalk(self.windows, _Faded(self, vae, decode))


class _Faded:
    """Keeps the last frames of a window, which the next is faded into."""

    def __init__(
        self, rules: Framewise, vae: nn.Module, decode: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self._rules = rules
        self._vae = cast("Any", vae)
        self._decode = decode
        self._tail: list[torch.Tensor] = []  # at most one

    def join(self, latents: torch.Tensor) -> torch.Tensor:
        frames = self._decode(latents)
        stride = self._rules.stride
        if self._tail:
            frames = frames[:, :, self._rules.kept]
            frames = self._vae.blend_t(self._tail[0], frames, self._rules.blend)
        else:
            stride += 1
        self._tail[:] = [frames[:, :, max(0, frames.shape[2] - self._rules.blend) :].clone()]
        return frames[:, :, :stride]

    def end(self, latents: torch.Tensor) -> torch.Tensor | None:
        if not self._tail:  # not even one whole window: the clip is decoded in one go
            return self._decode(latents)
        return self.join(latents) if latents.shape[2] > 1 else None

    def clear(self) -> None:
        self._tail.clear()


class FramewiseVideo(WalkingCodec):
    """AutoencoderKLHunyuanVideo: (B, C, T, h, w) to (B, 3, 4(T-1)+1, 8h, 8w).

    With ``use_framewise_decoding`` (the default) windows of 5 latents, 3 apart, give 13 frames and
    then 12 each. Without it all latents are decoded at once, as they depend on one another.
    """

    exactness: ClassVar[str] = "equal bit for bit to vae.decode, window by window"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels: int = self.vae.config["latent_channels"]
        options = cast("Any", module)
        self._ratio: int = options.temporal_compression_ratio
        self._scale: int = options.spatial_compression_ratio

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """A window first, then as many latents as make the next whole; any number is exact."""
        rules = self._rules()
        if rules is None:
            return cut_held(latents, latents_per_chunk)
        return rules.windows.cut(latents_per_chunk)

    def frames(self, latents: int) -> int:
        """One for the first latent, 4 for each later one."""
        return self._ratio * (latents - 1) + 1

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 8 pixels a latent; tiles may lose or gain some."""
        grid = Grid.by_stride(self.module, shape)
        if grid is None:
            return shape[3] * self._scale, shape[4] * self._scale
        return grid.picture(shape, self._scale)

    def drains(self, latents: int) -> int:
        """One for each window that the end of the clip cuts short."""
        rules = self._rules()
        return 1 if rules is None else rules.drains(latents)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Says where nothing can be streamed."""
        if self._rules() is not None:
            return ()
        note = (
            f"{self.family} with use_framewise_decoding=False decodes all latents at once: no "
            "frame comes before the last latent, and memory grows with the length; set "
            "vae.use_framewise_decoding = True, as it was released, to stream"
        )
        return (note,)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's scaling factor, as diffusers' pipelines do."""
        return latents / cast("float", self.vae.config["scaling_factor"])

    def methods(self) -> Iterable[str]:
        """See `ModuleCodec.methods`; tiles are decoded by its own ``tiled_decode``."""
        return METHODS

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        rules = self._rules()
        return HeldWalk(self._at_once) if rules is None else rules.walk(self.module, self.window)

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one window, in spatial tiles where ``vae.decode`` would."""
        vae = cast("Any", self.module)
        frames: torch.Tensor
        if Grid.by_stride(self.module, tuple(latents.shape)) is not None:
            (frames,) = vae.tiled_decode(latents, return_dict=False)
        else:
            frames = vae.decoder(vae.post_quant_conv(latents))
        return frames

    def _at_once(self, latents: torch.Tensor) -> Generator[torch.Tensor, None, None]:
        yield self.window(latents)

    def _rules(self) -> Framewise | None:
        return Framewise.of(self.module, slice(1, None))
