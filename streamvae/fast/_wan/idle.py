"""Kernels that do nothing: what is left of a step is the memory that it takes."""

from __future__ import annotations

import torch

from .interface import Convolution, Head, Norm
from .options import FUSED_CHANNELS, Kind


class IdleKernels:
    """Launches nothing; see `interface.Kernels`."""

    fused_channels = FUSED_CHANNELS

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:  # noqa: ARG002
        """See `interface.Kernels.convolution`."""
        return _idle

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:  # noqa: ARG002
        """See `interface.Kernels.head`."""
        return _idle

    def norm(self, gamma: torch.Tensor) -> Norm:  # noqa: ARG002
        """See `interface.Kernels.norm`."""
        return _idle


def _idle(*_: object, **__: object) -> None:
    return
