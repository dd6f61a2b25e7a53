"""How far a latent is heard: which samples of a decode depend on which latents."""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import nn

from streamvae._errors import UsageError

_FIRST_PROBE, _LONGEST_PROBE = 64, 4096


@dataclass(frozen=True, slots=True)
class Reach:
    """How samples depend on latents.

    A window of the latents [a, b) gives the samples from ``hop * a``, of which those in
    [``hop * a + before``, ``hop * b - after``) are what decoding all latents gives: the others
    saw the zeros around the window instead of the latents there. At the true ends those zeros
    are right.

    Attributes:
        hop: Samples from one latent to the next.
        before: Samples that a missing past spoils.
        after: Samples that a missing future spoils or withholds.
        lost: Samples by which a decode is shorter than ``hop`` a latent (odd strides lose some).
    """

    hop: int
    before: int
    after: int
    lost: int

    @classmethod
    def of(cls, decoder: nn.Module) -> Self:
        """Walk the convolutions in the order they were registered, which is that of execution.

        Residual connections do not count: they see less than the convolutions beside them.
        """
        hop, before, after, lost = 1, 0, 0, 0
        for layer in decoder.modules():
            if isinstance(layer, nn.ConvTranspose1d):
                # Input i adds to the outputs stride * i - padding + [0, span].
                stride, padding, span = _geometry(layer)
                extra = layer.output_padding[0]
                hop, lost = hop * stride, lost * stride + stride - span + 2 * padding - 1 - extra
                before = (before - 1) * stride - padding + span + 1
                after = after * stride + padding
            elif isinstance(layer, nn.Conv1d):
                # Output j reads the inputs j - padding + [0, span]; the stride is always 1.
                _, padding, span = _geometry(layer)
                lost += span - 2 * padding
                before += padding
                after += span - padding
        return cls(hop, before, after, lost)

    @classmethod
    @torch.no_grad()
    def probed(cls, decode: Callable[[torch.Tensor], torch.Tensor], *features: int) -> Self:
        """Decode with one latent that is not a number, and see which samples are none.

        For decoders whose convolutions do not follow one another in a line. No weight is so small
        that it hides a dependence, as it would with a large number in the place of none.

        Args:
            decode: Latents (1, 1, T, ``features``), float64 on the CPU, to sound (1, C, S).
            features: Further dimensions of the latents.

        Raises:
            UsageError: Every sample depends on every latent.
        """
        one, two = (decode(_blank(count, features)).shape[-1] for count in (1, 2))
        hop, count = two - one, _FIRST_PROBE
        while count <= _LONGEST_PROBE:
            latents, middle = _blank(count, features), count // 2
            latents[:, :, middle] = torch.nan
            spoilt = decode(latents).isnan().flatten(0, -2).any(0)
            places = spoilt.nonzero().flatten()
            first, end = int(places[0]), int(places[-1]) + 1
            if first > 0 and end < spoilt.shape[0]:
                lost = hop - one
                before, after = end - hop * (middle + 1), hop * middle - first
                return cls(hop, max(before, 0), max(after, lost, 0), lost)
            count *= 2
        raise UsageError(
            f"expected a decoder whose samples depend on fewer than {_LONGEST_PROBE // 2} latents "
            "on either side, got one whose samples depend on more: it cannot be decoded in windows"
        )

    @property
    def latents(self) -> tuple[int, int]:
        """Latents before and after one's own that can change its samples, rounded up."""
        return -(-self.before // self.hop), -(-self.after // self.hop)

    def total(self, latents: int) -> int:
        """Samples that ``latents`` latents give."""
        return max(0, self.hop * latents - self.lost)


def _geometry(layer: nn.Conv1d | nn.ConvTranspose1d) -> tuple[int, int, int]:
    padding, span = layer.padding[0], layer.dilation[0] * (layer.kernel_size[0] - 1)
    return layer.stride[0], cast("int", padding), span


def _blank(count: int, features: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1, 1, count, *features, dtype=torch.float64, device="cpu")


def reach_of_config(
    base: type,
    config: Mapping[str, object],
    narrow: Mapping[str, object],
    decode: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    *features: int,
) -> Reach:
    """Probe a thin model of ``config``, once for each config.

    Kernels, strides and dilations are the config's own, and they alone decide how far a latent is
    heard. No weights have to be there for it, none are moved, and no device has work to do.

    Args:
        base: A diffusers class.
        config: Of the model that is streamed.
        narrow: What to replace in it for a model of few channels, one of them of latents.
        decode: Takes such a model and latents as in `Reach.probed`. A function of a module.
        features: As in `Reach.probed`.

    Raises:
        UsageError: Every sample depends on every latent.
    """
    taken = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of a class
    given = {name: value for name, value in config.items() if name in taken} | dict(narrow)
    return _probed(base, json.dumps(given, sort_keys=True), decode, features)


@functools.lru_cache(maxsize=64)
def _probed(
    base: type,
    config: str,
    decode: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    features: tuple[int, ...],
) -> Reach:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old weight_norm
        model = cast("nn.Module", base(**json.loads(config))).double().eval()
    return Reach.probed(lambda latents: decode(model, latents), *features)
