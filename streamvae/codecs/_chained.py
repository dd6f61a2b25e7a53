"""Sound in two steps: an autoencoder makes mel spectrograms, and a vocoder makes sound of them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import torch
from torch import nn

from streamvae._errors import DeviceError, LatentsError, UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan, Codec, Decoder

from ._decoder import StreamDecoder
from ._kept import MMAudio
from ._mel import BINS_A_ROW, LTX2Audio
from ._module import ModuleCodec
from ._vocoders import LTX2Mel, MMAudioMel

#: What makes the codec of a module of its class.
_Maker = Callable[[nn.Module], Codec]


class Chained(ModuleCodec):
    """An autoencoder of mel spectrograms and its vocoder: (B, C, T, ...) to (B, channels, S).

    The stream's sound is ``vocoder(autoencoder.decode(z).sample)``. The spectrogram is walked as
    the autoencoder's own stream walks it, and no mel frame is computed twice; the vocoder decodes
    windows of it, so a sample comes when the mel frames that it depends on have come.

    Args:
        module: Both.
        autoencoder: Makes the codec of the first.
        vocoder: Makes the codec of the second.
        samples: How long the sound is at most: what comes later is dropped.

    Raises:
        UsageError: The second takes other spectrograms than the first makes, or ``samples`` is no
            number from 1.
    """

    arguments = ("samples",)
    kind: ClassVar[Kind] = "sound"
    wants_all: ClassVar[bool] = False

    def __init__(
        self, module: nn.Module, autoencoder: _Maker, vocoder: _Maker, *, samples: int | None = None
    ) -> None:
        super().__init__(module)
        both = cast("Pair", module)
        self.autoencoder = cast("LTX2Audio | MMAudio", autoencoder(both.autoencoder))
        self.vocoder = cast("LTX2Mel | MMAudioMel", vocoder(both.vocoder))
        self.family = f"{self.autoencoder.family} with {self.vocoder.family}"
        self.layout = self.autoencoder.layout
        self.axis = self.autoencoder.axis
        self.channels = self.autoencoder.channels
        rate: int | None = self.vocoder.sample_rate
        # MMAudio's vocoder does not say what its autoencoder does.
        self.sample_rate = rate or cast("int", self.autoencoder.vae.config["sample_rate"])
        self.exactness = (
            f"equal to {self.vocoder.family} of {self.autoencoder.family}.decode within rounding "
            "(about 2e-6 in float32)"
        )
        self.samples = samples
        self._check_both()
        #: Rows of bins that a latent has, where it has any.
        self.bins = self.autoencoder.mel[-1] // BINS_A_ROW

    def _check_both(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"expected samples of at least 1, got {self.samples}")
        made, taken = self.autoencoder.mel, self.vocoder.mel
        # LTX-2's vocoder knows but the product.
        if len(made) != len(taken) or math.prod(made) != math.prod(taken):
            raise UsageError(
                f"expected a vocoder of the mel spectrograms that {self.autoencoder.family} makes, "
                f"{' x '.join(map(str, made))} numbers a mel frame, got {self.vocoder.family} of "
                f"{' x '.join(map(str, taken))}"
            )

    @property
    def device(self) -> torch.device:
        """Where both decode.

        Raises:
            DeviceError: They do not decode at the same place.
        """
        here, there = self.autoencoder.device, self.vocoder.device
        if here != there:
            raise DeviceError(
                "expected the autoencoder of sound and its vocoder on one device, got "
                f"{self.autoencoder.family} on {here} and {self.vocoder.family} on {there}"
            )
        return here

    @property
    def dtype(self) -> torch.dtype:
        """Of the autoencoder's weights; spectrograms are cast to the vocoder's."""
        return self.autoencoder.dtype

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:
        """As the autoencoder's."""
        return self.autoencoder.cut(latents, latents_per_chunk, mode)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """What the autoencoder's stream would say, but that a vocoder is missing."""
        said = self.autoencoder.notes(shape)
        return tuple(note for note in said if not note.startswith("mel spectrograms are given"))

    def check(self, shape: tuple[int, ...]) -> None:
        """What the autoencoder decodes to whole spectrograms, with the weights of both there."""
        self.autoencoder.check(shape)
        if self.layout == "BCTF" and shape[3] != self.bins:
            # It would cut the spectrogram, or fill it up with silence.
            raise LatentsError(
                f"expected latents (B, C, T, F) with F = {self.bins}, for {self.autoencoder.mel[1]}"
                f" mel bins, got shape {tuple(shape)}"
            )
        frames = self.autoencoder.frames(shape[self.axis])
        channels, *bins = self.vocoder.mel
        self.vocoder.check((shape[0], channels, frames, *bins))

    def frames(self, latents: int) -> int:
        """Samples, to the one."""
        total = self.vocoder.frames(self.autoencoder.frames(latents))
        return total if self.samples is None else min(total, self.samples)

    def picture(self, shape: tuple[int, ...]) -> None:  # noqa: ARG002  # sound has no picture
        """None."""
        return

    def drains(self, latents: int) -> int:
        """What the autoencoder holds back, then what the vocoder does."""
        mel = self.autoencoder.frames(latents)
        return self.autoencoder.drains(latents) + self.vocoder.drains(mel)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """As the autoencoder's."""
        return self.autoencoder.denormalize(latents)

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: one after the other."""
        mel = self.autoencoder.whole(latents)
        sound = self.vocoder.whole(self.spectrogram(mel, self.vocoder.dtype))
        return sound if self.samples is None else sound[..., : self.samples]

    def renewal(self) -> Callable[[], Codec | None]:
        """See `ModuleCodec.renewal`. The pair is this codec's own: what lasts are its parts."""
        autoencoder, vocoder = (weakref.ref(part) for part in cast("Pair", self.module).parts())
        make = self._maker()

        def again() -> Codec | None:
            one, two = autoencoder(), vocoder()
            return None if one is None or two is None else make(Pair(one, two))

        return again

    def decoder(self) -> Decoder:
        """A stream of each."""
        return _Chain(self)

    def spectrogram(self, mel: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The autoencoder's stream's mel frames, (B, channels * bins, t), as the vocoder's take."""
        if len(self.autoencoder.mel) > 1:
            shape = (mel.shape[0], self.autoencoder.mel[0], -1, mel.shape[2])
            mel = mel.reshape(shape).transpose(2, 3)
        return mel.to(dtype)


class Pair(nn.Module):
    """An autoencoder and a vocoder side by side; holds both and changes neither."""

    def __init__(self, autoencoder: nn.Module, vocoder: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.autoencoder = autoencoder
        self.vocoder = vocoder

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """Both."""
        return self.autoencoder, self.vocoder


def chained(first: Codec, second: Codec, arguments: Mapping[str, object]) -> Chained:
    """The codec of an autoencoder of mel spectrograms with a vocoder.

    Args:
        first: The autoencoder's.
        second: The vocoder's.
        arguments: Of `Chained`.

    Raises:
        UsageError: They are none, or do not fit each other.
    """
    if not isinstance(first, (LTX2Audio, MMAudio)) or not isinstance(second, (LTX2Mel, MMAudioMel)):
        raise UsageError(
            "expected an autoencoder of mel spectrograms and its vocoder, got "
            f"{first.family} and {second.family}"
        )
    both = Pair(first.module, second.module)
    return Chained(both, first._maker(), second._maker(), **cast("Mapping[str, int]", arguments))


class _Chain(StreamDecoder):
    """One stream: its spectrogram's walk, and the vocoder's window of that."""

    def __init__(self, codec: Chained) -> None:
        self._codec = codec
        self._mel = codec.autoencoder.decoder()
        self._sound = codec.vocoder.decoder()
        self._latents = 0
        self._drained = 0
        self._given = 0  # samples
        self._dtype: torch.dtype | None = None  # of the vocoder: finding out walks its modules

    def _push(self, latents: torch.Tensor) -> torch.Tensor | None:
        self._latents += latents.shape[self._codec.axis]
        return self._within(self._spoken(self._mel.decode(latents)))

    def _rest(self) -> torch.Tensor | None:
        self._drained += 1
        if self._drained <= self._codec.autoencoder.drains(self._latents):
            return self._within(self._spoken(self._mel.drain()))
        return self._within(self._sound.drain())

    def _clear(self) -> None:
        self._mel.close()
        self._sound.close()

    def _spoken(self, mel: torch.Tensor | None) -> torch.Tensor | None:
        if mel is None:
            return None
        dtype = self._dtype = self._dtype or self._codec.vocoder.dtype
        return self._sound.decode(self._codec.spectrogram(mel, dtype))

    def _within(self, sound: torch.Tensor | None) -> torch.Tensor | None:
        """What of the sound is not dropped."""
        if sound is None or self._codec.samples is None:
            return sound
        kept = sound[..., : self._codec.samples - self._given]
        self._given += kept.shape[-1]
        return kept if kept.shape[-1] else None
