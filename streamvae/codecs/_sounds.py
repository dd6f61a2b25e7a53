"""Families of sound autoencoders that decode in windows: what their configs call things."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn

from ._halo import Halo
from ._module import check_decode_is_own
from ._reach import Reach, reach_of_config


class _Chain(Halo):
    """A decoder whose convolutions follow one another in a line."""

    channels_name: str
    rate_name: str

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        self.channels = self.vae.config[self.channels_name]
        self.sample_rate = self.vae.config[self.rate_name]
        self.reach = self._reach(base)

    def _reach(self, base: type) -> Reach:  # noqa: ARG002  # another family asks its class
        return Reach.of(self.vae.decoder)


class KVAEAudio(_Chain):
    """AutoencoderKLKVAEAudio: (B, C, T) to (B, 1, hop * T); attention is in the encoder only."""

    channels_name = "codebook_dim"
    rate_name = "sample_rate"


class LongCat(_Chain):
    """LongCatAudioDiTVae: (B, C, T) to (B, 1, hop * T), float32 always; scales latents itself."""

    channels_name = "latent_dim"
    rate_name = "sample_rate"


class Cosmos3(_Chain):
    """Cosmos3AVAEAudioTokenizer: (B, C, T) to (B, 2, hop * T), clamped to [-1, 1]."""

    channels_name = "vocoder_input_dim"
    rate_name = "sampling_rate"

    def window(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a window; its ``decode`` gives the tensor itself."""
        self.onload()
        return cast("_Tokenizer", self.vae).decode(latents)


class _Tokenizer(Protocol):
    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


class MiniMaxH3Audio(_Chain):
    """AutoencoderKLMiniMaxH3Audio: (B, C, T) to (B, 1, hop * T), float32 always, clamped.

    The autoencoder is mono: MiniMax-H3 has the two channels of its sound as a batch of two.
    """

    channels_name = "latent_channels"
    rate_name = "sampling_rate"

    def _reach(self, base: type) -> Reach:
        config = self.vae.config
        narrow = {"encoder_dim": 1, "latent_dim": 1, "latent_channels": 1, "num_attention_heads": 1}
        narrow["decoder_dim"] = 2 ** len(config["decoder_rates"])
        return reach_of_config(base, config, narrow, _h3)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Where stereo is."""
        if shape[0] == 2:  # left and right
            return ("the autoencoder is mono: two clips are given, for stereo left and right",)
        return ()

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """``z * std + mean`` of the config, as the MiniMax-H3 pipeline has it."""
        if self.vae.config["latents_mean"] is None or self.vae.config["latents_std"] is None:
            return latents
        mean = self.constant("latents_mean", latents)
        return latents * self.constant("latents_std", latents) + mean


def _h3(model: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    return cast("_H3", model).decode(latents, return_dict=False)[0]


class _H3(Protocol):
    def decode(self, latents: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor]: ...


class SAME(_Chain):
    """AutoencoderSAME: (B, C, T) to (B, channels of sound, hop * T), by attention to neighbours.

    Every layer of a transformer sees ``sliding_window`` of its inputs on either side.
    """

    channels_name = "latent_dim"
    rate_name = "sampling_rate"
    exactness = (
        "equal to vae.decode within rounding (about 1e-6 in float32 for 100 latents, 4e-6 for 400: "
        "vae.decode rounds the positions of its attention, the more the later they are)"
    )

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """What half precision does to positions."""
        dtypes = {
            buffer.dtype
            for name, buffer in self.vae.decoder.named_buffers()
            if name.endswith("inv_freq") and buffer.dtype.itemsize < torch.float32.itemsize
        }
        return tuple(
            f"in {str(dtype).removeprefix('torch.')} the autoencoder rounds the positions of its "
            "attention to wrong ones, the more the later they are: those of the stream's windows "
            "are less wrong, and its sound is closer to float32 than vae.decode's, not equal to it"
            for dtype in dtypes
        )

    def _reach(self, base: type) -> Reach:  # noqa: ARG002
        hop: int = self.vae.config["patch_size"]
        blocks = list(cast("_Blocks", self.vae.decoder).blocks)
        for block in blocks:
            hop *= block.stride
        reach, samples = 0, hop
        for block in blocks:
            reach += len(block.transformers) * block.sliding_window * samples
            samples //= block.stride
        return Reach(hop, reach, reach, 0)


class _Block(Protocol):
    stride: int
    sliding_window: int
    transformers: nn.ModuleList


class _Blocks(Protocol):
    blocks: list[_Block]
