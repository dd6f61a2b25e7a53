"""All frames in one array: allocated once, filled chunk by chunk on a thread of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ._bands import Canvas
from ._caller import CallerContext, ThreadState
from ._chunks import Array, DeviceFrames, HostChunk
from ._errors import FrameCountError, UsageError
from ._threads import Worker, outcome


class Collector:
    """Gathers the chunks of one stream, host or device.

    What it makes on a device it makes in the current stream of the thread that has made it.
    """

    def __init__(self) -> None:
        self._caller = CallerContext(ThreadState.capture())
        self._worker = Worker("streamvae collect")
        self._canvas = Canvas()
        self._parts: list[Any] = []
        self._whole: Any = None
        self._filled = 0
        self._axis = 0

    async def add(self, chunk: HostChunk | DeviceFrames, frames: int | None) -> None:
        """Take one chunk; ``frames`` is how many there will be, if that is known."""
        await outcome(self._worker.submit(self._caller.run, self._add_whole, chunk, frames))

    async def result(self) -> Array | torch.Tensor:
        """Everything so far: numpy from the host, a tensor from the device."""
        return await outcome(self._worker.submit(self._caller.run, self._result))

    def _result(self) -> Array | torch.Tensor:
        whole = self._whole
        if whole is None:
            join = np.concatenate if isinstance(self._parts[0], np.ndarray) else torch.cat
            whole = join(self._parts, self._axis)
        taken = whole[(slice(None),) * self._axis + (slice(self._filled),)]
        result: Array | torch.Tensor = taken[:, 0] if self._axis == 0 else taken
        return result

    def close(self) -> None:
        """Let the thread go."""
        self._worker.close()

    def _add_whole(self, chunk: HostChunk | DeviceFrames, frames: int | None) -> None:
        whole = self._canvas.add(chunk)
        if whole is not None:
            self._add(whole, frames)

    def _add(self, chunk: HostChunk | DeviceFrames, frames: int | None) -> None:
        data = chunk.data
        self._axis = 0 if chunk.kind == "image" else 1
        self._expect_size(data)
        if frames is None:
            self._parts.append(data)
        else:
            if self._whole is None:
                shape = (*data.shape[: self._axis], frames, *data.shape[self._axis + 1 :])
                self._whole = _empty_like(data, shape)
            if self._filled + len(chunk) > frames:
                raise FrameCountError(
                    f"expected {frames} frames, got {self._filled + len(chunk)} and no end"
                )
            place = slice(self._filled, self._filled + len(chunk))
            self._whole[(slice(None),) * self._axis + (place,)] = data
        self._filled += len(chunk)

    def _expect_size(self, data: Array | torch.Tensor) -> None:
        size = data.shape[self._axis + 1 :]
        before = self._parts[0] if self._parts else self._whole
        if before is not None and size != (first := before.shape[self._axis + 1 :]):
            raise UsageError(
                f"expected pictures of one size for one array, {first}, got {size}; iterate over "
                "the frames instead"
            )


def _empty_like(data: Array | torch.Tensor, shape: tuple[int, ...]) -> Array | torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data.new_empty(shape)
    return np.empty(shape, data.dtype)
