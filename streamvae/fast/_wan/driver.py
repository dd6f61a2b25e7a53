"""Loading and launching through CUDA's driver: modules, tensor maps, arguments.

By cuda-bindings, which torch's newer CUDA wheels bring. One function is called by its address
instead: cuda-bindings 13.0 has ``cuTensorMapEncodeTiled`` write to memory that Python aligned to 16
bytes, where the driver wants 64.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, SupportsInt, cast

import torch

from .options import MAX_FRAMES

if TYPE_CHECKING:
    from types import ModuleType

#: Channels of a box: of a halo, and of a residual's group.
BOX_CHANNELS = 32

_SlotTable = ctypes.c_int * MAX_FRAMES


class DriverError(RuntimeError):
    """The driver refused."""


class ConvArguments(ctypes.Structure):
    """``Arguments`` of ``causal_conv.cu``."""

    _fields_ = (
        ("sum", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("weight_chunk_bytes", ctypes.c_uint),
        ("frames", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("out_channels", ctypes.c_int),
        ("channel_blocks", ctypes.c_int),
        ("frame_blocks", ctypes.c_int),
        ("tiles_x", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("in_slots", _SlotTable),
        ("sum_slots", _SlotTable),
        ("norm_slots", _SlotTable),
    )


class NormArguments(ctypes.Structure):
    """``Arguments`` of ``rms_norm.cu``."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("pixels", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("norm_slots", _SlotTable),
    )


@functools.lru_cache(maxsize=4096)
def slot_table(slots: tuple[int, ...]) -> ctypes.Array[ctypes.c_int]:
    """Give slots as arguments have them; not to be written to."""
    if not 0 < len(slots) <= MAX_FRAMES:
        raise ValueError(f"expected 1 to {MAX_FRAMES} frames, got {len(slots)}")
    return _SlotTable(*slots)


class TensorMap:
    """What tells TMA where a tensor's boxes lie: 128 bytes, at an address that 64 divides."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(128 + 63)
        self.address = ctypes.addressof(self._memory) + 63 & ~63


class Parameter(Protocol):
    """An argument of a kernel: something in memory."""

    @property
    def address(self) -> int:
        """Where it is."""
        ...


class Function(NamedTuple):
    """A loaded kernel.

    Attributes:
        handle: The driver's.
        shared_memory: Bytes that it is launched with.
        registers: Of a thread.
        spilled: Bytes of a thread in local memory.
    """

    handle: object
    shared_memory: int
    registers: int
    spilled: int


class Driver:
    """CUDA's driver for one device.

    Args:
        device: With an index.

    Raises:
        DriverError: cuda-bindings or the device are missing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._index = device.index or 0
        self._cuda = _bindings()
        if not torch.cuda.is_available():
            raise DriverError(f"expected {device} to be there, got a torch without CUDA devices")
        properties = torch.cuda.get_device_properties(device)
        self.multiprocessors: int = properties.multi_processor_count
        self._encode_tiled = _tensor_map_encoder(self._cuda)
        # Maps are functions of their arguments alone: one of memory that is gone does no harm.
        self._tensor_map = functools.lru_cache(maxsize=1024)(self._encode)

    def load(self, cubin: bytes, function: str, shared_memory: int) -> Function:
        """Load a kernel on this device.

        Raises:
            DriverError: It is of another architecture, or wants more than the device has.
        """
        cuda = self._cuda
        with torch.cuda.device(self.device):
            torch.cuda.synchronize(self.device)  # the device's context is this thread's now
            module = _checked(cuda.cuModuleLoadData(cubin))
            handle = _checked(cuda.cuModuleGetFunction(module, function.encode()))
        attribute = cuda.CUfunction_attribute
        limit = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(cuda.cuFuncSetAttribute(handle, limit, shared_memory))
        registers = _checked(cuda.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, handle))
        spilled = _checked(
            cuda.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle)
        )
        return Function(handle, shared_memory, int(registers), int(spilled))

    def launch(
        self,
        function: Function,
        grid: tuple[int, int],
        threads: int,
        parameters: Sequence[int],
    ) -> None:
        """Launch on torch's current stream.

        Args:
            function: What.
            grid: Blocks in x and y.
            threads: Of a block.
            parameters: Addresses of the arguments; the driver copies them before this returns.
        """
        pointers = (ctypes.c_void_p * len(parameters))(*parameters)
        # torch.cuda.current_stream makes an object, which takes as long as half of a launch.
        stream = torch._C._cuda_getCurrentRawStream(self._index)
        result = self._cuda.cuLaunchKernel(
            function.handle,
            *(grid[0], grid[1], 1),
            *(threads, 1, 1),
            function.shared_memory,
            stream,
            ctypes.addressof(pointers),
            0,
        )
        _checked(result)

    def map_at(self, address: int, shape: torch.Size, box: tuple[int, int]) -> TensorMap:
        """Give the map of frames that lie at an address.

        Args:
            address: The first frame's; they are contiguous and bfloat16.
            shape: (frames, height, width, channels).
            box: Pixels in x and y.
        """
        return self._tensor_map(address, shape, box)

    def _encode(self, address: int, shape: torch.Size, box: tuple[int, int]) -> TensorMap:
        cuda = self._cuda
        slots, height, width, channels = shape
        tensor_map = TensorMap()
        status = self._encode_tiled(
            tensor_map.address,
            int(cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
            4,
            address,
            (ctypes.c_uint64 * 4)(channels, width, height, slots),
            (ctypes.c_uint64 * 3)(
                2 * channels, 2 * channels * width, 2 * channels * width * height
            ),
            (ctypes.c_uint32 * 4)(BOX_CHANNELS, *box, 1),
            (ctypes.c_uint32 * 4)(1, 1, 1, 1),
            int(cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
            int(cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B),
            int(cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B),
            int(cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        )
        if status:
            raise DriverError(
                f"expected a tensor map of {shape}, boxes of {box}, got error {status}"
            )
        return tensor_map


def _bindings() -> ModuleType:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DriverError(f"expected cuda-bindings to be installed, got: {error}") from error
    return cast("ModuleType", driver)


class _Encoder(Protocol):
    def __call__(self, *arguments: object) -> int: ...


def _tensor_map_encoder(cuda: ModuleType) -> _Encoder:
    """Give ``cuTensorMapEncodeTiled``, which is in the driver since CUDA 12.0."""
    flags = int(cuda.CUdriverProcAddress_flags.CU_GET_PROC_ADDRESS_DEFAULT)
    found = cuda.cuGetProcAddress(b"cuTensorMapEncodeTiled", 12000, flags)
    address = int(_checked(found[:2]))
    if not address:
        raise DriverError("expected a driver of CUDA 12 or later, got one without tensor maps")
    pointer, u32, status = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
    prototype = ctypes.CFUNCTYPE(
        status, pointer, status, u32, pointer, *[pointer] * 4, *[status] * 4
    )
    return prototype(address)


def _checked(result: Sequence[SupportsInt]) -> SupportsInt:
    """Give what a call of the bindings returns beside its status.

    Raises:
        DriverError: Naming the status.
    """
    status, *values = result
    if int(status) != 0:
        raise DriverError(f"expected the driver to succeed, got {getattr(status, 'name', status)}")
    return values[0] if values else 0
