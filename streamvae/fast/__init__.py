"""Faster ways to launch and to compute a chunk than an autoencoder's own decoder, each verified.

A graph launches the same kernels as one: the same bits. Other steps, for ``mode="fast"``, give the
same frames within rounding, from the weights as they are. Where one is not to be had, the
autoencoder's own decoder runs, kernel by kernel, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from streamvae._graphs import Graphs
from streamvae.abc import Codec

from ._fastvae import FusedWan, fused
from ._graphed import graphed
from ._launching import EAGER
from ._slots import release

__all__ = ["EAGER", "FusedWan", "Stepped", "fastest", "launched", "release"]


class Stepped(NamedTuple):
    """A codec and how it decodes.

    Attributes:
        codec: Decodes with the step.
        step: Says, for people, how: ``"graph"``, ``"fastvae 0.1.0"``, or ``"eager"`` and why it is
            nothing faster. It may have to take back what it said when chunks are launched.
    """

    codec: Codec
    step: Callable[[], str]


def fastest(codec: Codec, device: torch.device, graphs: Graphs | None = None) -> Stepped:
    """Find the fastest step for a codec; `launched` where there is none.

    Args:
        codec: Any.
        device: Where it will decode.
        graphs: The device's, if it has them.
    """
    faster = fused(codec, device)
    if isinstance(faster, FusedWan):
        name = faster.step_name
        return Stepped(faster, lambda: name)
    return launched(codec, graphs, faster)


def launched(codec: Codec, graphs: Graphs | None = None, why: str = "") -> Stepped:
    """Have a codec's chunks launched as graphs, where that can be done; the bits are the same.

    Args:
        codec: Any.
        graphs: The device's, if it has them.
        why: What else is to be said.
    """
    same = graphed(codec, graphs)
    if isinstance(same, str):
        said = "; ".join(filter(None, (why, same)))
        name = f"{EAGER} ({said})" if said else EAGER
        return Stepped(codec, lambda: name)
    codec, launching = same
    return Stepped(codec, lambda: "; ".join(filter(None, (launching.said, why))))
