"""State on the module: swapped in before every segment, and out again after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from streamvae._locks import fork_safe_lock, renew_after_fork
from streamvae.abc import ChunkPlan

from ._partition import Partition
from ._tiles import Grid
from ._walk import State


class Magvit(Partition):
    """AutoencoderKLMagvit (EasyAnimate): the first latent alone, then one at a time.

    Source: ``diffusers/models/autoencoders/autoencoder_kl_magvit.py``. Its convolutions keep the
    frames before on themselves, in ``prev_features``, which makes two decodes at once wrong. Each
    walk has its own here, and leaves the module as it found it: streams may take turns with each
    other and with ``vae.decode``. (A ``vae.decode`` in another thread, at the very time of a step,
    would still meet it, as it would meet any other ``vae.decode``.)
    """

    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode (on a CPU latents that come one by one: within rounding, "
        "about 5e-6 in float32)"
    )
    tiles_want_all: ClassVar[bool] = True

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        config = self.vae.config
        steps = len(config["block_out_channels"]) - 1
        self.channels: int = config["latent_channels"]
        self._scale = 2**steps
        # The last block does not upsample, whatever its type.
        self._doublings = config["up_block_types"][:steps].count("SpatialTemporalUpBlock3D")
        # Without it, norms run over all frames that are decoded together.
        if config["spatial_group_norm"]:
            self.rounding = "about 5e-6"

    @property
    def wants_all(self) -> bool:
        """True: ``vae.decode`` has one convolution over all latents first, as Wan's has."""
        return True

    def own(self, latents: int | None) -> ChunkPlan:  # noqa: ARG002  # the same for any number
        """See `Partition.own`."""
        return ChunkPlan(1, cast("Any", self.vae).num_latent_frames_batch_size)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `WalkingCodec.grid`. Whether there are tiles is asked the wrong way round."""
        options = cast("Any", self.vae)
        least = (options.tile_sample_min_height, options.tile_sample_min_width)
        step = (options.tile_sample_stride_height, options.tile_sample_stride_width)
        scale = self._scale
        tile = (least[0] // scale, least[1] // scale)
        # diffusers holds the width against the tiles' height, and the height against their width.
        if not options.use_tiling or (shape[-1] <= tile[0] and shape[-2] <= tile[1]):
            return None
        return Grid(
            tile,
            (step[0] // scale, step[1] // scale),
            (least[0] - step[0], least[1] - step[1]),
            step,
            (shape[-2] * scale, shape[-1] * scale),
        )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Whether ``vae.decode`` itself would fail."""
        if not self.vae.use_slicing or shape[0] == 1 or self.grid(shape) is not None:
            return ()
        note = (
            f"{self.family}.decode fails for a batch while slicing is on, since it does not forget "
            "one clip before the next; here every clip is decoded on its own, as slicing means"
        )
        return (note,)

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """See `WalkingCodec.prologue`."""
        return cast("torch.Tensor", self.vae.post_quant_conv(latents))

    def segment(self, latents: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """See `Partition.segment`. The state is one entry for each module that has one."""
        places = [part for part in self.vae.decoder.modules() if hasattr(part, "prev_features")]
        nothing: list[object] = [None] * len(places)
        # Not a copy: a kept traceback would know it, and it could not be emptied.
        entries = nothing if state is None else cast("list[object]", state)
        with _swap(self.module)(places, entries):
            frames: torch.Tensor = self.vae.decoder(latents)
            kept = [_needed(part) for part in places]
        return frames, kept


class _Swap:
    """Whose turn it is to have its state on a module, and what was there before."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, object]] = []
        self._thread = 0
        self._lock = fork_safe_lock()
        renew_after_fork(self, _Swap._renew)

    @contextmanager
    def __call__(self, places: list[nn.Module], entries: list[object]) -> Iterator[None]:
        """Give each module its entry for now; afterwards what it had, on every way out."""
        with self._lock:
            self._thread = threading.get_ident()
            self._before = [(part, cast("Any", part).prev_features) for part in places]
            try:
                for part, entry in zip(places, entries, strict=True):
                    cast("Any", part).prev_features = entry
                yield
            finally:
                self._undo()

    def _undo(self) -> None:
        for part, features in self._before:
            cast("Any", part).prev_features = features
        self._before = []

    def _renew(self) -> None:
        """Leave the module as the thread would have that goes on in the parent only."""
        if self._thread != threading.get_ident():
            self._undo()


#: One for each autoencoder: codecs of one module are many, and may run on several threads.
_SWAPS: WeakKeyDictionary[nn.Module, _Swap] = WeakKeyDictionary()
_LOCKS_LOCK = fork_safe_lock()


def _swap(module: nn.Module) -> _Swap:
    with _LOCKS_LOCK:
        return _SWAPS.setdefault(module, _Swap())


def _needed(part: nn.Module) -> object:
    """What a module's next step reads of the state it has now.

    An upsampler only asks whether there was a step, but has kept all it gave then.
    """
    features: torch.Tensor | None = cast("Any", part).prev_features
    if features is None or isinstance(part, nn.Conv3d):
        return features
    return features.new_empty(0)
