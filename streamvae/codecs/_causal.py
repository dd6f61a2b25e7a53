"""Causal video that diffusers decodes in one go: a walk of our own over the decoder's modules.

No frame depends on a later one, so that a decoder can be walked chunk by chunk once somebody
remembers what its layers have seen. diffusers keeps nothing here; `Past` does, for one walk:
the last frames of a convolution, the keys and values of an attention, and whether anything has
come yet. The modules are called, never changed: ``vae.decode`` stays right at any time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import nn

from streamvae.abc import ChunkPlan

from ._module import check_count, check_decode_is_own
from ._walk import State, WalkingCodec


class Past:
    """What one walk remembers of each layer; empty at first.

    Attributes:
        begun: Whether a chunk has gone through all layers; some treat the very first frame apart.
    """

    def __init__(self) -> None:
        self.begun = False
        self._last: dict[nn.Module, torch.Tensor] = {}
        self._seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: nn.Module, hidden: torch.Tensor, count: int) -> torch.Tensor:
        """Put the last ``count`` frames that ``layer`` got before ``hidden``, (B, C, T, h, w).

        Before the first chunk that is its first frame, over and over.
        """
        if not count:
            return hidden
        last = self._last.get(layer)
        if last is None:
            last = hidden[:, :, :1].expand(-1, -1, count, -1, -1)
        hidden = torch.cat([last, hidden], 2)
        self._last[layer] = hidden[:, :, -count:].clone()
        return hidden

    def attend(
        self,
        layer: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: int,
    ) -> torch.Tensor:
        """Let every frame look at itself and at all frames before it.

        Args:
            layer: Whose keys and values are remembered; they grow with the clip.
            query: (B, heads, T * tokens, C), frame by frame.
            key: Of the same shape.
            value: Of the same shape.
            tokens: Of one frame.

        Returns:
            As ``query``. One frame at a time needs no mask, which would be as large as the clip
            squared, and gives the same bits in chunks of any size.
        """
        if layer in self._seen:
            before = self._seen[layer]
            key, value = torch.cat([before[0], key], -2), torch.cat([before[1], value], -2)
        self._seen[layer] = key, value
        past = key.shape[-2] - query.shape[-2]
        frames = []
        for start in range(0, query.shape[-2], tokens):
            own, end = query[..., start : start + tokens, :], past + start + tokens
            frames.append(
                F.scaled_dot_product_attention(own, key[..., :end, :], value[..., :end, :])
            )
        return frames[0] if len(frames) == 1 else torch.cat(frames, -2)

    def drop(self, hidden: torch.Tensor, count: int) -> torch.Tensor:
        """Take the first ``count`` frames away, once in a walk: what upsampling made too much."""
        return hidden if self.begun else hidden[:, :, count:]

    def steady(self) -> State | None:
        """What it remembers, by layer; None where that is nothing yet, or grows with the clip."""
        if not self.begun or self._seen:
            return None
        return dict(self._last.items())

    @classmethod
    def of(cls, state: State) -> Past:
        """The past after some chunks that left ``state``."""
        past = cls()
        past.begun = True
        past._last.update(cast("dict[nn.Module, torch.Tensor]", state))
        return past

    def clear(self) -> None:
        """Forget everything, in place."""
        self.begun = False
        self._last.clear()
        self._seen.clear()


class CausalWalk:
    """One walk with its past. See `streamvae.codecs._walk.Walk`."""

    def __init__(self, codec: Causal) -> None:
        self._codec = codec
        self._past = Past()

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the next latents, as many as come."""
        frames = self._codec.step(latents, self._past)
        self._past.begun = True
        return frames

    def drain(self) -> None:
        """Nothing is held back."""

    def clear(self) -> None:
        """Let go of the past."""
        self._past.clear()

    @property
    def state(self) -> State | None:
        """See `streamvae.codecs._walk.Steady`; attention's grows."""
        return self._past.steady()

    def put(self, state: State) -> None:
        """Remember this instead."""
        self._past = Past.of(state)

    def is_step(self, latents: torch.Tensor) -> bool:  # noqa: ARG002
        """Any number of latents is."""
        return True

    def stepper(self) -> Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]:
        """See `streamvae.codecs._walk.Steady`."""
        again = self._codec.renewal()

        def step(latents: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
            past = Past.of(state)
            frames = cast("Causal", again()).step(latents, past)
            after = past.steady()
            if after is None:
                raise RuntimeError("what it remembers grows")
            return frames, after

        return step


class Causal(WalkingCodec):
    """What causal decoders share; a family's `walk` is a `CausalWalk` over its `Step`."""

    exactness: ClassVar[str]

    @property
    @abstractmethod
    def frames_per_latent(self) -> int:
        """Frames that each latent after the first gives."""

    @property
    @abstractmethod
    def scale(self) -> int:
        """Pixels along a side of a latent."""

    @abstractmethod
    def step(self, latents: torch.Tensor, past: Past) -> torch.Tensor:
        """One chunk's way through the decoder: latents (B, C, t, h, w) and the past to frames."""

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels: int = self.vae.config["latent_channels"]

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """One latent at a time, or any number: it is the same but for rounding."""
        check_count(latents_per_chunk)
        count = latents_per_chunk or 1
        return ChunkPlan(count, count)

    def frames(self, latents: int) -> int:
        """One for the first latent, ``frames_per_latent`` for each later one."""
        return self.frames_per_latent * (latents - 1) + 1

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: ``scale`` pixels a latent; tiles may lose or gain some."""
        grid = self.grid(shape)
        if grid is None:
            return shape[3] * self.scale, shape[4] * self.scale
        return grid.picture(shape, self.scale)


def unpack(hidden: torch.Tensor, time: int, side: int) -> torch.Tensor:
    """Lay channels, (B, C * time * side * side, T, h, w), out in time and space."""
    batch, _, frames, height, width = hidden.shape
    hidden = hidden.reshape(batch, -1, time, side, side, frames, height, width)
    hidden = hidden.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return hidden.reshape(batch, -1, frames * time, height * side, width * side)
