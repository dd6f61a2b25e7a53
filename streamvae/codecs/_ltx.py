"""The decoders of LTX and LTX-2 as chains of steps.

Upstream: ``diffusers/models/autoencoders/autoencoder_kl_ltx.py`` and ``autoencoder_kl_ltx2.py``.
"""

from __future__ import annotations

import torch

from ._chain import Chain, spread
from ._conditions import Conditions, Modulation
from ._ltx_parts import Block, CausalConv, Function, LTXDecoder, Resnet, Upsampler


class Builder:
    """Builds the chain of a decoder, part after part in the order of execution.

    Args:
        decoder: Of LTX or LTX-2.
        causal: Whether its convolutions see no frames after their own.
        channels_last: Whether its norms take channels last (LTX) or second (LTX-2).
        given: What the walk depends on; None for a chain that is only asked about its steps.
    """

    def __init__(
        self, decoder: LTXDecoder, given: Conditions | None, *, causal: bool, channels_last: bool
    ) -> None:
        self._decoder = decoder
        self._given = given
        self._causal = causal
        self._channels_last = channels_last
        self._chain = Chain()
        self._size = (1, 1) if given is None else (given.latents.shape[3], given.latents.shape[4])

    def build(self) -> Chain:
        """The chain, without state; draws all noise."""
        decoder, given = self._decoder, self._given
        timestep = None if given is None else given.timestep(decoder)
        self._window(decoder.conv_in)
        for block in (decoder.mid_block, *decoder.up_blocks):
            self._block(block, timestep)
        modulation = None
        if given is not None:
            embedded = given.embedded(decoder.time_embedder, timestep)
            modulation = given.modulation(decoder, 1, embedded)
        self._activate(decoder.norm_out, decoder.conv_act, modulation)
        self._window(decoder.conv_out)
        patch = (decoder.patch_size_t, decoder.patch_size, decoder.patch_size)
        self._chain.spread(patch, width_first=True)  # unlike the upsamplers' channels
        return self._chain

    def _block(self, block: Block, timestep: torch.Tensor | None) -> None:
        given = self._given
        conv_in: Resnet | None = getattr(block, "conv_in", None)
        if conv_in is not None:
            self._resnet(conv_in, None)
        embedded = None if given is None else given.embedded(block.time_embedder, timestep)
        for upsampler in getattr(block, "upsamplers", None) or ():
            self._upsampler(upsampler)
        for resnet in block.resnets:
            self._resnet(resnet, embedded)

    def _resnet(self, resnet: Resnet, embedded: torch.Tensor | None) -> None:
        noise, modulation = [], None
        if self._given is not None:
            noise = self._given.noise(resnet, self._size)
            modulation = self._given.modulation(resnet, 2, embedded)
        skip = self._chain.enter(lambda frames: _shortcut(resnet, frames))
        first, second = (None, None) if modulation is None else (modulation[:2], modulation[2:])
        self._activate(resnet.norm1, resnet.nonlinearity, first)
        self._window(resnet.conv1)
        for add in noise[:1]:
            self._chain.each(add)
        self._activate(resnet.norm2, resnet.nonlinearity, second)
        self._chain.each(resnet.dropout)  # nothing, but for hooks on it
        self._window(resnet.conv2)
        for add in noise[1:]:
            self._chain.each(add)
        self._chain.leave(skip)

    def _upsampler(self, upsampler: Upsampler) -> None:
        stride = upsampler.stride
        skip = self._chain.enter(lambda x: spread(x, stride)) if upsampler.residual else None
        self._window(upsampler.conv)
        self._chain.spread(stride)
        if skip is not None:
            self._chain.leave(skip)
        self._chain.opening(stride[0] - 1)
        self._size = (self._size[0] * stride[1], self._size[1] * stride[2])

    def _window(self, conv: CausalConv) -> None:
        self._chain.window(conv.conv, conv.kernel_size[0], causal=self._causal)

    def _activate(self, norm: Function, act: Function, modulation: Modulation | None) -> None:
        last = self._channels_last
        normed: Function = (lambda x: _norm_last(norm, x)) if last else norm
        if modulation is None:
            self._chain.each(lambda frames: act(normed(frames)))
            return
        shift, factor = modulation
        self._chain.each(lambda frames: act(normed(frames) * factor + shift))


def _norm_last(norm: Function, frames: torch.Tensor) -> torch.Tensor:
    return norm(frames.movedim(1, -1)).movedim(-1, 1)


def _shortcut(resnet: Resnet, frames: torch.Tensor) -> torch.Tensor:
    if resnet.norm3 is not None:
        frames = _norm_last(resnet.norm3, frames)
    return frames if resnet.conv_shortcut is None else resnet.conv_shortcut(frames)
