"""Windows of a clip that is padded to whole ones: MiniMax-H3.

``_decode`` in ``autoencoder_kl_minimax_h3.py`` of diffusers.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan

from ._module import check_decode_is_own, check_shape
from ._walk import Walk, WalkingCodec
from ._windows import Windows, WindowWalk


class PaddedWindows(WalkingCodec):
    """AutoencoderKLMiniMaxH3: (B, 24, T, h, w) to (B, 3, F, 16h, 16w); 5n + 2 latents to 17n + 5.

    A window of 7 latents gives 17 frames, of which the first 5 are faded into what the window
    before made of its last two latents. The end of a clip is padded with its last latent.
    Frames are normalized by ImageNet's statistics, as ``vae.decode`` gives them, not in [-1, 1].
    """

    exactness: ClassVar[str] = "equal bit for bit to vae.decode, window by window"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels: int = self.vae.config["latent_channels"]
        self._dtype_of = importlib.import_module(base.__module__).get_parameter_dtype
        # What the constructor derives from clip_length and token_drop; the names are diffusers'.
        options = cast("Any", module)
        self._time: int = options.temporal_compression_ratio
        self._space: int = options.spatial_compression_ratio
        self._stride: int = options.tokens_chunk_size
        self._overlap: int = options.token_overlap
        self._drop: int = self.vae.config["token_drop"]
        self._before: int = options.frame_pre_padding
        self.fade: int = options.frame_overlap
        self.windows = Windows(self._stride + self._overlap, self._stride)
        if not 0 <= self._drop < self._stride:
            raise UsageError(
                f"expected token_drop below the {self._stride} latents of a chunk of "
                f"{self.family}, got {self._drop}"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights that see the latents first; the rest may be in others."""
        return cast("torch.dtype", self._dtype_of(self.vae.post_quant_conv))

    def check(self, shape: tuple[int, ...]) -> None:
        """Any size, where tiles are whole latents."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()
        options = cast("Any", self.module)
        if not options.use_tiling:
            return
        for side in ("height", "width"):
            tile = getattr(options, f"tile_sample_min_{side}")
            overlap = getattr(options, f"tile_sample_min_overlap_{side}")
            if tile % self._space or overlap % self._space or not 0 <= overlap < tile:
                raise UsageError(
                    f"expected tile_sample_min_{side} and a smaller tile_sample_min_overlap_{side} "
                    f"that are multiples of {self._space} pixels, got {tile} and {overlap}"
                )

    def check_length(self, latents: int) -> None:
        """Refuse a clip that diffusers fails to decode.

        Raises:
            LatentsError: Naming how many are needed and how many came.
        """
        if latents <= self._overlap:
            raise LatentsError(
                f"expected at least {self._overlap + 1} latents, as {self.family} makes no frames "
                f"of fewer, got {latents}"
            )

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """A window first, then as many latents as make the next whole; any number is exact."""
        if latents is not None:
            self.check_length(latents)
        return self.windows.cut(latents_per_chunk)

    def frames(self, latents: int) -> int:
        """17 for each 5 latents, 5 for the last two; a clip in between loses its padding."""
        chunks = -(-(latents + self._drop) // self._stride) - (self._drop > 0)
        return chunks * self.per_window + self.fade - self.padding(latents)[1]

    @property
    def per_window(self) -> int:
        """Frames that each window gives."""
        return self._stride * self._time - self._before

    def padding(self, latents: int) -> tuple[int, int]:
        """By how many latents a clip of so many is padded, and the frames that this is too much."""
        count = -(latents + self._drop) % self._stride
        short: int = self.vae.config["clip_length"] % self._time or self._time
        ends = ((latents + k) % self._stride == 0 for k in range(count))
        return count, sum(short if end else self._time for end in ends)

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 16 pixels a latent."""
        return shape[3] * self._space, shape[4] * self._space

    def drains(self, latents: int) -> int:  # noqa: ARG002
        """One: the padded window, and the frames that no window is faded into."""
        return 1

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's statistics of each channel, in the order of diffusers' pipeline."""
        return latents * self.constant("latents_std", latents) + self.constant(
            "latents_mean", latents
        )

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """See `WalkingCodec.prologue`."""
        return latents.to(self.dtype)

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return WindowWalk(self.windows, _Padded(self))

    def window(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a window: frames of its own, and those it shares with the next."""
        clip: torch.Tensor = cast("Any", self.module)._decode_clip(latents)
        middle = self._stride * self._time
        return clip[:, :, self._before : middle], clip[:, :, middle + self._before :]

    def faded(self, before: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Fade frames into what the window before shares with theirs."""
        blended: torch.Tensor = cast("Any", self.module)._blend(before, frames, self.fade, dim=-3)
        return blended


class _Padded:
    """Keeps the frames that a window shares with the next."""

    def __init__(self, codec: PaddedWindows) -> None:
        self._codec = codec
        self._shared: list[torch.Tensor] = []  # at most one

    def join(self, latents: torch.Tensor) -> torch.Tensor:
        frames, shared = self._codec.window(latents)
        if self._shared and self._codec.fade:
            frames = self._codec.faded(self._shared[0], frames)
        self._shared[:] = [shared.clone()]
        return frames

    def end(self, latents: torch.Tensor) -> torch.Tensor | None:
        codec = self._codec
        count, extra = codec.padding(latents.shape[2])
        parts = []
        if not self._shared:
            codec.check_length(latents.shape[2])
        if count:
            padding = latents[:, :, -1:].expand(-1, -1, count, -1, -1)
            parts.append(self.join(torch.cat([latents, padding], 2)))
        frames = torch.cat([*parts, *self._shared], 2)
        self._shared.clear()
        return frames[:, :, : frames.shape[2] - extra] if frames.shape[2] > extra else None

    def clear(self) -> None:
        self._shared.clear()
