"""Calls of CUDA's driver that torch does not offer: streams of one's own, modes of capture.

https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__STREAM.html
"""

from __future__ import annotations

import ctypes
import functools
import os

import torch

from streamvae._errors import DeviceError
from streamvae._locks import fork_safe_lock

#: ``CU_STREAM_NON_BLOCKING``: it does not wait for the legacy default stream, nor that for it.
_NON_BLOCKING = 1
#: ``CU_STREAM_CAPTURE_MODE_RELAXED``: calls of this thread disturb nobody's capture.
RELAXED = 2

#: By process, device and name. Never destroyed: the caching allocator keeps their handles.
_streams: dict[tuple[int, int, str], torch.cuda.ExternalStream] = {}
_lock = fork_safe_lock()


@functools.cache
def _library() -> ctypes.PyDLL:
    # PyDLL: these calls take less than a microsecond; giving the GIL up and waiting for it more.
    return ctypes.PyDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def _check(name: str, status: int) -> None:
    if status:
        raise DeviceError(f"expected {name} to succeed, got CUDA error {status}")


def own_stream(device: torch.device, name: str) -> torch.cuda.ExternalStream:
    """A stream that nobody else is given; the same one for each name, device and process.

    ``torch.cuda.Stream()`` hands out 32 streams in turn, so that somebody's thirty-first is one of
    those that were handed out before.

    Args:
        device: A CUDA device, with its index.
        name: What it is for.

    Raises:
        DeviceError: The driver has none.
    """
    key = (os.getpid(), device.index or 0, name)
    with _lock:
        if key not in _streams:
            with torch.cuda.device(device):
                torch.cuda.mem_get_info(device)  # makes the context current in this thread
                handle = ctypes.c_void_p()
                _check(
                    "cuStreamCreate",
                    _library().cuStreamCreate(ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING)),
                )
            _streams[key] = torch.cuda.ExternalStream(handle.value, device)  # type: ignore[no-untyped-call]
        return _streams[key]


def exchange_capture_mode(mode: int) -> int:
    """Set how far this thread's calls respect captures of others; give what it was before.

    While somebody captures in the default mode, a mere ``cudaEventQuery`` of any other thread
    fails and ends that capture, unless the thread is in `RELAXED` mode.
    """
    value = ctypes.c_int(mode)
    _library().cuThreadExchangeStreamCaptureMode(ctypes.byref(value))
    return value.value


def begin_capture(stream: int) -> None:
    """Begin a capture that torch knows nothing of.

    Args:
        stream: Handle of a CUDA stream.

    Raises:
        DeviceError: It cannot be begun.
    """
    begin = _library().cuStreamBeginCapture_v2
    _check("cuStreamBeginCapture", begin(ctypes.c_void_p(stream), ctypes.c_int(RELAXED)))


def discard_capture(stream: int) -> None:
    """End whatever capture is under way in a stream and drop its graph; none under way is fine."""
    graph = ctypes.c_void_p()
    _library().cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
    if graph.value is not None:
        _library().cuGraphDestroy(graph)
