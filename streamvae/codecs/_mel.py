"""Mel spectrograms, streamed as sound is: samples are mel frames, and channels their bins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from streamvae._errors import UsageError
from streamvae._pixels import Kind
from streamvae.abc import ChunkPlan

from ._module import check_count, check_decode_is_own
from ._walk import Walk, WalkingCodec

_LATENTS_PER_CHUNK = 32
_UPSAMPLINGS = 2

#: Mel bins that a row of a latent becomes.
BINS_A_ROW = 2**_UPSAMPLINGS


class LTX2Audio(WalkingCodec):
    """AutoencoderKLLTX2Audio: (B, C, T, F) to (B, channels * bins, 4(T-1)+1), causal in time.

    Channels and bins of a mel frame follow one another as `LTX2Vocoder` joins them: the stream's
    frames are ``vae.decode(z).sample.transpose(2, 3).flatten(1, 2)``. Time is the height of the
    pictures that the autoencoder takes spectrograms for: every convolution keeps its last rows.
    """

    kind: ClassVar[Kind] = "sound"
    layout: ClassVar[str] = "BCTF"
    exactness: ClassVar[str] = "equal to vae.decode within rounding (at most 5e-6 in float32)"

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        check_decode_is_own(module, base)
        config = self.vae.config
        self.channels = config["latent_channels"]
        rate, step = config["sample_rate"], config["mel_hop_length"]
        self.sample_rate = None if rate % step else rate // step
        #: Channels and bins of a mel frame; no bins where the config leaves them to the latents.
        self.mel: tuple[int, ...] = (config["output_channels"], config["mel_bins"] or 0)
        axis, attends = config["causality_axis"], config["mid_block_add_attention"]
        if axis != "height" or attends or config["attn_resolutions"]:
            raise UsageError(
                "expected an autoencoder that is causal in time (causality_axis 'height') and "
                f"attends to nothing, got causality_axis {axis!r} and mid_block_add_attention "
                f"{attends!r}: every mel frame may depend on every latent; call vae.decode"
            )
        if len(config["ch_mult"]) != _UPSAMPLINGS + 1:
            raise UsageError(
                f"expected {_UPSAMPLINGS + 1} entries in ch_mult, for 4 mel frames a latent, got "
                f"{len(config['ch_mult'])}: vae.decode cuts or pads the spectrogram; call it"
            )

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: channels and bins joined."""
        return super().whole(latents).transpose(2, 3).flatten(1, 2)

    def entered(self) -> Iterator[nn.Module]:
        """See `ModuleCodec.entered`."""
        decoder = cast("_Decoder", self.vae.decoder)
        yield self.vae.decoder
        yield from cast("list[nn.Module]", [decoder.conv_in, decoder.conv_out])
        levels = [block for stage in decoder.up for block in stage.block]
        for block in (decoder.mid.block_1, decoder.mid.block_2, *levels):
            yield cast("nn.Module", block)
            shortcut: _Causal | None = getattr(block, "nin_shortcut", None)
            convolutions = [block.conv1, block.conv2, *([] if shortcut is None else [shortcut])]
            yield from cast("list[nn.Module]", convolutions)
        for stage in list(decoder.up)[1:]:
            yield cast("nn.Module", stage.upsample)
            yield cast("nn.Module", stage.upsample.conv)

    def walk(self) -> Walk:
        """A walk with rows of its own."""
        return _Rows(self)

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """32 latents a chunk, or as many as asked for: the cut only changes rounding."""
        check_count(latents_per_chunk)
        size = latents_per_chunk or _LATENTS_PER_CHUNK
        return ChunkPlan(size, size)

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """What is given."""
        given = "mel spectrograms are given, channels and bins in one; a vocoder makes the sound"
        return (given, *super().notes(shape))

    def frames(self, latents: int) -> int:
        """Mel frames."""
        return 4 * (latents - 1) + 1

    def picture(self, shape: tuple[int, ...]) -> None:  # noqa: ARG002  # sound has no picture
        """None."""
        return

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """``z * std + mean`` over channels and rows of bins, as the LTX-2 pipelines have it."""
        vae = cast("_Statistics", self.vae)
        shape = (1, latents.shape[1], 1, latents.shape[3])
        mean, std = (
            one.to(latents.device, latents.dtype) for one in (vae.latents_mean, vae.latents_std)
        )
        if mean.numel() != shape[1] * shape[3]:
            raise UsageError(
                f"expected latents of {mean.numel()} channels and bins, as many as the "
                f"autoencoder has means of, got shape {tuple(latents.shape)}"
            )
        return latents * std.view(shape) + mean.view(shape)

    def epilogue(self, frames: torch.Tensor, *, tiled: bool) -> torch.Tensor:  # noqa: ARG002
        """Join channels and bins, (B, C, T, F) to (B, C * F, T)."""
        return frames.transpose(2, 3).flatten(1, 2)


