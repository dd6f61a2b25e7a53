"""The Wan codec over this step: private histories for each stream, weights shared by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk
from streamvae.fast._wan.networks import Rebuilt, networks, weights_version
from streamvae.fast._wan.obstacles import obstacle
from streamvae.fast._wan.step import ChunkDecoder

from .choice import chosen
from .histories import SlidingHistories
from .kernels import PortableKernels
from .obstacles import STEP, missing_support
from .interface import PointwiseOps

#: Latents decoded at a time, of a longer chunk: more take more memory, and as long each.
LATENTS = 1


class PortableWan(CachedCausal):
    """AutoencoderKLWan (2.1) decoded channels last: (B, C, T, h, w) to frames.

    What is foretold of memory is that of diffusers' decoder.

    Args:
        module: The autoencoder.
        base: Its class.
    """

    exactness = (
        "within rounding of vae.decode: sums are in float32 and rounded once (about 5e-6 in "
        "float32; in bfloat16 nearer to float32 than vae.decode is)"
    )

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        self._why = ""

    @property
    def step_name(self) -> str:
        """Its name, and what is slower than it might be."""
        return f"{STEP} ({self._why})" if self._why else STEP

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _PortableWalk(self)

    def rebuilt(self, device: torch.device) -> Rebuilt:
        """Give the decoder rebuilt for a device; shared by all streams over the autoencoder."""
        decoder = self.vae.decoder
        widths = {part.out_channels for part in decoder.modules() if isinstance(part, nn.Conv3d)}
        ops, self._why = chosen.get(device, next(decoder.parameters()).dtype, widths)
        return networks.get(self.module, device, _kernels(ops), weights_version)

    def _maker(self) -> Callable[[nn.Module], Codec]:
        # Triton cannot be rehearsed on tensors without memory; diffusers' decoder can.
        base = self._made_of[0]
        return lambda module: cast("Codec", CachedCausal(module, *base))


_made: dict[int, PortableKernels] = {}


def _kernels(ops: PointwiseOps) -> PortableKernels:
    """The same for the same operations, which live as long as the process: networks ask who."""
    return _made.setdefault(id(ops), PortableKernels(ops))


class _PortableWalk:
    """One walk's histories, made with its first chunk."""

    def __init__(self, codec: PortableWan) -> None:
        self._codec = codec
        self._built: Rebuilt | None = None
        self._histories: SlidingHistories | None = None

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self._push(latents)

    def _push(self, latents: torch.Tensor) -> torch.Tensor:
        first = self._built is None
        if first and latents.shape[2] != 1:
            raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
        built = self._built or self._codec.rebuilt(latents.device)
        network, kernels = built.network, built.kernels
        batch, _, count, height, width = latents.shape
        if self._histories is None:
            size = (height, width)
            self._histories = SlidingHistories(network, batch, size, LATENTS, latents.device)
        self._built = built
        scale, rate = network.scale, 1 if first else network.rate
        pixels = latents.new_empty(batch, count * rate, height * scale, width * scale, 3)
        for clip, inputs in enumerate(self._histories.inputs):
            decoder = ChunkDecoder(network, inputs, kernels.fused_channels, first=first)
            for start in range(0, count, LATENTS):
                stop = min(start + LATENTS, count)
                hidden = latents[clip, :, start:stop].to(network.dtype)
                # Not clamped: tiles are, after they have been blended.
                decoder.decode(hidden, pixels[clip, start * rate : stop * rate], float("inf"))
        return pixels.permute(0, 4, 1, 2, 3)

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._histories = None
        self._built = None


def portable_wan(codec: Codec, device: torch.device, *, anywhere: bool = False) -> PortableWan | str:
    """The codec over this step in place of ``codec``, or why there is none.

    Args:
        codec: Any; only AutoencoderKLWan's own is replaced.
        device: Where it will decode.
        anywhere: Whether devices for which it does not pay are taken too: for tests.

    Returns:
        The codec, or the reason; empty if this is not for it.
    """
    if isinstance(codec, PortableWan):
        return codec
    if type(codec) is not CachedCausal or codec.family != "AutoencoderKLWan":
        return ""
    reason = ("" if anywhere else missing_support(codec.dtype, device)) or obstacle(codec)
    return reason or PortableWan(codec.module, *codec._made_of[0])
