"""Faster ways to launch and to compute a chunk than an autoencoder's own decoder, each verified.

A graph launches the same kernels as one: the same bits. Other steps, for ``mode="fast"``, give the
same frames within rounding, from the weights as they are. Where one is not to be had, the
autoencoder's own decoder runs, kernel by kernel, and the reason is said.
"""

from __future__ import annotations

import os
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from streamvae._graphs import Graphs
from streamvae.abc import Codec
from streamvae.codecs import (
    Steady,
    Walk,
    WalkingCodec,
    find_override,
    is_compiled,
    steady_families,
)

from ._fastvae import FusedWan, fused
from ._launching import EAGER, GraphLauncher, check_only_stream, count_stream
from ._slots import release
from ._steady import GraphedWalk

__all__ = [
    "EAGER",
    "FusedWan",
    "Stepped",
    "check_only_stream",
    "count_stream",
    "fastest",
    "launched",
    "release",
]

#: ``STREAMVAE_GRAPHS=0`` has every chunk launched kernel by kernel.
VARIABLE = "STREAMVAE_GRAPHS"


class Stepped(NamedTuple):
    """A codec and how it decodes.

    Attributes:
        codec: Decodes with the step.
        name: What its step is called, ``"fastvae 0.1.0"`` or ``"eager"``, and why it is nothing
            faster, where nothing launches graphs.
        launcher: Launches graphs where `streamvae.warmup` has recorded some.
    """

    codec: Codec
    name: str
    launcher: GraphLauncher | None = None

    def step(self) -> str:
        """How chunks are decoded; may have to take back what it said when they are launched."""
        return self.name if self.launcher is None else self.launcher.status

    def notes(self) -> tuple[str, ...]:
        """What the user should know of it."""
        return () if self.launcher is None else self.launcher.notes

    def record(self, streams: int) -> None:
        """Record graphs for so many streams; on the launch thread, see `GraphLauncher.record`."""
        if self.launcher is not None:
            self.launcher.record(streams)


def fastest(codec: Codec, device: torch.device, graphs: Graphs | None = None) -> Stepped:
    """Find the fastest step for a codec; `launched` where there is none.

    Args:
        codec: Any.
        device: Where it will decode.
        graphs: The device's, if it has them.
    """
    faster = fused(codec, device)
    if isinstance(faster, FusedWan):
        return Stepped(faster, faster.step_name)
    return launched(codec, graphs, faster)


def launched(codec: Codec, graphs: Graphs | None = None, why: str = "") -> Stepped:
    """Have a codec's chunks launched as graphs, where some were recorded; the bits are the same.

    Args:
        codec: Any.
        graphs: The device's, if it has them.
        why: What else is to be said.
    """
    name = f"{EAGER} ({why})" if why else EAGER
    walking = isinstance(codec, steady_families) and not isinstance(codec, FusedWan)
    if graphs is None or not walking:
        return Stepped(codec, name)
    own = cast("WalkingCodec", codec)
    launcher = GraphLauncher(own.family, own.module, graphs, _obstacle(own), why)

    def between(walk: Walk) -> Walk:
        return GraphedWalk(walk, launcher) if isinstance(walk, Steady) else walk

    made = cast("WalkingCodec", own.renewal()())
    made.between = between
    return Stepped(cast("Codec", made), name, launcher)


def _obstacle(codec: WalkingCodec) -> str:
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0"
    hooks = {"_hf_hook", "_diffusers_hook"}
    if any(hooks & vars(part).keys() for part in codec.module.modules()):
        return "no graph over weights that a hook may move"
    return next(filter(None, map(_changeable, codec.vae.decoder.modules())), "")


def _changeable(part: nn.Module) -> str:
    """What of a module may do something else at the next chunk; empty if nothing."""
    kind = type(part).__name__
    if is_compiled(part):
        return f"no graph over a compiled {kind}"
    if parametrize.is_parametrized(part):
        return f"no graph over the parametrised weights of a {kind}"
    override = find_override(part)
    if override is not None:
        return f"no graph over {override.what} in its decoder"
    weights = (*part._parameters.values(), *part._buffers.values())
    return next(filter(None, map(_subclass, weights)), "")


def _subclass(tensor: torch.Tensor | None) -> str:
    plain = tensor is None or type(tensor) in {nn.Parameter, torch.Tensor}
    return "" if plain else f"no graph over weights of the class {type(tensor).__name__}"
