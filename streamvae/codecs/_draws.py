"""Noise for one stream, drawn as diffusers would draw it for one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamvae._errors import UsageError

#: One generator for all clips, one for each, or torch's global one.
Generators = torch.Generator | Sequence[torch.Generator] | None


def check_generators(generators: object) -> None:
    """Refuse what is neither a generator nor several.

    Raises:
        UsageError: Naming what came.
    """
    each = generators if isinstance(generators, (list, tuple)) else [generators]
    if generators is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise UsageError(
            f"expected generator to be a torch.Generator or a list of them, got {generators!r}"
        )


class Draws:
    """A stream's copy of the generators it draws from, as they stand when it begins.

    Streams take turns on one thread, and a call of ``decode`` may come in between: drawing from
    one generator by turns would give none of them the noise that it gets alone.

    Args:
        generators: What ``decode`` was to draw from.
        device: Whose global generator None stands for.

    Attributes:
        own: The copies, in the form that diffusers' ``randn_tensor`` takes them.
    """

    def __init__(self, generators: Generators, device: torch.device) -> None:
        self.own: torch.Generator | list[torch.Generator] | None
        if isinstance(generators, Sequence):
            self._sources = list(generators)
            self.own = copies = [source.clone_state() for source in self._sources]
        else:
            source = generators or _global(device)
            self._sources = [] if source is None else [source]
            copies = [source.clone_state() for source in self._sources]
            self.own = copies[0] if copies else None
        self._copies = copies
        self._states = [source.get_state() for source in self._sources]

    def settle(self) -> None:
        """Move the generators on as though the stream had drawn from them; after its last draw.

        Those that somebody else has drawn from since stay where they are.
        """
        for source, copy, state in zip(self._sources, self._copies, self._states, strict=True):
            if torch.equal(source.get_state(), state):
                source.set_state(copy.get_state())


def _global(device: torch.device) -> torch.Generator | None:
    """The global generator of a device; None where torch does not give it out."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        index: int | None = device.index
        if index is None:
            index = torch.cuda.current_device()
        return torch.cuda.default_generators[index]
    return None
