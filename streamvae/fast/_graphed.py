"""The steady chunk of a cached decoder as one graph: bit-equal, one launch in place of some 640.

Eager launching of a 720p chunk of Wan 2.1 takes the launch thread 16 ms, and leaves gaps between
kernels. The first chunk has kernels of its own and stays eager; what it leaves behind (two frames
for each convolution, zeros before the first) is then the state of all others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from streamvae._errors import UsageError
from streamvae._graphs import Graphs
from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk

from ._slots import Key, Slot, slots_of
from ._static import Copies, Entry, Lent, StaticCache

_log = logging.getLogger("streamvae")

#: ``STREAMVAE_GRAPHS=0`` has every chunk launched kernel by kernel.
VARIABLE = "STREAMVAE_GRAPHS"
GRAPH = "graph"

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
        self.graphs = graphs
        self.slots = slots_of(module)
        #: Tiles and clips that are decoded one after the other and then put together.
        self.walks = 0
        #: Why chunks are launched kernel by kernel after all; empty while they are not.
        self.obstacle = ""

    @property
    def step_name(self) -> str:
        """How chunks are launched, as far as is known by now."""
        return f"eager ({self.obstacle})" if self.obstacle else GRAPH

    def give_up(self, reason: str) -> None:
        """Record no more; said once."""
        if not self.obstacle:
            self.obstacle = reason
            _log.warning("%s decodes without a CUDA graph: %s", self.family, reason)

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        self.walks += 1
        return _Graphed(self)

    def weights(self) -> tuple[torch.Tensor, ...]:
        """What the decoder's kernels read."""
        decoder = self.vae.decoder
        return (*decoder.parameters(), *decoder.buffers())

    def _maker(self) -> Callable[[nn.Module], Codec]:
        base = self._made_of[0]  # memory is foretold of the decoder, not of its launching
        return lambda module: cast("Codec", CachedCausal(module, *base))


class _Graphed:
    """One walk: the first chunks eager, then its slot's graph again and again."""

    def __init__(self, codec: GraphedCausal) -> None:
        self._codec = codec
        self._cache: list[Entry] = []
        self._slot: Slot | None = None
        self._pushed = 0

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        number, self._pushed = self._pushed, self._pushed + 1
        if number == 0:
            return self._first(latents)
        slot = self._slot
        if slot is not None and slot.latents.shape == latents.shape:
            if slot.current:
                slot.latents.copy_(latents)
                frames = slot.graph.replay()
                # The next tile's graph shares its memory with this one's.
                return frames.clone() if self._codec.walks > 1 else frames
            self._codec.give_up("its weights have moved since the stream began")
        if number == 1 and slot is None and not self._codec.obstacle:
            return self._recorded(latents)
        return self._codec.step(latents, self._cache, first=False)

    def _first(self, latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[2] != 1:
            raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
        codec = self._codec
        if not codec.obstacle:
            places = tuple(weight.data_ptr() for weight in codec.weights())
            self._slot = codec.slots.take(_key(latents), places)
        self._cache = codec.cache() if self._slot is None else self._slot.cache
        return codec.step(latents, self._cache, first=True)

    def _recorded(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the second chunk, eager, and record the graph for those that follow."""
        with Copies() as copies:
            frames = self._codec.step(latents, self._cache, first=False)
        if any(isinstance(entry, str) for entry in self._cache):
            self._codec.give_up("its memory is not only tensors")
            return frames
        copied = copies.kept(self._cache)
        cache = StaticCache(self._cache)
        self._cache = cache
        try:
            self._slot = _record(self._codec, cache, latents, copied)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            self._codec.give_up(f"it could not be recorded: {_first_line(error)}")
        return frames

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._cache = []
        slot, self._slot = self._slot, None
        if slot is not None:
            self._codec.slots.give_back(slot, self._codec.graphs)


def _record(
    codec: GraphedCausal, cache: StaticCache, latents: torch.Tensor, copied: frozenset[int]
) -> Slot:
    """Record a steady chunk over the state that ``cache`` holds.

    Raises:
        RuntimeError: There is no memory for it, or it cannot be recorded.
    """
    graphs = codec.graphs
    # What lies between the kernels takes about 1.3 times the state at any size, as eager does.
    wanted = int(1.5 * cache.nbytes)
    room = graphs.room()
    if room < wanted:
        raise RuntimeError(f"about {wanted} bytes of device memory are needed, {room} are left")
    weights = tuple((weight, weight.data_ptr()) for weight in codec.weights())
    static = torch.empty_like(latents, memory_format=torch.contiguous_format)
    before = graphs.reserved()
    again = codec.renewal()  # idle slots must not keep their autoencoder

    def chunk() -> torch.Tensor:
        cache.lent = Lent(copied)
        try:
            with cache.lent:
                frames = cast("CachedCausal", again()).step(static, cache, first=False)
            cache.lent.settle()
        finally:
            cache.lent = None
        return frames

    graph = graphs.capture(chunk)
    own = max(graphs.reserved() - before, 0)
    return Slot(_key(latents), cache, static, graph, weights, cache.nbytes + own)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _key(latents: torch.Tensor) -> Key:
    """All that decides which kernels run."""
    batch, channels, _, height, width = latents.shape
    cudnn = torch.backends.cudnn
    return (
        (batch, channels, height, width),
        latents.dtype,
        latents.device,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        *(_setting(read) for read in _SWITCHES),
    )


#: These raise where somebody has mixed torch's old and new way to set them.
_SWITCHES: tuple[Callable[[], object], ...] = (
    lambda: torch.backends.cudnn.allow_tf32,
    torch.get_float32_matmul_precision,
    torch.are_deterministic_algorithms_enabled,
    lambda: torch.is_autocast_enabled("cuda"),
    lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
)


def _setting(read: Callable[[], object]) -> object:
    try:
        return read()
    except RuntimeError:
        return None


def graphed(codec: Codec, graphs: Graphs | None) -> GraphedCausal | str:
    """The codec with graphs in place of ``codec``, or why it stays (empty: nothing to say).

    Args:
        codec: Any.
        graphs: The device's, None if it has no such thing.
    """
    if isinstance(codec, GraphedCausal) or graphs is None:
        return codec if isinstance(codec, GraphedCausal) else ""
    if type(codec) is not CachedCausal:
        return ""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0"
    return _obstacle(codec) or GraphedCausal(codec.module, *codec._made_of[0], graphs=graphs)


def _obstacle(codec: CachedCausal) -> str:
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
