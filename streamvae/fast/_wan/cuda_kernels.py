"""The kernels on a card of compute capability 9.0."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import torch

from streamvae._locks import fork_safe_lock

from .conv_shape import ConvShape
from .cubins import cubin_of
from .driver import ConvArguments, Driver, Function, NormArguments, slot_table
from .interface import Activation, Convolution, Frames, Head, Norm, count_frames
from .options import FUSED_CHANNELS, Kind, NormOptions, Options
from .weights import pack, phase_weights

#: Pixels of a tile, and of its halo, in x and y.
_TILE, _HALO = (16, 8), (18, 10)
_CONV_THREADS, _NORM_THREADS = 384, 128
#: Pixels of a block of ``rms_norm.cu``.
_NORM_PIXELS = 16
#: Kinds of call that a layer prepares: sizes of pictures, mostly.
_MOST_CALLS = 64


class CudaKernels:
    """Kernels in bfloat16; see `interface.Kernels`.

    Args:
        device: With an index.
        driver: In place of the device's; for tests.

    Attributes:
        max_blocks: Of a convolution; blocks stay and take several tiles.
        packed_bytes: Of all weights that were packed so far.

    Raises:
        DriverError: cuda-bindings are missing or find no driver.
    """

    fused_channels = FUSED_CHANNELS

    def __init__(self, device: torch.device, driver: Driver | None = None) -> None:
        self.device = device
        self.driver = driver or Driver(device)
        self.max_blocks = self.driver.multiprocessors
        self.packed_bytes = 0
        self._functions: dict[Options, Function] = {}
        self._loading = fork_safe_lock()

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        """See `interface.Kernels.convolution`."""
        return _Convolution(self, ConvShape.of(kind, weight), weight, bias)

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """See `interface.Kernels.head`."""
        return _Head(self, ConvShape.of(Kind.HEAD, weight), weight, bias)

    def norm(self, gamma: torch.Tensor) -> Norm:
        """See `interface.Kernels.norm`."""
        return _Norm(self, gamma)

    def function(self, options: Options) -> Function:
        """Give a loaded kernel; it is loaded when first asked for.

        Raises:
            CompileError: There is no cubin of it.
            DriverError: The device does not take it.
        """
        function = self._functions.get(options)
        if function is None:
            with self._loading:
                function = self._functions.get(options) or self._load(options)
                self._functions[options] = function
        return function

    def with_max_blocks(self, blocks: int) -> CudaKernels:
        """Give the same loaded kernels, in fewer blocks that take more tiles each; for tests."""
        other = copy.copy(self)
        other.max_blocks = blocks
        return other

    def load(self, every: Iterable[Options]) -> None:
        """Load kernels before they are wanted; raises as `function`."""
        for options in every:
            self.function(options)

    def _load(self, options: Options) -> Function:
        return self.driver.load(cubin_of(options), options.function, options.shared_memory)


class _Call(NamedTuple):
    """All of a launch that its addresses and slots leave open.

    Attributes:
        function: The specialisation.
        arguments: Of the picture's size and the layer.
        blocks: That are launched.
    """

    function: Function
    arguments: ConvArguments
    blocks: int


class _Packed:
    """A convolution's weights on the device, and its launch."""

    def __init__(
        self, kernels: CudaKernels, shape: ConvShape, weight: torch.Tensor, bias: torch.Tensor
    ) -> None:
        self.kernels = kernels
        self.shape = shape
        weight = weight.detach()
        if shape.kind is Kind.UPSAMPLE:
            weight = phase_weights(weight)
        self.image = pack(weight, shape.block)
        blocks = shape.channel_blocks // (4 if shape.kind is Kind.UPSAMPLE else 1)
        self.bias = torch.zeros(blocks * shape.block, device=bias.device)
        self.bias[: bias.shape[0]] = bias.detach()
        kernels.packed_bytes += self.image.nbytes + self.bias.nbytes
        self._calls: dict[tuple[object, ...], _Call] = {}

    def launch(
        self,
        source: Frames,
        frames: int,
        *,
        to: Frames | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Launch the specialisation for this call; see `interface.Convolution`."""
        memory, shape = source.memory, source.memory.shape
        flags = residual is not None, to is not None, activation is not None
        key = (len(source.slots), frames, shape[1], shape[2], shape[3], *flags)
        call = self._calls.get(key)
        if call is None:
            call = self._prepared(source, frames, *flags)
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            self._calls[key] = call
        # A copy: the driver reads it while other threads may launch the same layer.
        arguments = ConvArguments.from_buffer_copy(call.arguments)
        arguments.in_slots = slot_table(source.slots)
        if to is not None:
            arguments.sum = to.memory.data_ptr()
            arguments.sum_slots = slot_table(to.slots)
        if activation is not None:
            arguments.norm = activation.to.memory.data_ptr()
            arguments.norm_slots = slot_table(activation.to.slots)
            arguments.gamma = activation.gamma.data_ptr()
        driver = self.kernels.driver
        source_map = residual_map = driver.map_at(memory.data_ptr(), shape, _HALO)
        if residual is not None:
            arguments.residual = residual.data_ptr()
            residual_map = driver.map_at(residual.data_ptr(), residual.shape, _TILE)
        driver.launch(
            call.function,
            (call.blocks, 1),
            _CONV_THREADS,
            (source_map.address, residual_map.address, ctypes.addressof(arguments)),
        )

    def _prepared(self, source: Frames, frames: int, *flags: bool) -> _Call:
        kernels, shape = self.kernels, self.shape
        residual, write_sum, write_norm = flags
        options = shape.options(
            source, frames, residual=residual, write_sum=write_sum, write_norm=write_norm
        )
        height, width = source.memory.shape[1:3]
        blocks_x, blocks_y = -(-width // _TILE[0]), -(-height // _TILE[1])
        tap_bytes = self.image[0, 0, 0].nbytes
        left_out = (shape.taps[0] - options.taps[0]) * options.taps[1] * options.taps[2]
        frame_blocks = -(-frames // options.block_frames)
        # Offsets inside of a frame have 32 bits in the kernel.
        size = height * width * shape.channels * (4 if shape.kind is Kind.UPSAMPLE else 1)
        if size >= 1 << 32:
            raise ValueError(f"expected frames of fewer than 2^32 elements, got {size}")
        arguments = ConvArguments(
            bias=self.bias.data_ptr(),
            weights=self.image.data_ptr() + left_out * tap_bytes,
            weight_chunk_bytes=self.image.shape[2] * tap_bytes,
            frames=frames,
            height=height,
            width=width,
            out_channels=shape.channels,
            channel_blocks=shape.channel_blocks,
            frame_blocks=frame_blocks,
            tiles_x=blocks_x,
            tiles=shape.channel_blocks * frame_blocks * blocks_x * blocks_y,
            scale=shape.channels**0.5,
        )
        blocks = min(kernels.max_blocks, arguments.tiles)
        return _Call(kernels.function(options), arguments, blocks)


class _Convolution(_Packed):
    def __call__(
        self,
        source: Frames,
        *,
        to: Frames | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        frames = count_frames(self.shape.kind, to, activation)
        self.launch(source, frames, to=to, activation=activation, residual=residual)


class _Head(_Packed):
    def __call__(
        self, source: Frames, pixels: torch.Tensor, finite: torch.Tensor | None = None
    ) -> None:
        frames = pixels.shape[0]
        if pixels.dtype is not torch.uint8:
            self.launch(source, frames, to=Frames.of(pixels))
            return
        assert finite is not None  # noqa: S101  # see `interface.Head`
        # It has no gamma, so that is where it tells of NaN.
        self.launch(source, frames, activation=Activation(finite, Frames.of(pixels)))


class _Norm:
    def __init__(self, kernels: CudaKernels, gamma: torch.Tensor) -> None:
        self.kernels = kernels
        self.gamma = gamma.detach().float().contiguous()

    def __call__(self, source: torch.Tensor, to: Frames, *, silu: bool = True) -> None:
        frames, height, width, channels = source.shape
        arguments = NormArguments(
            source=source.data_ptr(),
            norm=to.memory.data_ptr(),
            gamma=self.gamma.data_ptr(),
            pixels=height * width,
            scale=channels**0.5,
            norm_slots=slot_table(to.slots),
        )
        self.kernels.driver.launch(
            self.kernels.function(NormOptions(channels, silu)),
            (-(-height * width // _NORM_PIXELS), frames),
            _NORM_THREADS,
            (ctypes.addressof(arguments),),
        )
