"""Faster ways to launch and to compute a chunk than an autoencoder's own decoder, each verified.

A graph launches the same kernels as one: the same bits. Other steps, for ``mode="fast"``, give the
same frames within rounding, from the weights as they are. Where one is not to be had, the
autoencoder's own decoder runs, kernel by kernel, and the reason is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import nn

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
from ._graphed import EAGER, GraphedWalk, GraphLauncher, check_only_stream
from ._obstacles import join_reasons
from ._portable import STEP as CHANNELS_LAST
from ._portable import portable, release_pictures
from ._slots import release_slots
from ._wan import STEP, StepCodec, networks, step_codec

__all__ = [
    "EAGER",
    "FusedWan",
    "Stepped",
    "check_only_stream",
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
        step: Says, for people, how: ``"graph"``, ``"fastvae 0.1.0"``, or ``"eager"`` and why it is
            nothing faster. It may have to take back what it said when chunks are launched.
        launcher: Of graphs, where there may be some.
        said: What the user should know of it, besides what the launcher says; as ``step``.
    """

    codec: Codec
    step: Callable[[], str]
    launcher: GraphLauncher | None = None
    said: Callable[[], tuple[str, ...]] = tuple

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, as far as is known by now."""
        return self.said() + (() if self.launcher is None else self.launcher.notes)


def release() -> int:
    """Give back the device memory that is kept for streams to come.

    That is of the graphs that `streamvae.warmup` has recorded, each with a decoder's state, and of
    weights that were packed for fused kernels, until their autoencoder goes or its weights change.
    Streams that run keep theirs.

    Returns:
        Bytes that torch's allocator has again; with the last graph of a device the memory between
        their kernels comes back too. ``torch.cuda.empty_cache()`` gives it to others.
    """
    return release_slots() + networks.release() + release_pictures()


def fastest(codec: Codec, device: torch.device, graphs: Graphs | None = None) -> Stepped:
    """Find the fastest step for a codec; `launched` where there is none.

    Args:
        codec: Any.
        device: Where it will decode.
        graphs: The device's, if it has them.
    """
    ours = step_codec(codec, device)
    if isinstance(ours, StepCodec):
        own = ours
        return Stepped(own, lambda: own.step_name, said=lambda: own.notes_of_step)
    anywhere = portable(codec, device)
    if not isinstance(anywhere, str):
        return Stepped(anywhere, lambda: anywhere.step_name, said=lambda: anywhere.notes_of_step)
    theirs = fused(codec, device)
    reasons = [(STEP, ours), (CHANNELS_LAST, anywhere)]
    if isinstance(theirs, FusedWan):
        name = theirs.step_name
        step, stepped = name, Stepped(theirs, lambda: name)
    else:
        reasons.append(("fastvae", theirs))
        step, stepped = "its own decoder", launched(codec, graphs, join_reasons(reasons))
    why = join_reasons(reasons)
    # On a CPU nobody expects kernels for cards.
    if not why or device.type == "cpu":
        return stepped
    note = f"mode='fast' decodes {codec.family} by {step}: {why}"
    return stepped._replace(said=lambda: (note,))


def launched(codec: Codec, graphs: Graphs | None = None, why: str = "") -> Stepped:
    """Have a codec's chunks launched as graphs, where some were recorded; the bits are the same.

    Args:
        codec: Any.
        graphs: The device's, if it has them.
        why: What else is to be said.
    """
    steady = isinstance(codec, steady_families) and not isinstance(codec, (FusedWan, StepCodec))
    if graphs is None or not steady:
        name = f"{EAGER} ({why})" if why else EAGER
        return Stepped(codec, lambda: name)
    own = cast("WalkingCodec", codec)
    launcher = GraphLauncher(own, graphs, _obstacle(own))

    def between(walk: Walk) -> Walk:
        return GraphedWalk(walk, launcher) if isinstance(walk, Steady) else walk

    made = cast("WalkingCodec", own.renewal()())
    made.between = between
    return Stepped(
        cast("Codec", made), lambda: "; ".join(filter(None, (launcher.status, why))), launcher
    )


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
    override = find_override(part)
    if override is not None:
        return f"no graph over {override.what} in its decoder"
    for weight in (*part._parameters.values(), *part._buffers.values()):
        if weight is not None and type(weight) not in {nn.Parameter, torch.Tensor}:
            return f"no graph over weights of the class {type(weight).__name__}"
    return ""
