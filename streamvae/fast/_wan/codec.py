"""The Wan codec over this step: private histories for each stream, weights shared by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk

from .freshness import Look, Weights
from .idle import IdleKernels
from .interface import Kernels
from .network import build
from .networks import FAILURES, Rebuilt, networks
from .obstacles import STEP, missing_support, obstacle
from .reference import ReferenceKernels
from .walk import StepWalk, Uint8Decoder

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

#: Whose decoders `build` knows, in some of their forms.
_FAMILIES = {"AutoencoderKLWan", "AutoencoderKLQwenImage"}


class StepCodec(CachedCausal):
    """AutoencoderKLWan and AutoencoderKLQwenImage decoded by kernels of our own.

    Latents (B, C, T, h, w) to frames. Where the kernels fail, diffusers' decoder runs, and
    `step_name` says why.

    Args:
        module: The autoencoder.
        base: Its class.
        kernels: In place of those for its device.
    """

    exactness = (
        "within rounding of vae.decode: sums are in float32 and rounded once (about 5e-6 in "
        "float32; in bfloat16 nearer to float32 than vae.decode is)"
    )

    def __init__(self, module: nn.Module, base: type, *, kernels: Kernels | None = None) -> None:
        super().__init__(module, base)
        self._made_of = ((base,), {})
        self._kernels = kernels
        self._failure = ""

    @property
    def step_name(self) -> str:
        """Its name, or why diffusers' decoder runs in its place."""
        return f"eager (no {STEP}: {self._failure})" if self._failure else STEP

    @property
    def notes_of_step(self) -> tuple[str, ...]:
        """What the user should know who has asked for it."""
        return (f"{self.family} is decoded {self.step_name}",) if self._failure else ()

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return StepWalk(self)

    def uint8_decoder(self) -> Uint8Decoder:
        """See `streamvae.abc.Quantizing`."""
        return Uint8Decoder(self)

    def epilogue(self, frames: torch.Tensor, *, tiled: bool) -> torch.Tensor:
        """See `WalkingCodec.epilogue`. Levels are what they are."""
        return frames if frames.dtype is torch.uint8 else super().epilogue(frames, tiled=tiled)

    def latest(self, device: torch.device) -> Rebuilt | None:
        """Give what an earlier stream decoded with, if there was one."""
        return networks.latest(self.module, device, self._kernels)

    def rebuilt(self, device: torch.device, look: Look) -> Rebuilt | None:
        """Give the decoder rebuilt of its weights; None if there is none: diffusers' has to do."""
        try:
            return networks.get(self.module, device, self._kernels, look)
        except FAILURES as error:
            self._failure = str(error)
            return None

    def fallback(self) -> Walk:
        """A walk of diffusers' decoder."""
        return super().walk()

    def understudy(self, fakes: FakeTensorMode) -> Codec | None:
        """See `streamvae._rehearsal.Rehearsing`."""
        copied = super().understudy(fakes)
        if not isinstance(copied, StepCodec):
            return None
        return cast("Codec", _RehearsedStep(copied.module, *self._made_of[0]))

    def _maker(self) -> Callable[[nn.Module], Codec]:
        (base,), kernels = self._made_of[0], self._kernels
        return lambda module: cast("Codec", StepCodec(module, base, kernels=kernels))


class _RehearsedStep(StepCodec):
    """The codec where nothing is computed: over tensors without memory."""

    def latest(self, device: torch.device) -> None:
        """There was no stream before."""

    def rebuilt(self, device: torch.device, look: Look) -> Rebuilt | None:  # noqa: ARG002
        kernels = IdleKernels()
        weights = Weights(None, torch.empty(0, device=device))
        return Rebuilt(weights, kernels, build(self.vae.decoder, kernels))


def step_codec(codec: Codec, device: torch.device, *, reference: bool = False) -> StepCodec | str:
    """The codec over this step in place of ``codec``, or why there is none.

    On a card its kernels are loaded and checked, which takes a moment once in a process.

    Args:
        codec: Any; only those of AutoencoderKLWan and AutoencoderKLQwenImage are replaced.
        device: Where it will decode.
        reference: Launch the kernels' reference in torch, on any device in any dtype: for tests.

    Returns:
        The codec, or the reason; empty if this is not for it.
    """
    if isinstance(codec, StepCodec):
        return codec
    if type(codec) is not CachedCausal or codec.family not in _FAMILIES:
        return ""
    missing = "" if reference else missing_support(codec, device)
    reason = missing or obstacle(codec)
    if not (reason or reference):
        reason = networks.load(device, codec.vae.decoder)
    if reason:
        return reason
    kernels = ReferenceKernels() if reference else None
    return StepCodec(codec.module, *codec._made_of[0], kernels=kernels)
