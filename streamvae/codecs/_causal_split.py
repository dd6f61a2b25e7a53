"""Causal decoders that treat space and time apart, in convolutions and in attention: Cosmos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import nn

from streamvae._errors import UsageError

from ._causal import Causal, CausalWalk, Past, unpack
from ._offloaded import onloaded
from ._overrides import is_plain


class CausalCosmos(Causal):
    """AutoencoderKLCosmos: (B, 16, T, h, w) to (B, 3, 8(T-1)+1, 8h, 8w).

    Every pixel of every frame looks at the same pixel of all frames before it: their keys and
    values grow with the clip. Wavelets (or a mere rearrangement) give the last factor. The decoder
    is that of ``diffusers/models/autoencoders/autoencoder_kl_cosmos.py``.
    """

    exactness: ClassVar[str] = (
        "equal to vae.decode within rounding (about 6e-6 in float32 where frames reach 5, a few "
        "units in the last place in bfloat16), in chunks of any size"
    )

    @property
    def frames_per_latent(self) -> int:
        """See `Causal.frames_per_latent`."""
        return self._patch << sum(bool(one.temporal_upsample) for one in self._upsamplers())

    @property
    def scale(self) -> int:
        """See `Causal.scale`."""
        return self._patch << sum(bool(one.spatial_upsample) for one in self._upsamplers())

    @property
    def _patch(self) -> int:
        size: int = cast("Any", self.vae.decoder).unpatch_embed.patch_size
        return size

    def _upsamplers(self) -> list[Any]:
        stages = cast("Any", self.vae.decoder).up_blocks
        return [one for stage in stages for one in stage.upsamplers or ()]

    def entered(self) -> Iterator[nn.Module]:
        """See `ModuleCodec.entered`."""
        decoder = cast("Any", self.vae.decoder)
        yield self.vae.decoder
        yield from (decoder.conv_in, decoder.conv_out, decoder.unpatch_embed)
        for stage in (decoder.mid_block, *decoder.up_blocks):
            yield stage
            for block in stage.resnets:
                yield block
                yield from (block.conv1, block.conv2)
            yield from filter(None, stage.temp_attentions)
        yield from self._upsamplers()

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Name the switches that diffusers lets one set, and ignores."""
        ignored = [
            switch
            for switch in ("use_tiling", "use_framewise_decoding")
            if getattr(self.module, switch, False)
        ]
        notes = [
            f"{self.family} has no code for {switch}: vae.decode ignores it, and so does this "
            "stream, which holds one chunk of the whole picture"
            for switch in ignored
        ]
        return (*super().notes(shape), *notes)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Impossible here: it takes each latent's place in time and a factor of the scheduler.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"expected latents of {self.family} as vae.decode takes them, since its statistics "
            "differ from latent to latent and are scaled by the scheduler's sigma_data, got "
            "normalized ones; pass the pipeline in place of its autoencoder, or normalized=False"
        )

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """See `WalkingCodec.prologue`."""
        return cast("torch.Tensor", self.vae.post_quant_conv(latents))

    def walk(self) -> CausalWalk:
        """See `WalkingCodec.walk`."""
        return CausalWalk(self)

    def step(self, latents: torch.Tensor, past: Past) -> torch.Tensor:
        """Decode what `prologue` gave of the next latents of the clips whose past this is."""
        decoder = cast("Any", self.vae.decoder)
        hidden = _project(past, decoder.conv_in, latents)
        middle = decoder.mid_block
        hidden = _residual(past, middle.resnets[0], hidden)
        for space, time, block in zip(
            middle.attentions, middle.temp_attentions, middle.resnets[1:], strict=True
        ):
            hidden = _attend(past, time, space(hidden))
            hidden = _residual(past, block, hidden)
        for stage in decoder.up_blocks:
            for block, space, time in zip(
                stage.resnets, stage.attentions, stage.temp_attentions, strict=True
            ):
                hidden = _residual(past, block, hidden)
                if space is not None:
                    hidden = _attend(past, time, space(hidden))
            for upsampler in stage.upsamplers or ():
                hidden = _upsample(past, upsampler, hidden)
        hidden = _project(past, decoder.conv_out, F.silu(decoder.norm_out(hidden)))
        return _unpatch(past, decoder.unpatch_embed, hidden)


def _convolve(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Call a causal convolution with frames of the past in place of its own padding of time."""
    own = cast("Any", layer)
    count = _frames_before(layer)
    hidden = past.extend(layer, hidden, count)
    if not (count and is_plain(layer) and isinstance(layer, nn.Conv3d)):
        # Hooks, a compiled layer, or another in its place: call all of it, and drop what it makes
        # of its own padding.
        convolved: torch.Tensor = layer(hidden)
        return convolved[:, :, count:]
    hidden = F.pad(hidden, (*own.spatial_pad, 0, 0), mode=own.pad_mode, value=0.0)
    return nn.Conv3d.forward(layer, hidden)


def _frames_before(layer: nn.Module) -> int:
    """Frames of its own padding of time; an adapter's are those of the layer that it is around."""
    for part in layer.modules():
        count: int | None = getattr(part, "temporal_pad", None)
        if count is not None:
            return count
    raise UsageError(
        "expected a CosmosCausalConv3d in the decoder, or an adapter around one, got a "
        f"{type(layer).__name__}, of which nobody knows how it pads time; decode with vae.decode"
    )


def _project(past: Past, layers: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """A convolution over space, then one over time."""
    own = cast("Any", layers)
    return _convolve(past, own.conv_t, own.conv_s(hidden))


def _residual(past: Past, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    own = cast("Any", block)
    new = _project(past, own.conv1, F.silu(own.norm1(hidden)))
    new = _project(past, own.conv2, own.dropout(F.silu(own.norm2(new))))
    added: torch.Tensor = new + own.conv_shortcut(hidden)
    return added


def _attend(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Attention over time, every pixel for itself."""
    own = cast("Any", layer)
    batch, channels, frames, height, width = hidden.shape
    normed = own.norm(hidden)
    query, key, value = (
        projection(normed)
        .permute(0, 3, 4, 2, 1)
        .reshape(batch * height * width, frames, own.num_attention_heads, -1)
        .transpose(1, 2)
        for projection in (own.to_q, own.to_k, own.to_v)
    )
    seen = past.attend(layer, query, key, value, 1)
    seen = seen.transpose(1, 2).reshape(batch, height, width, frames, channels)
    seen = seen.permute(0, 4, 3, 1, 2)
    for output in own.to_out:
        seen = output(seen)
    return seen + hidden


def _upsample(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    own = cast("Any", layer)
    if not (own.temporal_upsample or own.spatial_upsample):
        return hidden
    if own.temporal_upsample:
        # Every frame twice, but for the very first one.
        hidden = past.drop(hidden.repeat_interleave(2, 2), 1)
        hidden = _convolve(past, own.conv1, hidden) + hidden
    if own.spatial_upsample:
        hidden = hidden.repeat_interleave(2, 3).repeat_interleave(2, 4)
        hidden = own.conv2(hidden) + hidden
    upsampled: torch.Tensor = own.conv3(hidden)
    return upsampled


def _unpatch(past: Past, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """As the layer itself, which would drop the first frames of every chunk."""
    own = cast("Any", layer)
    patch: int = own.patch_size
    if own.patch_method == "haar":
        with onloaded(layer):
            for _ in range(int(math.log2(patch))):
                hidden = own._idwt(hidden, rescale=True)
    else:
        hidden = unpack(hidden, patch, patch)
    return past.drop(hidden, patch - 1)
