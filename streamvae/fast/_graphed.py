"""Steady chunks as one graph each: bit-equal, one launch in place of some 640.

Eager launching of a 720p chunk of Wan 2.1 takes the launch thread 16 ms, and leaves gaps between
kernels. The first chunk has kernels of its own, and so a graph of its own; what it leaves behind
(for Wan's convolutions two frames, zeros before the first) is then the state of all others. A
slot's first stream decodes two chunks eagerly, to learn from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from streamvae._errors import UsageError
from streamvae._graphs import Graphs
from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Steady, Walk, WalkingCodec, steady_families

from ._launching import Launching, key_of
from ._slots import Slot
from ._static import Copies, Entry, Lent, StaticCache
from ._steady import GraphedSteady

#: ``STREAMVAE_GRAPHS=0`` has every chunk launched kernel by kernel.
VARIABLE = "STREAMVAE_GRAPHS"

#: Whose modules are known to do the same at every chunk; others (LoRA's, ...) may switch.
_KNOWN = {"diffusers", "torch"}


class GraphedCausal(CachedCausal):
    """`CachedCausal` whose steady chunks are graphs: (B, C, T, h, w) to the same frames.

    Made for one stream. What is foretold of memory is that of diffusers' decoder; a graph's own,
    that between its kernels, comes on top.

    Args:
        module: The autoencoder.
        base: Its class.
        graphs: The device's.
    """

    def __init__(self, module: nn.Module, base: type, *, graphs: Graphs) -> None:
        super().__init__(module, base)
        self._made_of = ((base,), {})  # graphs are no argument of decode
        self.launching = Launching(self.family, module, graphs)

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        self.launching.walks += 1
        return _Graphed(self)

    def weights(self) -> tuple[torch.Tensor, ...]:
        """What the decoder's kernels read."""
        decoder = self.vae.decoder
        return (*decoder.parameters(), *decoder.buffers())

    def _maker(self) -> Callable[[nn.Module], Codec]:
        base = self._made_of[0]  # memory is foretold of the decoder, not of its launching
        return lambda module: cast("Codec", CachedCausal(module, *base))


class _Graphed:
    """One walk: its slot's graph of a first chunk, then that of a steady one again and again."""

    def __init__(self, codec: GraphedCausal) -> None:
        self._codec = codec
        self._launching = codec.launching
        self._cache: list[Entry] = []
        self._slot: Slot | None = None
        self._pushed = 0

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        number, self._pushed = self._pushed, self._pushed + 1
        if number == 0:
            return self._first(latents)
        if self._slot is not None and self._launching.usable(self._slot, latents):
            return self._kept(self._launching.replay(self._slot, latents))
        if number == 1 and self._slot is None and not self._launching.obstacle:
            return self._recorded(latents)
        return self._codec.step(latents, self._cache, first=False)

    def _kept(self, frames: torch.Tensor) -> torch.Tensor:
        """What a graph gave, to be read before the next one is launched.

        One walk's frames are clamped, and so copied, at once; those of tiles are kept till the last
        of them is there.
        """
        return frames.clone() if self._launching.walks > 1 else frames

    def _first(self, latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[2] != 1:
            raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
        codec = self._codec
        slot = self._launching.take(key_of(codec.family, latents), codec.weights())
        if slot is None:
            self._cache = codec.cache()
        else:
            self._slot, self._cache = slot, cast("StaticCache", slot.state)
            frames = self._launching.first(slot, latents)
            if frames is not None:
                return self._kept(frames)
            slot.state.rewind()
        return codec.step(latents, self._cache, first=True)

    def _recorded(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the second chunk, eager, and record the graph for those that follow."""
        codec = self._codec
        with Copies() as copies:
            frames, left = self._launching.rehearse(self._second(latents))
        copied = copies.kept(left)
        # Out of the memory that the graphs overwrite.
        frames = frames.clone()
        kept = [entry.clone() if isinstance(entry, torch.Tensor) else entry for entry in left]
        self._cache = kept
        del left
        if any(isinstance(entry, str) for entry in kept):
            self._launching.graphs.settle()
            self._launching.give_up("its memory is not only tensors")
            return frames
        cache = self._cache = StaticCache(kept)
        again = codec.renewal()  # idle slots must not keep their autoencoder

        def chunk(static: torch.Tensor) -> torch.Tensor:
            cache.lent = Lent(copied)
            try:
                with cache.lent:
                    given = cast("CachedCausal", again()).step(static, cache, first=False)
                cache.lent.settle()
            finally:
                cache.lent = None
            return given

        def first(static: torch.Tensor) -> torch.Tensor:
            cache.rewind()
            given = cast("CachedCausal", again()).step(static, cache, first=True)
            if not cache.filled:
                raise RuntimeError("a first chunk leaves a part of the memory empty")
            return given

        key = key_of(codec.family, latents)
        self._slot = self._launching.record(key, cache, latents, codec.weights(), chunk)
        if self._slot is not None and latents.shape[2] == 1:
            self._launching.record_first(self._slot, first)
            cache.refill()
        return frames

    def _second(self, latents: torch.Tensor) -> Callable[[], tuple[torch.Tensor, list[Entry]]]:
        """The second chunk: its frames, and what it remembers, which is nobody else's then."""
        cache, self._cache = self._cache, []

        def run() -> tuple[torch.Tensor, list[Entry]]:
            return self._codec.step(latents, cache, first=False), cache

        return run

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._cache = []
        slot, self._slot = self._slot, None
        if slot is not None:
            self._launching.give_back(slot)


def graphed(codec: Codec, graphs: Graphs | None) -> tuple[Codec, Launching] | str:
    """The codec with graphs in place of ``codec``, or why it stays (empty: nothing to say).

    Args:
        codec: Any.
        graphs: The device's, None if it has no such thing.
    """
    cached = type(codec) is CachedCausal
    if graphs is None or not (cached or isinstance(codec, steady_families)):
        return ""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0"
    walking = cast("WalkingCodec", codec)
    obstacle = _obstacle(walking)
    if obstacle:
        return obstacle
    if not cached:
        return _between(walking, graphs)
    made = GraphedCausal(walking.module, *walking._made_of[0], graphs=graphs)
    return made, made.launching


def _between(codec: WalkingCodec, graphs: Graphs) -> tuple[Codec, Launching]:
    """The codec with graphs between its walks and their clips."""
    launching = Launching(codec.family, codec.module, graphs)

    def between(walk: Walk) -> Walk:
        if not isinstance(walk, Steady):
            return walk
        launching.walks += 1
        return GraphedSteady(walk, codec, launching)

    made = cast("WalkingCodec", codec.renewal()())
    made.between = between
    return cast("Codec", made), launching


def _obstacle(codec: WalkingCodec) -> str:
    hooks = {"_hf_hook", "_diffusers_hook"}
    if any(hooks & vars(part).keys() for part in codec.module.modules()):
        return "no graph over weights that a hook may move"
    return next(filter(None, map(_changeable, codec.vae.decoder.modules())), "")


def _changeable(part: nn.Module) -> str:
    """What of a module may do something else at the next chunk; empty if nothing."""
    kind = type(part)
    if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
        return f"no graph over a compiled {kind.__name__}"
    if kind.__module__.partition(".")[0] not in _KNOWN:
        return f"no graph over the {kind.__name__} in its decoder"
    if parametrize.is_parametrized(part):
        return f"no graph over the parametrised weights of a {kind.__name__}"
    if part._forward_hooks or part._forward_pre_hooks:
        return f"no graph over the hooks of a {kind.__name__}"
    return ""
