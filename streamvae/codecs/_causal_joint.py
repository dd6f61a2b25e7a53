"""Causal decoders whose convolutions see time and space at once: Mochi and HunyuanVideo 1.5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import nn

from streamvae._errors import UsageError

from ._causal import Causal, CausalWalk, Past, unpack
from ._tiles import Grid


class CausalMochi(Causal):
    """AutoencoderKLMochi: (B, 12, T, h, w) to (B, 3, 6(T-1)+1, 8h, 8w).

    Every latent gives six frames; of the first one's, five are dropped. Norms look at one frame.
    The decoder is that of ``diffusers/models/autoencoders/autoencoder_kl_mochi.py``.
    """

    exactness: ClassVar[str] = (
        "equal to vae.decode within rounding (about 1e-6 in float32, a unit in the last place in "
        "bfloat16), in chunks of any size"
    )

    @property
    def frames_per_latent(self) -> int:
        """See `Causal.frames_per_latent`; what is dropped of the first latent's counts."""
        ratio: int = cast("Any", self.module).temporal_compression_ratio
        return ratio

    @property
    def scale(self) -> int:
        """See `Causal.scale`."""
        ratio: int = cast("Any", self.module).spatial_compression_ratio
        return ratio

    def check(self, shape: tuple[int, ...]) -> None:
        """See `Causal.check`; refuses what diffusers' framewise switches leave behind."""
        super().check(shape)
        blocks = self.vae.decoder.modules()
        modes = {getattr(block, "pad_mode", "replicate") for block in blocks}
        if getattr(self.module, "use_framewise_decoding", False) or modes != {"replicate"}:
            raise UsageError(
                f"expected {self.family} as it was loaded, got one whose framewise coding was "
                "enabled, which leaves its convolutions without padding (vae.decode fails, too); "
                "load it anew: streams go frame by frame without it"
            )

    def frames(self, latents: int) -> int:
        """As `Causal.frames`; all that are decoded if ``drop_last_temporal_frames`` is off."""
        return self.frames_per_latent * latents - self._dropped()

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `WalkingCodec.grid`."""
        return Grid.by_stride(self.module, shape)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's statistics, if any, and scaling factor, as diffusers' pipeline does."""
        config = self.vae.config
        scale: float = config["scaling_factor"]
        if config["latents_mean"] is None or config["latents_std"] is None:
            return latents / scale
        scaled = latents * self.constant("latents_std", latents) / scale
        return scaled + self.constant("latents_mean", latents)

    def entered(self) -> Iterator[nn.Module]:
        """See `ModuleCodec.entered`."""
        decoder = cast("Any", self.vae.decoder)
        yield self.vae.decoder
        for stage in (decoder.block_in, *decoder.up_blocks, decoder.block_out):
            yield stage
            for block in stage.resnets:
                yield block
                yield from (block.conv1, block.conv2)

    def walk(self) -> CausalWalk:
        """See `WalkingCodec.walk`."""
        return CausalWalk(self)

    def step(self, latents: torch.Tensor, past: Past) -> torch.Tensor:
        """Decode the next latents of the clips whose past this is."""
        decoder = cast("Any", self.vae.decoder)
        hidden: torch.Tensor = decoder.conv_in(latents)
        for block in decoder.block_in.resnets:
            hidden = _residual(past, block, hidden)
        for stage in decoder.up_blocks:
            for block in stage.resnets:
                hidden = _residual(past, block, hidden)
            hidden = _project(stage.proj, hidden)
            hidden = unpack(hidden, stage.temporal_expansion, stage.spatial_expansion)
        for block in decoder.block_out.resnets:
            hidden = _residual(past, block, hidden)
        frames = _project(decoder.proj_out, decoder.nonlinearity(hidden))
        return past.drop(frames, self._dropped())

    def _dropped(self) -> int:
        drops = getattr(self.module, "drop_last_temporal_frames", True)
        return self.frames_per_latent - 1 if drops else 0


