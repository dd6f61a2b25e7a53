"""LTX and LTX-2 as ``use_framewise_decoding`` is set: by look-ahead, or in diffusers' windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan

from ._framewise import METHODS, Framewise
from ._lookahead import LookAhead, LookAheadOrCausal
from ._ltx_parts import injects_noise
from ._tiles import Grid
from ._walk import Walk


class LookAheadOrFramewise(LookAhead):
    """AutoencoderKLLTXVideo, also with ``use_framewise_decoding`` (which is off by default).

    Then windows of 3 latents, one apart, give 9 frames and then 8 each: three times the work, and
    frames other than those of the whole clip, for constant memory in diffusers.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        temb: As for `LookAhead`.
        generator: As for `LookAhead`; windows take their noise from torch's global one alone.
    """

    exactness: ClassVar[str] = (
        f"{LookAhead.exactness}; with use_framewise_decoding equal bit for bit, window by window"
    )

    def framewise(self) -> Framewise | None:
        """How windows lie; None where the flag is off.

        Raises:
            UsageError: They would lose frames.
        """
        return Framewise.of(self.module, slice(None, -1))

    def check_framewise(self) -> None:
        """Refuse a generator, which the decoder's own layers do not take.

        Raises:
            UsageError: Naming it.
        """
        if self.framewise() is None or self.given.generator is None or not injects_noise(self.ltx):
            return
        raise UsageError(
            "expected no generator with use_framewise_decoding, whose windows take noise from "
            "torch's global generator alone, got one; call torch.manual_seed, or set "
            "vae.use_framewise_decoding=False"
        )

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:
        """By windows: one first, then as many latents as make the next whole; any number."""
        rules = self.framewise()
        if rules is None:
            return super().cut(latents, latents_per_chunk, mode)
        return rules.windows.cut(latents_per_chunk)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """Windows are tiled one by one: there are no tiles of whole clips."""
        return super().grid(shape) if self.framewise() is None else None

    def drains(self, latents: int) -> int:
        """By windows: one for each that the end of the clip cuts short."""
        rules = self.framewise()
        return super().drains(latents) if rules is None else rules.drains(latents)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """By windows, what is different."""
        if self.framewise() is None:
            return super().notes(shape)
        other = (
            f"{self.family} with use_framewise_decoding gives other frames than without, for three "
            "times the work; a stream needs it neither for memory nor to begin early"
        )
        noise = (
            "this decoder injects noise from torch's global generator, window by window, which "
            "streams that take turns share"
        )
        return (other, noise) if injects_noise(self.ltx) else (other,)

    def methods(self) -> Iterable[str]:
        """By windows: tiles are decoded by its own ``tiled_decode``."""
        return super().methods() if self.framewise() is None else METHODS

    def entered(self) -> Iterable[nn.Module]:
        """By windows: none, as the decoder itself is called."""
        return super().entered() if self.framewise() is None else ()

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        rules = self.framewise()
        return super().walk() if rules is None else rules.walk(self.module, self.window)

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one window, in spatial tiles where ``vae.decode`` would."""
        vae, shape = cast("Any", self.module), tuple(latents.shape)
        given = self.conditions(latents.device)
        frames: torch.Tensor
        if Grid.by_stride(self.module, shape) is not None:
            (frames,) = vae.tiled_decode(latents, **given, return_dict=False)
        else:
            frames = vae.decoder(latents, **given)
        return frames

    def conditions(self, device: torch.device) -> Mapping[str, object]:
        """What the decoder is called with besides latents."""
        temb = self.given.temb
        return {"temb": None if temb is None else temb.to(device)}


class LookAheadCausalOrFramewise(LookAheadOrCausal, LookAheadOrFramewise):
    """AutoencoderKLLTX2Video, also with ``use_framewise_decoding`` (which is off by default)."""

    def conditions(self, device: torch.device) -> Mapping[str, object]:
        """As for LTX, and ``causal``."""
        return {**super().conditions(device), "causal": self._causal}
