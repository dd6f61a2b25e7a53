"""Faster steps than an autoencoder's own decoder, for ``mode="fast"``; each measured and verified.

A step is taken only where it is known to give the same frames within rounding, from the weights
as they are. Where it is not, the autoencoder's own decoder runs, and the reason is said.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamvae.abc import Codec

from ._fastvae import FusedWan, fused

__all__ = ["EAGER", "FusedWan", "Stepped", "fastest"]

#: How `streamvae.StreamInfo.step` calls the autoencoder's own decoder.
EAGER = "eager"


class Stepped(NamedTuple):
    """A codec and how it decodes.

    Attributes:
        codec: Decodes with the step.
        step: For people: ``"fastvae 0.1.0"``, or ``"eager"`` and why it is nothing faster.
    """

    codec: Codec
    step: str


def fastest(codec: Codec, device: torch.device) -> Stepped:
    """Find the fastest step for a codec; the codec itself where there is none.

    Args:
        codec: Any.
        device: Where it will decode.
    """
    faster = fused(codec, device)
    if isinstance(faster, FusedWan):
        return Stepped(faster, faster.step_name)
    return Stepped(codec, f"{EAGER} ({faster})" if faster else EAGER)
