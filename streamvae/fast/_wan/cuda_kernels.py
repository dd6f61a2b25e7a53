"""The kernels on a card of compute capability 9.0."""

from __future__ import annotations

import copy
import ctypes
import threading
from collections.abc import Iterable

import torch

from .conv_shape import ConvShape
from .cubins import cubin_of
from .driver import ConvArguments, Driver, Function, NormArguments, slot_table
from .interface import Activation, Convolution, Frames, Head, Norm, count_frames
from .options import FUSED_CHANNELS, ConvOptions, Kind, NormOptions, Options
from .weights import pack, phase_weights

#: Pixels of a tile, and of its halo, in x and y.
_TILE, _HALO = (16, 8), (18, 10)
_CONV_THREADS, _NORM_THREADS = 384, 128
#: Pixels of a block of ``rms_norm.cu``.
_NORM_PIXELS = 16


class CudaKernels:
    """Kernels in bfloat16; see `interface.Kernels`.

    Args:
        device: With an index.
        driver: In place of the device's; for tests.

    Attributes:
        max_blocks: Of a convolution; blocks stay and take several tiles.

    Raises:
        DriverError: cuda-bindings are missing or find no driver.
    """

    fused_channels = FUSED_CHANNELS

    def __init__(self, device: torch.device, driver: Driver | None = None) -> None:
        self.device = device
        self.driver = driver or Driver(device)
        self.max_blocks = self.driver.multiprocessors
        self._functions: dict[Options, Function] = {}
        self._loading = threading.Lock()

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

    def launch(
        self, options: ConvOptions, source: Frames, frames: int, arguments: ConvArguments
    ) -> None:
        """Fill in the rest of the arguments and launch."""
        kernels, shape = self.kernels, self.shape
        function = kernels.function(options)
        height, width = source.memory.shape[1:3]
        blocks_x, blocks_y = -(-width // _TILE[0]), -(-height // _TILE[1])
        tap_bytes = self.image[0, 0, 0].nbytes
        left_out = (shape.taps[0] - options.taps[0]) * options.taps[1] * options.taps[2]
        arguments.bias = self.bias.data_ptr()
        arguments.weights = self.image.data_ptr() + left_out * tap_bytes
        arguments.weight_chunk_bytes = self.image.shape[2] * tap_bytes
        arguments.frames, arguments.height, arguments.width = frames, height, width
        arguments.out_channels = shape.channels
        arguments.channel_blocks = shape.channel_blocks
        arguments.frame_blocks = -(-frames // options.block_frames)
        arguments.tiles_x = blocks_x
        arguments.tiles = arguments.channel_blocks * arguments.frame_blocks * blocks_x * blocks_y
        arguments.scale = shape.channels**0.5
        arguments.in_slots = slot_table(source.slots)
        # Offsets inside of a frame have 32 bits in the kernel.
        size = height * width * shape.channels * (4 if shape.kind is Kind.UPSAMPLE else 1)
        if size >= 1 << 32:
            raise ValueError(f"expected frames of fewer than 2^32 elements, got {size}")
        driver = kernels.driver
        source_map = driver.map_of(source.memory, _HALO)
        residual_map = source_map
        if options.residual:
            shape_of = (frames, height, width, shape.channels)
            residual_map = driver.map_at(arguments.residual, shape_of, _TILE)
        driver.launch(
            function,
            (min(kernels.max_blocks, arguments.tiles), 1),
            _CONV_THREADS,
            (source_map.address, residual_map.address, ctypes.addressof(arguments)),
        )


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
        options = self.shape.options(
            source,
            frames,
            residual=residual is not None,
            write_sum=to is not None,
            write_norm=activation is not None,
        )
        arguments = ConvArguments()
        if to is not None:
            arguments.sum = to.memory.data_ptr()
            arguments.sum_slots = slot_table(to.slots)
        if activation is not None:
            arguments.norm = activation.to.memory.data_ptr()
            arguments.norm_slots = slot_table(activation.to.slots)
            arguments.gamma = activation.gamma.data_ptr()
        if residual is not None:
            arguments.residual = residual.data_ptr()
        self.launch(options, source, frames, arguments)


class _Head(_Packed):
    def __call__(
        self, source: Frames, pixels: torch.Tensor, finite: torch.Tensor | None = None
    ) -> None:
        quantised = pixels.dtype is torch.uint8
        frames = pixels.shape[0]
        options = self.shape.options(
            source, frames, residual=False, write_sum=not quantised, write_norm=quantised
        )
        arguments = ConvArguments()
        if quantised:
            assert finite is not None  # noqa: S101  # see `interface.Head`
            arguments.norm, arguments.sum = pixels.data_ptr(), finite.data_ptr()
        else:
            arguments.sum = pixels.data_ptr()
        self.launch(options, source, frames, arguments)


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
