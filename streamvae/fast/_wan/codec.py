"""The Wan codec over this step: private histories for each stream, weights shared by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk

from .interface import Kernels
from .networks import FAILURES, LATENTS, Fingerprint, Rebuilt, networks, weights_version
from .obstacles import STEP, missing_support, obstacle
from .reference import ReferenceKernels
from .step import ChunkDecoder, Histories, most_latents


class StepCodec(CachedCausal):
    """AutoencoderKLWan (2.1) decoded by kernels of our own: (B, C, T, h, w) to frames.

    What is foretold of memory is that of diffusers' decoder. Where the kernels fail, that decoder
    runs, and `step_name` says why.

    Args:
        module: The autoencoder.
        base: Its class.
        kernels: In place of those for its device.
        fingerprint: Tells when weights have changed.
    """

    exactness = (
        "within rounding of vae.decode: sums are in float32 and rounded once (about 5e-6 in "
        "float32; in bfloat16 nearer to float32 than vae.decode is)"
    )

    def __init__(
        self,
        module: nn.Module,
        base: type,
        *,
        kernels: Kernels | None = None,
        fingerprint: Fingerprint = weights_version,
    ) -> None:
        super().__init__(module, base)
        self._made_of = ((base,), {})
        self._kernels = kernels
        self._fingerprint = fingerprint
        self._failure = ""

    @property
    def step_name(self) -> str:
        """Its name, or why diffusers' decoder runs in its place."""
        return f"eager ({self._failure})" if self._failure else STEP

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _StepWalk(self)

    def start(self, device: torch.device) -> Rebuilt | None:
        """Give the rebuilt decoder; None if there is none, and diffusers' has to do."""
        try:
            return networks.get(self.module, device, self._kernels, self._fingerprint)
        except FAILURES as error:
            self._failure = str(error)
            return None

    def fallback(self) -> Walk:
        """A walk of diffusers' decoder."""
        return super().walk()

    def _maker(self) -> Callable[[nn.Module], Codec]:
        # Kernels cannot be rehearsed on tensors without memory; diffusers' decoder can.
        base = self._made_of[0]
        return lambda module: cast("Codec", CachedCausal(module, *base))


class _StepWalk:
    """One walk's histories, made with its first chunk."""

    def __init__(self, codec: StepCodec) -> None:
        self._codec = codec
        self._built: Rebuilt | None = None
        self._histories: Histories | None = None
        self._fallback: Walk | None = None

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        first = self._histories is None
        if self._fallback is None and self._built is None:
            if latents.shape[2] != 1:
                raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
            self._built = self._codec.start(latents.device)
            if self._built is None:
                self._fallback = self._codec.fallback()
        if self._fallback is not None:
            return self._fallback.push(latents)
        assert self._built is not None  # noqa: S101  # just made
        network = self._built.network
        if self._histories is None:
            size = (latents.shape[3], latents.shape[4])
            chunk = min(LATENTS, most_latents(network))
            self._histories = Histories(network, latents.shape[0], size, chunk, latents.device)
        return self._decode(latents, self._histories, first=first)

    def _decode(self, latents: torch.Tensor, histories: Histories, *, first: bool) -> torch.Tensor:
        assert self._built is not None  # noqa: S101  # the caller has seen it
        network, kernels = self._built.network, self._built.kernels
        batch, _, count, height, width = latents.shape
        scale, rate = network.scale, 1 if first else network.rate
        pixels = latents.new_empty(batch, count * rate, height * scale, width * scale, 3)
        for clip, inputs in enumerate(histories.inputs):
            decoder = ChunkDecoder(network, inputs, kernels.fused_channels, first=first)
            for start in range(0, count, LATENTS):
                stop = min(start + LATENTS, count)
                hidden = latents[clip, :, start:stop]
                # Not clamped: tiles are, after they have been blended.
                decoder.decode(hidden, pixels[clip, start * rate : stop * rate], float("inf"))
        return pixels.permute(0, 4, 1, 2, 3)

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._histories = None
        self._built = None
        if self._fallback is not None:
            self._fallback.clear()


def step_codec(
    codec: Codec,
    device: torch.device,
    *,
    reference: bool = False,
    fingerprint: Fingerprint = weights_version,
) -> StepCodec | str:
    """The codec over this step in place of ``codec``, or why there is none.

    Args:
        codec: Any; only AutoencoderKLWan's own is replaced.
        device: Where it will decode.
        reference: Launch the kernels' reference in torch, on any device in any dtype: for tests.
        fingerprint: Tells when weights have changed.

    Returns:
        The codec, or the reason; empty if this is not for it.
    """
    if isinstance(codec, StepCodec):
        return codec
    if type(codec) is not CachedCausal or codec.family != "AutoencoderKLWan":
        return ""
    reason = obstacle(codec) or ("" if reference else missing_support(codec, device))
    if reason:
        return reason
    kernels = ReferenceKernels() if reference else None
    base = codec._made_of[0]
    return StepCodec(codec.module, *base, kernels=kernels, fingerprint=fingerprint)
