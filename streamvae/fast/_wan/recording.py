"""Which specialisations of the kernels a decoder needs: found by a run without memory."""

from __future__ import annotations

import torch
from torch import nn

from .conv_shape import ConvShape
from .interface import Activation, Convolution, Frames, Head, Norm, count_frames
from .network import build
from .options import FUSED_CHANNELS, Kind, NormOptions, Options
from .step import ChunkDecoder, Histories

#: Pixels along a side of a latent picture, which no option depends on.
_SIDE = 2


class RecordingKernels:
    """Notes the options of every call, and computes nothing; see `interface.Kernels`.

    Attributes:
        options: Each once, in the order of their first call.
    """

    fused_channels = FUSED_CHANNELS

    def __init__(self) -> None:
        self.options: dict[Options, None] = {}

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:  # noqa: ARG002
        """See `interface.Kernels.convolution`."""
        return _Convolution(self, ConvShape.of(kind, weight))

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:  # noqa: ARG002
        """See `interface.Kernels.head`."""
        return _Head(self, ConvShape.of(Kind.HEAD, weight))

    def norm(self, gamma: torch.Tensor) -> Norm:
        """See `interface.Kernels.norm`."""
        return _Norm(self, gamma.numel())


class _Recorded:
    def __init__(self, kernels: RecordingKernels, shape: ConvShape) -> None:
        self.kernels = kernels
        self.shape = shape


class _Convolution(_Recorded):
    def __call__(
        self,
        source: Frames,
        *,
        to: Frames | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        frames = count_frames(self.shape.kind, to, activation)
        options = self.shape.options(
            source,
            frames,
            residual=residual is not None,
            write_sum=to is not None,
            write_norm=activation is not None,
        )
        self.kernels.options[options] = None


class _Head(_Recorded):
    def __call__(
        self,
        source: Frames,
        pixels: torch.Tensor,
        finite: torch.Tensor | None = None,  # noqa: ARG002
    ) -> None:
        quantised = pixels.dtype == torch.uint8
        options = self.shape.options(
            source,
            pixels.shape[0],
            residual=False,
            write_sum=not quantised,
            write_norm=quantised,
        )
        self.kernels.options[options] = None


class _Norm:
    def __init__(self, kernels: RecordingKernels, channels: int) -> None:
        self.kernels = kernels
        self.channels = channels

    def __call__(self, source: torch.Tensor, to: Frames, *, silu: bool = True) -> None:  # noqa: ARG002
        self.kernels.options[NormOptions(self.channels, silu)] = None


def options_of(
    decoder: nn.Module, latents: int = 1, pixels: torch.dtype = torch.bfloat16
) -> tuple[Options, ...]:
    """Find all specialisations for first chunks, and for later ones of ``latents``.

    Args:
        decoder: As of `network.build`; its weights are not read.
        latents: Decoded at a time.
        pixels: What the head writes.

    Raises:
        UnsupportedError: See `network.build`.
    """
    kernels = RecordingKernels()
    network = build(decoder, kernels)
    meta = torch.device("meta")
    if not network.head.quantises:
        pixels = network.dtype
    histories = Histories(network, 1, (_SIDE, _SIDE), latents, meta)
    side = _SIDE * network.scale
    for count, first in ((1, True), (latents, False)):
        frames = 1 if first else count * network.rate
        hidden = torch.empty(network.latent_channels, count, _SIDE, _SIDE, device=meta)
        given = torch.empty(frames, side, side, network.head.width, device=meta, dtype=pixels)
        chunk = ChunkDecoder(network, histories.inputs[0], kernels.fused_channels, first=first)
        with torch.no_grad():
            chunk.decode(hidden.to(network.dtype), given)
    return tuple(kernels.options)