class CausalHunyuan15(Causal):
    """AutoencoderKLHunyuanVideo15: (B, 32, T, h, w) to (B, 3, 4(T-1)+1, 16h, 16w).

    Where time is upsampled, the very first frame gives one frame, each later one two. In the
    middle every frame looks at all before it: their keys and values grow with the clip, in place
    of a mask as large as the clip squared. The decoder is that of
    ``diffusers/models/autoencoders/autoencoder_kl_hunyuanvideo15.py``.
    """

    exactness: ClassVar[str] = (
        "equal to vae.decode within rounding (about 2e-6 in float32, 3e-2 in bfloat16, whose "
        "attention adds up in another order), in chunks of any size"
    )

    @property
    def frames_per_latent(self) -> int:
        """See `Causal.frames_per_latent`."""
        return 1 << sum(bool(one.add_temporal_upsample) for one in self._upsamplers())

    @property
    def scale(self) -> int:
        """See `Causal.scale`."""
        return 1 << len(self._upsamplers())

    def _upsamplers(self) -> list[Any]:
        stages = cast("Any", self.vae.decoder).up_blocks
        return [one for stage in stages for one in stage.upsamplers or ()]

    def entered(self) -> Iterator[nn.Module]:
        """See `ModuleCodec.entered`."""
        decoder = cast("Any", self.vae.decoder)
        yield self.vae.decoder
        yield from (decoder.conv_in, decoder.conv_out)
        for stage in (decoder.mid_block, *decoder.up_blocks):
            yield stage
            for block in stage.resnets:
                yield block
                yield from (block.conv1, block.conv2)
        yield from filter(None, decoder.mid_block.attentions)
        for upsampler in self._upsamplers():
            yield upsampler
            yield upsampler.conv

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Say where a batch comes out though ``vae.decode`` would fail."""
        notes = super().notes(shape)
        if shape[0] > 1 and not self.vae.use_slicing:
            note = (
                f"vae.decode of {self.family} takes a batch only after enable_slicing, since its "
                "mask does not fit; this stream takes it, and decodes each clip as it would alone"
            )
            return (*notes, note)
        return notes

    def grid(self, shape: tuple[int, ...]) -> Grid | None:
        """See `WalkingCodec.grid`."""
        overlap: float = cast("Any", self.module).tile_overlap_factor
        return Grid.by_overlap(self.module, shape, (overlap, overlap))

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """By the config's scaling factor, as diffusers' pipelines do."""
        scale: float = self.vae.config["scaling_factor"]
        return latents / scale

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModuleCodec.whole`: clip by clip, since ``vae.decode`` fails over a batch."""
        clips = torch.split(latents, 1)
        return torch.cat([super(CausalHunyuan15, self).whole(clip) for clip in clips])

    def walk(self) -> CausalWalk:
        """See `WalkingCodec.walk`."""
        return CausalWalk(self)

    def step(self, latents: torch.Tensor, past: Past) -> torch.Tensor:
        """Decode the next latents of the clips whose past this is."""
        decoder = cast("Any", self.vae.decoder)
        hidden = _convolve(past, decoder.conv_in, latents)
        hidden = hidden + latents.repeat_interleave(decoder.repeat, 1)
        middle = decoder.mid_block
        hidden = _residual(past, middle.resnets[0], hidden)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            if attention is not None:
                hidden = _attend(past, attention, hidden)
            hidden = _residual(past, block, hidden)
        for stage in decoder.up_blocks:
            for block in stage.resnets:
                hidden = _residual(past, block, hidden)
            for upsampler in stage.upsamplers or ():
                hidden = _upsample(past, upsampler, hidden)
        return _convolve(past, decoder.conv_out, decoder.conv_act(decoder.norm_out(hidden)))


def _convolve(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Call a causal convolution's inner one, with frames of the past in place of padding."""
    own = cast("Any", layer)
    *sides, frames, _ = own.time_causal_padding
    hidden = past.extend(layer, hidden, frames)
    convolved: torch.Tensor = own.conv(F.pad(hidden, (*sides, 0, 0), mode=own.pad_mode))
    return convolved


def _residual(past: Past, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    own = cast("Any", block)
    new = _convolve(past, own.conv1, own.nonlinearity(own.norm1(hidden)))
    new = _convolve(past, own.conv2, own.nonlinearity(own.norm2(new)))
    shortcut = getattr(own, "conv_shortcut", None)
    return new + (hidden if shortcut is None else shortcut(hidden))


def _project(linear: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = linear(hidden.movedim(1, -1))
    return projected.movedim(-1, 1)


def _attend(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """One head, in which frame sees frame; a token for each pixel of each."""
    own = cast("Any", layer)
    batch, channels, frames, height, width = hidden.shape
    normed = own.norm(hidden)
    query, key, value = (
        projection(normed).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        for projection in (own.to_q, own.to_k, own.to_v)
    )
    seen = past.attend(layer, query, key, value, height * width)
    seen = seen.squeeze(1).transpose(1, 2).reshape(batch, channels, frames, height, width)
    attended: torch.Tensor = own.proj_out(seen) + hidden
    return attended


def _upsample(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    own = cast("Any", layer)
    lay_out = own._dcae_upsample_rearrange
    new = _convolve(past, own.conv, hidden)
    time = 2 if own.add_temporal_upsample else 1
    given = []
    if time == 2 and not past.begun:
        # Half of the channels would be a frame before the first one.
        first = lay_out(new[:, :, :1])
        first = first[:, : first.shape[1] // 2]
        shortcut = lay_out(hidden[:, :, :1]).repeat_interleave(own.repeats // 2, 1)
        given.append(first + shortcut)
        new, hidden = new[:, :, 1:], hidden[:, :, 1:]
    if new.shape[2]:
        shortcut = lay_out(hidden.repeat_interleave(own.repeats, 1), time)
        given.append(lay_out(new, time) + shortcut)
    return given[0] if len(given) == 1 else torch.cat(given, 2)
