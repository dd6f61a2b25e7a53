"""A chunk's way through a Wan decoder: which layer reads and writes which frames, in order."""

from __future__ import annotations

import torch

from .attention import attend
from .interface import Activation, Convolution, Frames
from .network import Attention, Causal, Input, Network, Normalization, ResidualBlock
from .options import MAX_FRAMES
from .pools import HISTORY, CausalInput, FramePool

#: Frames of a pool have the same level and channels; latents have one of their own.
_PoolKey = tuple[int, int]
#: A norm, and whose input it is written to.
_Reader = tuple[Normalization, Input]
_Shape = tuple[int, int, int, int]


def most_latents(network: Network) -> int:
    """Count the latents that can be decoded at a time: tables of slots have an end."""
    return max(1, (MAX_FRAMES - HISTORY) // network.rate)


class Histories:
    """What one stream keeps between chunks: pools, and in them each clip's histories.

    Args:
        network: The decoder.
        clips: Of a batch; they are decoded one after the other.
        size: Height and width of the latents.
        latents: Decoded at a time, at most.
        device: Where.

    Attributes:
        pools: Of frames.
        inputs: Of each clip, in the order of ``network.inputs``.
    """

    def __init__(
        self,
        network: Network,
        clips: int,
        size: tuple[int, int],
        latents: int,
        device: torch.device,
    ) -> None:
        like = torch.empty(0, dtype=network.dtype, device=device)
        sharing: dict[_PoolKey, list[Input]] = {}
        for place in network.inputs:
            sharing.setdefault(_pool_key(place), []).append(place)
        self.pools: dict[_PoolKey, FramePool] = {}
        for key, places in sharing.items():
            level, channels = places[0].level, places[0].channels
            shape = (size[0] << level, size[1] << level, channels)
            frames = latents * max(place.rate for place in places)
            padded = places[0].index == 0
            self.pools[key] = FramePool(shape, clips * len(places), frames, like, cleared=padded)
        self.inputs = [
            [CausalInput(self.pools[_pool_key(place)]) for place in network.inputs]
            for _ in range(clips)
        ]


def _pool_key(place: Input) -> _PoolKey:
    return (-1 if place.index == 0 else place.level), place.channels


class ChunkDecoder:
    """Launches chunks of one clip.

    Args:
        network: The decoder.
        inputs: The clip's.
        fused_channels: Up to how many channels a convolution writes its activation.
        first: Whether it is the clip's first chunk, of one latent: what comes before is zeros, and
            time is not upsampled.
    """

    def __init__(
        self, network: Network, inputs: list[CausalInput], fused_channels: int, *, first: bool
    ) -> None:
        self._network = network
        self._inputs = inputs
        self._fused_channels = fused_channels
        self._first = first

    def decode(
        self, hidden: torch.Tensor, pixels: torch.Tensor, finite: torch.Tensor | None = None
    ) -> None:
        """Launch a chunk.

        Args:
            hidden: Latents after post_quant_conv, (channels, latents, height, width).
            pixels: Where frames are written, not clamped: (frames, height, width, channels), or
                levels, uint8, where the head can.
            finite: See `interface.Head`.
        """
        network = self._network
        latents, height, width = hidden.shape[1:]
        new = self._inputs[network.conv_in.input.index].begin(latents)
        for slot, latent in zip(new.slots, hidden.unbind(1), strict=True):
            new.memory[slot, ..., : network.latent_channels].copy_(latent.permute(1, 2, 0))
        x = hidden.new_empty(latents, height, width, network.conv_in_channels)
        self._causal(network.conv_in, _shape(x), to=Frames.of(x), reader=self._reader(0, -1))
        for number in range(len(network.levels)):
            x = self._level(number, x)
        head = self._inputs[network.head.input.index]
        network.head.launch(head.read(first=self._first), pixels, finite)
        head.end()

    def _level(self, number: int, x: torch.Tensor) -> torch.Tensor:
        level, source = self._network.levels[number], x
        for index, block in enumerate(level.blocks):
            reader = self._reader(number, index)
            if isinstance(block, Attention):
                attend(block, x)
                self._activate(x, reader)
                continue
            kept = index == 0 and level.shortcut is not None
            x = self._block(block, x, reader, self._time_input(number, index), kept=kept)
        return x if level.upsampling is None else self._upsample(number, x, source)

    def _block(
        self,
        block: ResidualBlock,
        x: torch.Tensor,
        reader: _Reader | None,
        time: Input | None,
        *,
        kept: bool,
    ) -> torch.Tensor:
        """Launch a residual block, whose first convolution's input is written already.

        Args:
            block: The block.
            x: The sums before it; overwritten, where it has no shortcut.
            reader: What reads the activation of its sums.
            time: The convolution in time that reads the sums with history, if one does.
            kept: Whether ``x`` is read again, and may not be overwritten.

        Returns:
            The sums, if they were written in place.
        """
        shape = (*_shape(x)[:3], block.channels)
        self._causal(block.conv1, shape, reader=(block.norm2, block.conv2.input))
        if block.shortcut is not None:
            source, x = Frames.of(x), x.new_empty(shape)
            block.shortcut(source, to=Frames.of(x))
        is_last = reader is not None and reader[1] == self._network.head.input
        to: Frames | None
        sums = x.new_empty(shape) if kept and block.shortcut is None and time is None else x
        if time is not None:
            to = self._inputs[time.index].begin(shape[0])
        else:
            to = None if is_last else Frames.of(sums)  # the head reads the activation alone
        self._causal(block.conv2, shape, to=to, reader=reader, residual=x)
        return sums

    def _upsample(self, number: int, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        level = self._network.levels[number]
        upsampling = level.upsampling
        assert upsampling is not None  # noqa: S101  # the caller has seen it
        count, height, width, channels = _shape(x)
        if upsampling.time is not None and not self._first:
            count *= 2
            x = x.new_empty(count, height, width, channels)
            self._causal(upsampling.time, _shape(x), to=Frames.of(x))
        shape = (count, 2 * height, 2 * width, upsampling.channels)
        larger = x.new_empty(shape)
        reader = self._reader(number + 1, -1)
        to = Frames.of(larger)
        if level.shortcut is None:
            self._convolve(upsampling.space, Frames.of(x), shape, to=to, reader=reader)
            return larger
        upsampling.space(Frames.of(x), to=to)
        level.shortcut.add(source, larger, first=self._first)
        self._activate(larger, reader)
        return larger

    def _reader(self, number: int, index: int) -> _Reader | None:
        """What reads the activation of the sums of block ``index``; None if they are read bare."""
        levels = self._network.levels
        blocks = levels[number].blocks
        if index + 1 < len(blocks):
            return _opening(blocks[index + 1])
        if levels[number].upsampling is not None:
            return None
        if number + 1 < len(levels):
            return _opening(levels[number + 1].blocks[0])
        return self._network.norm_out, self._network.head.input

    def _time_input(self, number: int, index: int) -> Input | None:
        """The convolution in time that reads a block's sums."""
        level = self._network.levels[number]
        time = level.upsampling and level.upsampling.time
        last = index + 1 == len(level.blocks)
        return time.input if time and last and not self._first else None

    def _causal(
        self,
        layer: Causal,
        shape: _Shape,
        *,
        to: Frames | None = None,
        reader: _Reader | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Launch a convolution over its history and new frames; these become its history."""
        given = self._inputs[layer.input.index]
        source = given.read(first=self._first)
        self._convolve(layer.launch, source, shape, to=to, reader=reader, residual=residual)
        given.end()

    def _convolve(
        self,
        launch: Convolution,
        source: Frames,
        shape: _Shape,
        *,
        to: Frames | None,
        reader: _Reader | None,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Launch a convolution and the activation of its sums, in one where they fit.

        Args:
            launch: The convolution.
            source: What it reads.
            shape: Of its sums.
            to: Where they are written, if they are read bare.
            reader: What reads their activation.
            residual: Added to them.
        """
        if reader is None:
            launch(source, to=to, residual=residual)
            return
        norm, place = reader
        if shape[-1] <= self._fused_channels:
            activation = Activation(norm.gamma, self._inputs[place.index].begin(shape[0]))
            launch(source, to=to, activation=activation, residual=residual)
            return
        if to is None:
            to = Frames.of(source.memory.new_empty(shape))
        launch(source, to=to, residual=residual)
        self._activate(to.memory, reader)

    def _activate(self, sums: torch.Tensor, reader: _Reader | None) -> None:
        if reader is not None:
            norm, place = reader
            norm.launch(sums, self._inputs[place.index].begin(sums.shape[0]))


def _opening(block: ResidualBlock | Attention) -> _Reader | None:
    """What a block reads activated: attention has its norm without an activation."""
    return None if isinstance(block, Attention) else (block.norm1, block.conv1.input)


def _shape(x: torch.Tensor) -> _Shape:
    count, height, width, channels = x.shape
    return count, height, width, channels
