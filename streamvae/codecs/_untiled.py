"""Pictures of autoencoders that diffusers cannot tile: item by item, each in one piece."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import nn

from streamvae._errors import DeviceError, LatentsError, UsageError

from ._by_item import ByItem
from ._tiles import Grid


class Untiled(ByItem):
    """AsymmetricAutoencoderKL: (B, C, h, w) to (B, 3, H, W), without ``image`` and ``mask``.

    Its ``enable_tiling`` and ``enable_slicing`` raise, so that nothing but its own ``decode`` of
    one item after the other can be equalled.
    """

    exactness: ClassVar[str] = (
        "equal bit for bit to vae.decode of each item alone "
        "(several items in a chunk: within rounding)"
    )

    def grid(self, shape: tuple[int, ...]) -> Grid | None:  # noqa: ARG002
        """None: there are no tiles."""
        return None


class Quantized(Untiled):
    """VQModel: (B, C, h, w), with C the size of a codebook vector, to (B, 3, H, W).

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        force_not_quantize: Whether latents are decoded as they are, not as the codebook vectors
            next to them; what Kandinsky's pipelines pass.

    Raises:
        UsageError: ``force_not_quantize`` is no bool, or would have latents taken for codes.
    """

    arguments: ClassVar[tuple[str, ...]] = ("force_not_quantize",)

    def __init__(
        self, module: nn.Module, base: type, *, force_not_quantize: object = False
    ) -> None:
        super().__init__(module, base)
        config = self.vae.config
        self.channels: int = config["vq_embed_dim"] or config["latent_channels"]
        if not isinstance(force_not_quantize, bool):
            raise UsageError(
                f"expected force_not_quantize to be True or False, got {force_not_quantize!r}"
            )
        if force_not_quantize and config["lookup_from_codebook"]:
            raise UsageError(
                f"expected a {self.family} that decodes latents, got one with "
                "lookup_from_codebook=True, which takes them for numbers of codebook vectors when "
                "force_not_quantize is set; look those up yourself and leave force_not_quantize out"
            )
        self._as_they_are = force_not_quantize

    def check(self, shape: tuple[int, ...]) -> None:
        """Any number of items, any size; not where there is no codebook to look at."""
        super().check(shape)
        codebook: torch.Tensor = cast("Any", self.module).quantize.embedding.weight
        if codebook.device.type == "meta" and not self._as_they_are:
            raise DeviceError(
                f"expected the codebook of {self.family} in memory, got it on the meta device, "
                "where offloading of one submodule after the other leaves it while decode compares "
                "latents with it; offload the model as a whole (enable_model_cpu_offload)"
            )

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.pictures`."""
        decoded: tuple[torch.Tensor, ...] = cast("Any", self.vae).decode(
            latents, force_not_quantize=self._as_they_are, return_dict=False
        )
        return decoded[0]

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Depends on the pipeline.

        Raises:
            UsageError: Always; pipelines of diffusers do not agree on a formula.
        """
        raise UsageError(
            f"expected latents in the space of {self.family}, got normalized ones: Kandinsky's "
            "pipelines take latents as they are, LDMTextToImagePipeline divides them by "
            "scaling_factor; do what yours does and pass normalized=False"
        )


class FromTokens(Untiled):
    """AutoencoderRAE: (B, C, g, g) to (B, 3, p * g, p * g), for one size g that the config gives.

    ``decode`` denormalizes latents itself, and gives pixels in [0, 1].
    """

    channels_key: ClassVar[str] = "encoder_hidden_size"
    exactness: ClassVar[str] = ByItem.exactness

    @property
    def _side(self) -> int:
        """Latents along a side of the picture that the decoder was made for."""
        return math.isqrt(cast("int", cast("Any", self.module).num_patches))

    def check(self, shape: tuple[int, ...]) -> None:
        """Square pictures only: of others the decoder would lose where which latent was."""
        if not cast("Any", self.module).reshape_to_2d:
            raise UsageError(
                f"expected a {self.family} with reshape_to_2d, which takes latents (B, C, H, W), "
                "got one that takes tokens (B, N, C); set vae.reshape_to_2d = True and give "
                "latents instead of tokens"
            )
        super().check(shape)
        if shape[-2] != shape[-1]:
            raise LatentsError(
                f"expected square latents of {self.family}, {self._side}x{self._side} as it was "
                f"made for, got {shape[-2]}x{shape[-1]}"
            )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Says what range its pixels have, and whether latents are resized."""
        pixels = (
            f"{self.family} gives pixels in [0, 1], but uint8 frames are made of pixels in "
            "[-1, 1]: pass transform=lambda pixels: pixels.float() * 2 - 1 for those"
        )
        if shape[-1] == self._side:
            return (pixels,)
        resized = (
            f"{self.family} resizes latents of {shape[-2]}x{shape[-1]} to {self._side}x"
            f"{self._side}, and all of its pictures have the same size"
        )
        return pixels, resized

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:  # noqa: ARG002
        """The one size of its pictures."""
        side: int = cast("Any", self.module).decoder_image_size
        return side, side

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.pictures`."""
        return super().pictures(latents.contiguous())  # which it takes for granted

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """As they are: ``decode`` denormalizes them."""
        return latents
