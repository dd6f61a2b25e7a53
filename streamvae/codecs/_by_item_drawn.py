"""Pictures that are denoised from noise, item by item: the consistency decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan, Decoder

from ._by_item import ByItem
from ._decoder import StreamDecoder
from ._draws import Draws, Generators, check_generators
from ._module import check_count, clips
from ._tiles import Grid


class ByItemDrawn(ByItem):
    """ConsistencyDecoderVAE: (B, 4, h, w) to (B, 3, 8h, 8w), from two draws of noise an item.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        generator: Where the noise comes from: one for all items, which draw in turn, or a list
            with one for each; None for torch's global generator. Each stream draws from copies, as
            they stand when its first item is decoded, and moves them on when it ends, unless
            somebody else has drawn from them since.

    Raises:
        UsageError: ``generator`` is none of these.
    """

    arguments: ClassVar[tuple[str, ...]] = ("generator",)
    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode of each item in turn, from the same generator's state"
    )

    def __init__(self, module: nn.Module, base: type, generator: Generators = None) -> None:
        super().__init__(module, base)
        check_generators(generator)
        self._generator = generator

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """One item a chunk, in fast mode too."""
        check_count(latents_per_chunk)
        if latents_per_chunk not in {None, 1}:
            raise UsageError(
                f"expected latents_per_chunk=1 for {self.family} in any mode, since several items "
                f"together draw other noise, got {latents_per_chunk}"
            )
        if isinstance(self._generator, Sequence) and latents is not None:
            self._check_generator_for(latents - 1)
        return ChunkPlan(1, 1)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:  # noqa: ARG002
        """None: ``decode`` never tiles."""
        return None

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Says which flags ``decode`` ignores, and that a batch would draw other noise."""
        vae = cast("Any", self.vae)
        flags = {"enable_tiling()": vae.use_tiling, "enable_slicing()": vae.use_slicing}
        ignored = [name for name, is_on in flags.items() if is_on]
        said = []
        if ignored:
            said.append(f"decode of {self.family} takes no notice of {' and '.join(ignored)}")
        if shape[0] > 1 and not isinstance(self._generator, Sequence):
            said.append(
                f"{self.family} draws noise for one picture after the other, as decode called for "
                "each of them does; one call for all of them draws other noise (a list of "
                "generators, one for each picture, gives the same either way)"
            )
        return tuple(said)

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.whole`; draws from the generators that were given, and moves them on."""
        items = enumerate(clips(latents))
        return torch.cat([self.drawn(item, at, self._generator) for at, item in items])

    def drawn(self, latents: torch.Tensor, item: int, generator: Generators) -> torch.Tensor:
        """Decode latents (1, C, h, w), the ``item``-th of their stream, from ``generator``."""
        if isinstance(generator, Sequence):
            self._check_generator_for(item)
            generator = generator[item]
        decoded: tuple[torch.Tensor, ...] = cast("Any", self.vae).decode(
            latents, generator=generator, return_dict=False
        )
        return decoded[0]

    def decoder(self) -> Decoder:
        """A stream over a batch; its state is that of its generators."""
        return _Drawn(self, lambda: Draws(self._generator, self.device))

    def _check_generator_for(self, item: int) -> None:
        given = len(cast("Sequence[torch.Generator]", self._generator))
        if item >= given:
            raise UsageError(f"expected a generator for each item, got {given} for {item + 1}")


class _Drawn(StreamDecoder):
    """One stream's place in the batch, and what it draws from."""

    def __init__(self, codec: ByItemDrawn, draw: Callable[[], Draws]) -> None:
        self._codec = codec
        self._draw = draw
        self._draws: list[Draws] = []  # at most one, made for the first item
        self._items = 0

    def _push(self, latents: torch.Tensor) -> torch.Tensor:
        if not self._draws:
            self._draws.append(self._draw())
        pictures = self._codec.drawn(latents, self._items, self._draws[0].own)
        self._items += 1
        return pictures

    def _clear(self) -> None:
        for draws in self._draws:
            draws.settle()
        self._draws.clear()
