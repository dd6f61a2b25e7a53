"""Vocoders that decode in windows: what turns mel spectrograms, or music's latents, into sound."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from streamvae._errors import LatentsError, UsageError

from ._halo import Halo
from ._reach import Reach, reach_of_config


class _Vocoder(Halo):
    """A model whose ``forward`` is the decode; its latents are what it is given."""

    exactness = "equal to the vocoder's own output within rounding (at most 2e-6 in float32)"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        if type(module).forward is not base.forward:  # type: ignore[attr-defined]  # a module's
            raise UsageError(
                f"expected {type(module).__name__} to decode as {base.__name__} does, got a "
                "forward of its own, which may need more of the latents than a window has; write "
                "a Codec for it"
            )

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a window, hooks and all."""
        return cast("torch.Tensor", self.module(latents))


class Music3(_Vocoder):
    """MiniMaxMusic3Vocoder: latents (B, C, T) to stereo (B, 2, S), in [-1, 1]."""

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        self.channels = self.vae.config["latent_channels"]
        self.sample_rate = self.vae.config["sampling_rate"]
        self.reach = Reach.of(module)


class MMAudioMel(_Vocoder):
    """MMAudioVocoder: mel spectrograms (B, bins, T) to (B, 1, hop * T), in [-1, 1]."""

    sample_rate = None  # which only the autoencoder's config has

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        config = self.vae.config
        self.channels = config["num_mels"]
        #: Bins of a mel frame.
        self.mel: tuple[int, ...] = (self.channels,)
        narrow = {"num_mels": 1, "upsample_initial_channel": 2 ** len(config["upsample_rates"])}
        self.reach = reach_of_config(base, config, narrow, _mmaudio)

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a window, hooks and all."""
        return _mmaudio(self.module, latents)


def _mmaudio(model: nn.Module, mel: torch.Tensor) -> torch.Tensor:
    return cast("torch.Tensor", model(mel, return_dict=False)[0])


class LTX2Mel(_Vocoder):
    """LTX2Vocoder: mel spectrograms (B, channels, T, bins) to (B, channels of sound, S)."""

    layout = "BCTF"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        # The vocoder knows but the product with the bins; there are as many as sound has.
        self.channels = self.vae.config["out_channels"]
        self.bins: int = self.vae.config["in_channels"] // self.channels
        #: Channels and bins of a mel frame.
        self.mel: tuple[int, ...] = (self.channels, self.bins)
        self.sample_rate = self.vae.config["output_sampling_rate"]
        self.reach = self._reach(base)

    def _reach(self, base: type) -> Reach:
        config = self.vae.config
        hidden = 2 ** len(config["upsample_factors"])
        narrow = {"in_channels": 1, "out_channels": 1, "hidden_channels": hidden}
        return reach_of_config(base, config, narrow, _forward, 1)

    def check(self, shape: tuple[int, ...]) -> None:
        """Any length, of as many bins as the vocoder was built for."""
        super().check(shape)
        if shape[3] != self.bins:
            raise LatentsError(
                f"expected latents ({', '.join(self.layout)}) with F = {self.bins} mel bins, got "
                f"shape {tuple(shape)}"
            )


class LTX2MelWide(LTX2Mel):
    """LTX2VocoderWithBWE: the same, and a second vocoder that adds the high frequencies.

    Its own mel spectrogram of the first one's sound is taken at whole steps from the start of a
    window, so they have to fall where those of the whole sound do.
    """

    def _reach(self, base: type) -> Reach:
        config = self.vae.config
        first, step = 1, config["hop_length"]
        for factor in config["upsample_factors"]:
            first *= factor
        if first % step:
            raise UsageError(
                f"expected a vocoder of {step} samples a step, or a multiple, for a mel frame, got "
                f"{first}: the steps of its bandwidth extension do not fall on those of a window"
            )
        narrow = dict.fromkeys(("in_channels", "out_channels", "num_mel_channels"), 1)
        narrow |= dict.fromkeys(("bwe_in_channels", "bwe_out_channels"), 1)
        narrow["hidden_channels"] = 2 ** len(config["upsample_factors"])
        narrow["bwe_hidden_channels"] = 2 ** len(config["bwe_upsample_factors"])
        return reach_of_config(base, config, narrow, _forward, 1)


def _forward(model: nn.Module, mel: torch.Tensor) -> torch.Tensor:
    return cast("torch.Tensor", model(mel))
