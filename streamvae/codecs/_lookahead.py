"""Video by look-ahead: convolutions that see a frame ahead run late and owe frames at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError
from streamvae.abc import ChunkPlan, Decoder

from ._chain import Chain
from ._conditions import Conditions, Given
from ._draws import Draws, Generators
from ._ltx import Builder
from ._ltx_parts import LTXDecoder, composites, frames_of, is_broken, scale_of
from ._module import check_count, check_decode_is_own, check_shape
from ._tiles import Grid
from ._walk import Walk, WalkDecoder, WalkingCodec


class LookAhead(WalkingCodec):
    """AutoencoderKLLTXVideo: (B, C, T, h, w) to (B, 3, 8(T-1)+1, 32h, 32w).

    ``vae.decode`` decodes all latents at once, and in the released autoencoders every frame
    depends on later ones. It depends on few of them: after `lookahead` latents more, a frame is
    what it will be. With ``decoder_causal`` set there is nothing to wait for.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        temb: Timestep of each item, (B,), for decoders that are conditioned on one.
        generator: Where the noise that some decoders inject into their layers comes from; None for
            torch's global generator, from which ``vae.decode`` draws (it takes no generator). A
            stream draws all its noise on the launch thread while its first chunk is decoded, as
            much as ``vae.decode`` would, and leaves the generator where that would leave the global
            one: streams one after another get what calls one after another get.

    Raises:
        UsageError: An argument is none of these.
    """

    arguments: ClassVar[tuple[str, ...]] = ("temb", "generator")
    exactness: ClassVar[str] = (
        "equal to vae.decode within rounding (about 2e-6 in float32, 8e-6 with noise and timestep)"
    )
    #: Whether the norms take channels last, not second.
    _channels_last: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        base: type,
        temb: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels: int = self.vae.config["latent_channels"]
        self.given = Given(temb, generator)

    @property
    def ltx(self) -> LTXDecoder:
        """The module's decoder as it is now."""
        return cast("LTXDecoder", self.vae.decoder)

    @property
    def causal(self) -> bool:
        """Whether no frame depends on later latents."""
        return self.ltx.conv_in.is_causal

    @property
    def lookahead(self) -> int:
        """Latents after a frame's own that have to come before the frame does."""
        chain = self.chain()
        return -(-chain.late // chain.frames)

    def entered(self) -> Iterable[nn.Module]:
        """See `ModuleCodec.entered`."""
        return composites(self.ltx)

    def chain(self, latents: torch.Tensor | None = None) -> Chain:
        """The decoder's steps, for a walk that begins with ``latents`` or just to be looked at."""
        given = None if latents is None else Conditions(latents, self.given)
        builder = Builder(self.ltx, given, causal=self.causal, channels_last=self._channels_last)
        return builder.build()

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """One latent at a time, or as many as asked for: the cut only changes rounding."""
        check_count(latents_per_chunk)
        return ChunkPlan(latents_per_chunk or 1, latents_per_chunk or 1)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length and size, with a timestep for each item where one is needed."""
        check_shape(shape, self.layout, self.channels)
        self.check_overrides()
        self.check_framewise()
        if is_broken(self.ltx):
            raise UsageError(
                f"expected {self.family} without noise or timesteps in up blocks that change "
                "channels, got one with them, which vae.decode fails on as well"
            )
        self.given.check(self.ltx, shape[0], sliced=self.vae.use_slicing)
        self._check_size(shape)

    def check_framewise(self) -> None:
        """Refuse the temporal tiles of diffusers, which give other frames.

        Raises:
            UsageError: The flag is set.
        """
        if getattr(self.vae, "use_framewise_decoding", False):
            raise UsageError(
                f"expected {self.family} to have use_framewise_decoding off, got True: its "
                "overlapping temporal tiles give other frames than the ones streamed; set "
                "vae.use_framewise_decoding=False"
            )

    def _check_size(self, shape: tuple[int, ...]) -> None:
        if getattr(self.ltx.conv_in.conv, "padding_mode", "zeros") != "reflect":
            return
        grid = Grid.by_stride(self.module, shape)
        whole = [[(slice(None), slice(None))]]
        for row in whole if grid is None else grid.windows(shape):
            for window in row:
                sides = [
                    len(range(side)[part]) for side, part in zip(shape[3:], window, strict=True)
                ]
                if min(sides) < 2:
                    raise LatentsError(
                        "expected at least 2 latents along each side of a picture and of its "
                        f"tiles, whose edges are reflected, got {sides[0]} x {sides[1]}"
                    )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """What is passed over, and noise that differs from run to run."""
        return (*self.given.notes(self.ltx), *super().notes(shape))

    def frames(self, latents: int) -> int:
        """One for the first latent, then as many as the decoder says, 8 in every release."""
        return frames_of(self.ltx, latents)

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `WalkingCodec.grid`."""
        return Grid.by_stride(self.module, shape)

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width: 32 pixels a latent in every release; tiles may lose or gain some."""
        scale = scale_of(self.ltx)
        grid = Grid.by_stride(self.module, shape)
        if grid is None:
            return shape[3] * scale, shape[4] * scale
        return grid.picture(shape, scale)

    def drains(self, latents: int) -> int:  # noqa: ARG002  # the same for any number
        """Until every convolution has given what it is late by; never for a causal decoder."""
        return self.chain().rounds

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the statistics of each channel, in the order of diffusers' pipelines.

        The pipelines mix noise into what this gives where the decoder is conditioned on a timestep.
        """
        std, mean = (self.statistic(name, latents) for name in ("latents_std", "latents_mean"))
        scaled: torch.Tensor = latents * std / self.vae.config["scaling_factor"] + mean
        return scaled

    def decoder(self) -> Decoder:
        """A stream with state of its own, and with what it draws from if a generator was given."""
        return WalkDecoder(self) if self.given.generator is None else _Drawn(self)

    def drawing_from(self, generator: Generators) -> LookAhead:
        """The same codec with another generator."""
        base, given = self._made_of
        again: Callable[..., LookAhead] = type(self)
        return again(self.module, *base, **{**given, "generator": generator})

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`.

        Raises:
            UsageError: There is a generator, of which ``vae.decode`` knows nothing.
        """
        if self.given.generator is not None:
            raise UsageError(
                f"expected no generator to compare with vae.decode of {self.family}, which draws "
                "its noise from torch's global one, got one"
            )
        return super().whole(latents)

    def missing(self, items: int) -> Mapping[str, object]:
        """A timestep of 0.05 for each item, where the decoder wants one."""
        if self.given.temb is not None or self.ltx.timestep_scale_multiplier is None:
            return {}
        return {"temb": torch.full((items,), 0.05)}

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _LookAhead(self)


class LookAheadOrCausal(LookAhead):
    """AutoencoderKLLTX2Video, whose ``decode`` can be told to be causal when it is called.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
        temb: As for `LookAhead`.
        generator: As for `LookAhead`.
        causal: True makes a decoder causal that is not; False is ignored, as by ``decode``.
    """

    arguments: ClassVar[tuple[str, ...]] = ("temb", "causal", "generator")
    _channels_last: ClassVar[bool] = False

    def __init__(
        self,
        module: nn.Module,
        base: type,
        temb: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        causal: bool | None = None,
    ) -> None:
        super().__init__(module, base, temb, generator)
        self._causal = causal

    @property
    def causal(self) -> bool:
        """Whether no frame depends on later latents."""
        return bool(self._causal or self.vae.decoder.is_causal)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Also that ``causal=False`` does nothing to a causal decoder."""
        ignored = self._causal is not None and not self._causal and self.causal
        causal = ("causal=False is ignored, as by vae.decode: this decoder is causal",)
        return (*super().notes(shape), *(causal if ignored else ()))


class _Drawn(WalkDecoder):
    """One stream whose noise comes from a generator that was given."""

    def __init__(self, codec: LookAhead) -> None:
        super().__init__(codec)
        self._given = codec

    def _push(self, latents: torch.Tensor) -> torch.Tensor | None:
        if self._clips:
            return super()._push(latents)
        # All its walks draw now, one after another.
        draws = Draws(self._given.given.generator, self._given.device)
        self._codec = self._given.drawing_from(draws.own)
        frames = super()._push(latents)
        draws.settle()
        return frames


class _LookAhead:
    """One walk down a chain of its own."""

    def __init__(self, codec: LookAhead) -> None:
        self._codec = codec
        self._chain: list[Chain] = []

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        if not self._chain:
            self._chain.append(self._codec.chain(latents))
        return self._chain[0].push(latents)

    def drain(self) -> torch.Tensor | None:
        return self._chain[0].drain() if self._chain else None

    def clear(self) -> None:
        for chain in self._chain:
            chain.clear()
        self._chain.clear()