class _Statistics(Protocol):
    latents_mean: torch.Tensor
    latents_std: torch.Tensor


class _Causal(Protocol):
    """diffusers' LTX2AudioCausalConv2d."""

    padding: tuple[int, int, int, int]
    conv: nn.Module


class _Block(Protocol):
    norm1: nn.Module
    norm2: nn.Module
    conv1: _Causal
    conv2: _Causal
    dropout: nn.Module
    non_linearity: nn.Module


class _Upsample(Protocol):
    conv: _Causal


class _Stage(Protocol):
    block: list[_Block]
    upsample: _Upsample


class _Mid(Protocol):
    block_1: _Block
    attn_1: nn.Module
    block_2: _Block


class _Decoder(Protocol):
    """diffusers' LTX2AudioDecoder."""

    conv_in: _Causal
    mid: _Mid
    up: list[_Stage]
    norm_out: nn.Module
    non_linearity: nn.Module
    conv_out: _Causal
    mel_bins: int | None


class _Rows:
    """One walk: the last rows that every convolution has seen."""

    def __init__(self, codec: LTX2Audio) -> None:
        self._codec = codec
        self._rows: dict[_Causal, torch.Tensor] = {}
        self._started = False

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        decoder = cast("_Decoder", self._codec.vae.decoder)
        hidden = self._convolved(decoder.conv_in, latents)
        hidden = self._residual(decoder.mid.block_1, hidden)
        hidden = decoder.mid.attn_1(hidden)  # nothing, but for hooks on it
        hidden = self._residual(decoder.mid.block_2, hidden)
        for level, stage in reversed(list(enumerate(decoder.up))):
            for block in stage.block:
                hidden = self._residual(block, hidden)
            if level:
                hidden = self._upsampled(stage.upsample, hidden)
        hidden = decoder.non_linearity(decoder.norm_out(hidden))
        hidden = self._convolved(decoder.conv_out, hidden)
        self._started = True
        bins = decoder.mel_bins or latents.shape[3]
        spare = max(0, bins - hidden.shape[3])
        return functional.pad(hidden, (0, spare))[..., :bins]

    def drain(self) -> None:
        return

    def clear(self) -> None:
        self._rows.clear()

    def _convolved(self, causal: _Causal, hidden: torch.Tensor) -> torch.Tensor:
        left, right, kept, _ = causal.padding
        if kept:
            before = self._rows.get(causal)
            if before is None:
                before = hidden.new_zeros(*hidden.shape[:2], kept, hidden.shape[3])
            hidden = torch.cat([before, hidden], 2)
            self._rows[causal] = hidden[:, :, -kept:].clone()
        return cast("torch.Tensor", causal.conv(functional.pad(hidden, (left, right))))

    def _residual(self, block: _Block, hidden: torch.Tensor) -> torch.Tensor:
        inner = self._convolved(block.conv1, block.non_linearity(block.norm1(hidden)))
        inner = block.dropout(block.non_linearity(block.norm2(inner)))
        inner = self._convolved(block.conv2, inner)
        # In diffusers' blocks that change the number of channels.
        shortcut: _Causal | None = getattr(block, "nin_shortcut", None)
        return (hidden if shortcut is None else self._convolved(shortcut, hidden)) + inner

    def _upsampled(self, upsample: _Upsample, hidden: torch.Tensor) -> torch.Tensor:
        doubled = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
        frames = self._convolved(upsample.conv, doubled)
        return frames if self._started else frames[:, :, 1:]  # the first latent gives one of two
