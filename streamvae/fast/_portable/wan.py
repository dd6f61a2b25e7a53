"""The Wan codec over these kernels: the step of `_wan`, with histories that slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk
from streamvae.fast._wan import StepCodec
from streamvae.fast._wan.interface import Kernels
from streamvae.fast._wan.networks import LATENTS, Rebuilt
from streamvae.fast._wan.obstacles import obstacle
from streamvae.fast._wan.walk import StepWalk
from streamvae.fast._wan.weights import padded

from .choice import kernels_for
from .histories import SlidingHistories
from .obstacles import STEP, missing_support
from .selftest import RMS_NORM

_FAMILIES = {"AutoencoderKLWan", "AutoencoderKLQwenImage"}


class PortableWan(StepCodec):
    """AutoencoderKLWan and AutoencoderKLQwenImage decoded channels last, on any device.

    Args:
        module: The autoencoder.
        base: Its class.
        kernels: Of this room.
        why: What makes them slower than they might be; empty if nothing does.
    """

    def __init__(
        self, module: nn.Module, base: type, *, kernels: Kernels | None = None, why: str = ""
    ) -> None:
        super().__init__(module, base, kernels=kernels)
        self._why = why

    @property
    def step_name(self) -> str:
        """Its name, and what is slower than it might be; or why diffusers' decoder runs."""
        if self._failure:
            return f"eager (no {STEP}: {self._failure})"
        return f"{STEP} ({self._why})" if self._why else STEP

    @property
    def notes_of_step(self) -> tuple[str, ...]:
        """What the user should know who has asked for it."""
        said = bool(self._failure or self._why)
        return (f"{self.family} is decoded {self.step_name}",) if said else ()

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _PortableWalk(self)

    def _maker(self) -> Callable[[nn.Module], Codec]:
        (base,), kernels, why = self._made_of[0], self._kernels, self._why
        return lambda module: cast("Codec", PortableWan(module, base, kernels=kernels, why=why))


class _PortableWalk(StepWalk):
    """One walk, whose histories are of the kind that cuDNN can read."""

    def _decode_in(self, built: Rebuilt, latents: torch.Tensor, *, first: bool) -> torch.Tensor:
        if self._histories is None:
            size = (latents.shape[3], latents.shape[4])
            self._histories = SlidingHistories(
                built.network, latents.shape[0], size, LATENTS, latents.device
            )
        return super()._decode_in(built, latents, first=first)


def portable_wan(
    codec: Codec, device: torch.device, *, anywhere: bool = False
) -> PortableWan | str:
    """The codec over these kernels in place of ``codec``, or why there is none.

    On a card, those of Triton are compiled and checked, once in a process.

    Args:
        codec: Any; only those of AutoencoderKLWan and AutoencoderKLQwenImage are replaced.
        device: Where it will decode.
        anywhere: Whether devices for which it does not pay are taken too.

    Returns:
        The codec, or the reason; empty if this is not for it.
    """
    if isinstance(codec, PortableWan):
        return codec
    if type(codec) is not CachedCausal or codec.family not in _FAMILIES:
        return ""
    missing = "" if anywhere else missing_support(codec.dtype, device)
    reason = missing or obstacle(codec)
    if reason:
        return reason
    decoder = codec.vae.decoder
    parts = [part for part in decoder.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))]
    # A head of few channels is summed tap by tap; one of a patch is filled up.
    widths = {
        padded(part.out_channels) if part is decoder.conv_out else part.out_channels
        for part in parts
    }
    kernels, why = kernels_for(device, codec.dtype, widths, RMS_NORM)
    return PortableWan(codec.module, *codec._made_of[0], kernels=kernels, why=why)
