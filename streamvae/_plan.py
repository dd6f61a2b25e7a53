"""The plan of a stream: how its latents are cut, what each chunk gives, and how much memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from ._locks import fork_safe_lock
from ._pixels import Kind, Output

#: Buffers that a device copies into.
_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What came of decoding latents that are not there. Memory in bytes, weights not counted.

    Attributes:
        frames: Frames that each chunk gives.
        drained: Frames that come after the last chunk.
        state: What the decoder keeps between chunks, at its largest.
        launch: What one launch holds at once at most: state, what it computes with, its pixels.
        chunk: Pixels of the largest chunk (band), as they leave the device.
        bands: Bands that a picture comes in at most; 1 if whole.
    """

    frames: tuple[int, ...]
    drained: int
    state: int
    launch: int
    chunk: int
    bands: int = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """How latents will be decoded, foretold.

    ``chunks`` and ``total`` are known at once. The rest is found out when it is first asked for, by
    a rehearsal: the real decoder walks latents that are not there, with weights that are not there
    either, so that nothing is computed, and no memory taken on the device. That takes a second or
    two for a large model: ask off the loop (``await asyncio.to_thread(str, plan)``). The rehearsal
    honours tiling and slicing as the autoencoder has them at that moment.

    Memory counts tensors, not what libraries take for themselves (workspaces, rounding of
    allocations), and not the weights. It is None where it cannot be foretold: a codec or a
    transform of your own, layerwise casting or group offloading, an autoencoder that is gone.

    Attributes:
        family: Class name of the autoencoder.
        kind: What it makes.
        shape: The latents'.
        mode: ``"exact"`` or ``"fast"``.
        output: What consumers get.
        device: Where.
        queue_size: Chunks that fit between two stages.
        chunks: Latents in each chunk.
        total: Frames (items, samples) of all chunks; None where it is not known beforehand.
    """

    family: str
    kind: Kind
    shape: tuple[int, ...]
    mode: str
    output: Output
    device: str
    queue_size: int
    chunks: tuple[int, ...]
    total: int | None
    _count: Callable[[], tuple[int, ...] | None] = field(repr=False)
    _rehearse: Callable[[], Rehearsed | None] = field(repr=False)
    _counted: list[tuple[int, ...] | None] = field(default_factory=list, init=False, repr=False)
    _found: list[Rehearsed | None] = field(default_factory=list, init=False, repr=False)
    _lock: threading.RLock = field(default_factory=fork_safe_lock, init=False, repr=False)

    @property
    def frames(self) -> tuple[int, ...] | None:
        """Frames (items, samples) that each chunk gives.

        Told without a rehearsal where none are held back.
        """
        counted = self._without_rehearsal()
        if counted is not None:
            return counted
        found = self._rehearsed()
        return None if found is None else found.frames

    @property
    def drained(self) -> int | None:
        """Frames (samples) that the decoder holds back and gives after the last chunk."""
        if self._without_rehearsal() is not None:
            return 0
        found = self._rehearsed()
        return None if found is None else found.drained

    @property
    def state_bytes(self) -> int | None:
        """What the decoder keeps between chunks, at its largest for this length."""
        found = self._rehearsed()
        return None if found is None else found.state

    @property
    def launch_bytes(self) -> int | None:
        """What decoding one chunk takes at most, the decoder's state and its pixels included."""
        found = self._rehearsed()
        return None if found is None else found.launch

    @property
    def chunk_bytes(self) -> int | None:
        """Pixels of the largest chunk, as they leave the device; of a band where there are any."""
        found = self._rehearsed()
        return None if found is None else found.chunk

    @property
    def device_bytes(self) -> int | None:
        """Peak memory on the device: a launch, and the chunks before it that are not gone yet.

        Those are one being copied and a full queue; where frames stay on the device, also the
        consumer's chunk and the queue before it.
        """
        found = self._rehearsed()
        if found is None:
            return None
        waiting = self.queue_size + 1
        return found.launch + found.chunk * (2 * waiting if self.output == "device" else waiting)

    @property
    def host_bytes(self) -> int | None:
        """Peak memory on the host: two queues, a chunk in each stage around them, two slots.

        Where pictures come in bands those are the chunks; a picture that is put together of them,
        for a sink or a consumer that wants it whole, is not counted.

        On the host's own processor there are no slots, and `device_bytes` are the host's too.
        """
        found = self._rehearsed()
        if found is None:
            return None
        if self.output == "device":
            return 0
        waiting = min(2 * self.queue_size + 3, len(self.chunks) * found.bands + 1)
        # Page-locked memory comes in powers of two; two flags travel with the pixels.
        slot = 1 << (found.chunk + 1).bit_length() if self.device.startswith("cuda") else 0
        return found.chunk * waiting + _SLOTS * slot

    @property
    def memory(self) -> tuple[str, ...]:
        """What it takes, for people, a line each."""
        device = f"on the device, above the weights: {_bytes(self.device_bytes)} at most"
        host = f"on the host, in chunks: {_bytes(self.host_bytes)} at most"
        state = f"decoder state: {_bytes(self.state_bytes)}"
        return (state, device) if self.output == "device" else (state, device, host)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        unit = {"video": "frame", "image": "picture", "sound": "sample"}[self.kind]
        given = "an unknown number of" if self.total is None else f"{self.total}"
        yield (
            f"{self.family} on {self.device}, latents {' x '.join(map(str, self.shape))}: "
            f"{given} {unit}s"
        )
        yield f"chunks: {_runs(self.chunks, 'latent')}"
        if self.frames is None or self.drained is None:
            yield f"{unit}s of each: unknown"
        else:
            late = f", then {self.drained} held back" if self.drained else ""
            yield f"{unit}s of each: {_runs(self.frames)}{late}"
        yield from self.memory

    def _without_rehearsal(self) -> tuple[int, ...] | None:
        with self._lock:
            if not self._counted:
                self._counted.append(self._count())
            return self._counted[0]

    def _rehearsed(self) -> Rehearsed | None:
        with self._lock:
            if not self._found:
                self._found.append(self._rehearse())
            return self._found[0]


def _runs(counts: tuple[int, ...], unit: str = "") -> str:
    """``1, 20 x 4``, for ``(1, 4, 4, ...)``."""
    runs = [(len(list(same)), count) for count, same in groupby(counts)]
    said = [f"{many} x {count}" if many > 1 else f"{count}" for many, count in runs]
    if len(said) > 8:
        said = [*said[:6], "...", said[-1]]
    return f"{len(counts)} (of {', '.join(said)} {unit}s)" if unit else ", ".join(said)


def _bytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
