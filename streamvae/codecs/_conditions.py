"""What frames of LTX and LTX-2 depend on besides latents: a timestep, and noise in the layers.

Upstream: the ``forward`` methods of ``diffusers/models/autoencoders/autoencoder_kl_ltx.py`` and
``autoencoder_kl_ltx2.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError

from ._ltx_parts import Function, LTXDecoder, Resnet, injects_noise
from ._offloaded import onloaded

#: Shift and factor, each (B, C, 1, 1, 1), of each norm of a part, one norm after the other.
Modulation = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """What the user gave for all streams of a codec.

    Attributes:
        temb: The timestep of each item, (B,), for decoders that are conditioned on one.
        generator: Where the noise of the layers comes from; None for torch's global one.

    Raises:
        UsageError: One of them is something else.
    """

    temb: torch.Tensor | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        temb: object = self.temb
        if temb is not None and not (isinstance(temb, torch.Tensor) and temb.ndim == 1):
            raise UsageError(f"expected temb to be a tensor of shape (B,), got {temb!r}")
        generator: object = self.generator
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UsageError(f"expected generator to be a torch.Generator, got {generator!r}")

    def check(self, decoder: LTXDecoder, batch: int, *, sliced: bool) -> None:
        """Refuse a timestep that is missing, or that ``vae.decode`` fails on.

        Raises:
            LatentsError: There are more or fewer timesteps than items.
            UsageError: It is missing, or items are decoded one by one.
        """
        conditioned = decoder.timestep_scale_multiplier is not None
        if self.temb is None:
            if conditioned:
                raise UsageError(
                    "expected temb, the timestep that this autoencoder's decoder is conditioned "
                    "on, a tensor of shape (B,), got none; pass temb=torch.tensor([0.05] * B)"
                )
        elif sliced and batch > 1:
            raise UsageError(
                f"expected slicing to be off for a batch of {batch} with temb, got it on, which "
                "vae.decode fails on; call vae.disable_slicing()"
            )
        elif conditioned and self.temb.shape[0] != batch:
            raise LatentsError(
                f"expected latents of {self.temb.shape[0]} items, one for each timestep in temb, "
                f"got {batch}"
            )

    def notes(self, decoder: LTXDecoder) -> Iterator[str]:
        """What of it does nothing, and that noise differs from run to run."""
        if self.temb is not None and decoder.timestep_scale_multiplier is None:
            yield "temb is ignored: this decoder is not conditioned on a timestep"
        noisy = injects_noise(decoder)
        if self.generator is not None and not noisy:
            yield "generator is ignored: this decoder injects no noise"
        if self.generator is None and noisy:
            yield (
                "this decoder injects noise from torch's global generator, so its frames differ "
                "from run to run, as those of vae.decode; pass generator to have them again"
            )


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one walk's frames depend on besides its latents; the same from first to last.

    Attributes:
        latents: The first ones, for their batch, size, device and dtype.
        given: By the user.
    """

    latents: torch.Tensor
    given: Given

    def timestep(self, decoder: LTXDecoder) -> torch.Tensor | None:
        """``temb`` as the embedders take it."""
        if self.given.temb is None or decoder.timestep_scale_multiplier is None:
            return None
        device = self.latents.device
        with onloaded(decoder):
            return self.given.temb.to(device) * decoder.timestep_scale_multiplier.to(device)

    def embedded(
        self, embedder: nn.Module | None, timestep: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The timestep as a block or the head sees it, (B, C, 1, 1, 1)."""
        if embedder is None or timestep is None:
            return None
        embedded: torch.Tensor = embedder(
            timestep=timestep.flatten(),
            resolution=None,
            aspect_ratio=None,
            batch_size=self.latents.shape[0],
            hidden_dtype=self.latents.dtype,
        )
        return embedded.view(self.latents.shape[0], -1, 1, 1, 1)

    def modulation(
        self, part: Resnet | LTXDecoder, count: int, embedded: torch.Tensor | None
    ) -> Modulation | None:
        """Shift and factor of each of the ``count`` norms of a part, one after the other."""
        if part.scale_shift_table is None or embedded is None:
            return None
        with onloaded(part):
            table = part.scale_shift_table.to(self.latents.device)
            rows = (
                torch.unflatten(embedded, 1, (2 * count, -1)) + table[None, ..., None, None, None]
            )
        shifts_and_scales = rows.unbind(1)
        return tuple(
            row if number % 2 == 0 else 1 + row for number, row in enumerate(shifts_and_scales)
        )

    def noise(self, part: Resnet, size: tuple[int, int]) -> list[Function]:
        """Draw what a part adds after each of its two convolutions; nothing if it adds nothing.

        ``vae.decode`` draws one map for all frames, part after part: so do we, when the chain
        is built.
        """
        if part.per_channel_scale1 is None or part.per_channel_scale2 is None:
            return []
        with onloaded(part):
            scales = [
                scale.detach().to(self.latents.device)
                for scale in (part.per_channel_scale1, part.per_channel_scale2)
            ]
        return [_added(self._drawn(size), scale) for scale in scales]

    def _drawn(self, size: tuple[int, int]) -> torch.Tensor:
        generator, dtype = self.given.generator, self.latents.dtype
        device = self.latents.device if generator is None else generator.device
        drawn = torch.randn(size, generator=generator, device=device, dtype=dtype)
        return drawn.to(self.latents.device)[None]


def _added(noise: torch.Tensor, scale: torch.Tensor) -> Function:
    # Multiplied anew for each chunk: the product is as large as a frame, the noise is one channel.
    return lambda frames: frames + (noise * scale)[None, :, None]
