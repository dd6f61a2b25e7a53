"""Whether weights are still those that were packed, found out beside what the device decodes."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import nn

from .._fingerprint import weights_of


class Weights(NamedTuple):
    """What tells one state of a decoder's weights from another.

    Attributes:
        fingerprint: Where they are, what runs them, how often they were written to.
        magnitudes: Sums of their absolute values: writing through ``.data`` counts as no write.
    """

    fingerprint: Hashable
    magnitudes: torch.Tensor

    @classmethod
    def of(cls, decoder: nn.Module) -> Weights:
        """Those of a decoder now, as the current stream finds them."""
        tensors = (*decoder.parameters(), *decoder.buffers())
        fingerprint = weights_of(decoder), tuple(map(_writes, tensors))
        parameters: list[torch.Tensor] = list(decoder.parameters())
        sums = torch._foreach_norm(parameters, 1, dtype=torch.float32)
        return cls(fingerprint, torch.stack(sums))

    def equal(self, other: Weights) -> bool:
        """Whether they are the same; waits for the current stream."""
        same = self.fingerprint == other.fingerprint
        return same and torch.equal(self.magnitudes, other.magnitudes)


class Look:
    """A look at weights as they are in the current stream now, taken on a stream of its own.

    Whoever waits for it does not wait for what is launched after this.

    Args:
        device: Where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device) if device.type == "cuda" else None
        self._now = torch.cuda.current_stream(device).record_event() if self._stream else None

    def sees(self, weights: Weights, decoder: nn.Module) -> bool:
        """Whether ``decoder`` still has these weights."""
        if self._stream is None or self._now is None:
            return Weights.of(decoder).equal(weights)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._now)
            return Weights.of(decoder).equal(weights)


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def _writes(weight: torch.Tensor) -> int:
    """Writes so far; those to weights made in inference mode are not counted."""
    return 0 if weight.is_inference() else weight._version
