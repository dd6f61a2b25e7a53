"""Compile-time options of the kernels: what a cubin is specialised for, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

#: Bytes of shared memory that a block of sm_90 may have.
SHARED_LIMIT = 232_448
#: Bytes of a halo's place: 18 x 10 pixels of 32 channels, rounded up to the swizzle's 512.
_HALO_BYTES = 11_776
#: Accumulators of a thread, of all frames of a block.
_SUMS = 192
#: Channels of which one block holds all, and so can norm them.
FUSED_CHANNELS = 256
#: Frames of a chunk, and of history: slots in the arguments of a kernel.
MAX_FRAMES = 64

#: (channels of a block, taps a chunk of channels): places for halos, places for weights, and taps
#: in each of these. Measured on one H200 at 720x1280; others are computed.
_TUNED = {
    (256, 27): (6, 3, 3),
    (192, 27): (6, 4, 3),
    (192, 4): (8, 5, 2),
    (192, 3): (8, 10, 1),
    (192, 1): (8, 10, 1),
    (128, 27): (7, 5, 3),
    (96, 27): (9, 6, 3),
    (96, 4): (9, 18, 1),
    (8, 27): (16, 18, 3),
}


class Kind(IntEnum):
    """What a convolution does besides summing; as in ``causal_conv.cu``."""

    PLAIN = 0
    #: 3x3 after nearest 2x upsampling.
    UPSAMPLE = 1
    #: Two frames for each: the second half of the channels is the later one's.
    DOUBLE_TIME = 2
    #: Three channels, clamped.
    HEAD = 3


@dataclass(frozen=True, slots=True)
class ConvOptions:
    """One specialisation of ``causal_conv.cu``.

    Attributes:
        kind: See `Kind`.
        in_channels: A multiple of 32.
        block_channels: Output channels of a block: a multiple of 32, or 8 for the head.
        block_frames: Output frames of a block.
        taps: In time, y and x.
        residual: Whether a residual is added.
        write_sum: Whether the sum is written; for the head, bfloat16 pixels.
        write_norm: Whether the activated norm is written; for the head, uint8 pixels.
    """

    kind: Kind
    in_channels: int
    block_channels: int
    block_frames: int
    taps: tuple[int, int, int]
    residual: bool = False
    write_sum: bool = False
    write_norm: bool = False

    #: The function in the module, and its source.
    function = "causal_conv"

    @property
    def name(self) -> str:
        """Unique, and fit for a file."""
        time, height, width = self.taps
        flags = ("residual", "write_sum", "write_norm")
        parts = [
            self.function,
            self.kind.name.lower(),
            f"{self.in_channels}to{self.block_channels}x{self.block_frames}",
            f"taps{time}{height}{width}",
            *(flag.removeprefix("write_") for flag in flags if getattr(self, flag)),
        ]
        return "_".join(parts)

    @property
    def rings(self) -> tuple[int, int, int]:
        """Places for halos, places for weights, taps in each of these.

        Fewer taps in time than a tuned setting has need no more places than it.
        """
        time, height, width = self.taps
        plane = height * width
        tuned = _TUNED.get((self.block_channels, time * plane)) or (
            _TUNED.get((self.block_channels, 3 * plane)) if plane == 9 else None
        )
        halos, stages, each = tuned or (0, 0, width if plane == 9 else 1)
        least = self.block_frames + time - 1 + 2
        if tuned is not None and halos >= least:
            return halos, stages, each
        halos = max(least, 8)
        stage = each * self.block_channels * 64
        stages = min(18, (SHARED_LIMIT - self._fixed(halos, 18)) // stage)
        return halos, stages, each

    @property
    def shared_memory(self) -> int:
        """Bytes of dynamic shared memory, as ``Shared`` in the source lays it out."""
        halos, stages, each = self.rings
        return self._fixed(halos, stages) + stages * each * self.block_channels * 64

    def _fixed(self, halos: int, stages: int) -> int:
        return halos * _HALO_BYTES + 16 * self.block_channels + 16 * (halos + stages)

    def defines(self) -> dict[str, int]:
        """Macros that the source expects."""
        time, height, width = self.taps
        halos, stages, each = self.rings
        return {
            "KIND": int(self.kind),
            "IN_CHANNELS": self.in_channels,
            "BLOCK_CHANNELS": self.block_channels,
            "BLOCK_FRAMES": self.block_frames,
            "TAPS_T": time,
            "TAPS_Y": height,
            "TAPS_X": width,
            "RESIDUAL": int(self.residual),
            "WRITE_SUM": int(self.write_sum),
            "WRITE_NORM": int(self.write_norm),
            "TAPS_PER_STAGE": each,
            "HALOS": halos,
            "WEIGHT_STAGES": stages,
        }


@dataclass(frozen=True, slots=True)
class NormOptions:
    """One specialisation of ``rms_norm.cu``.

    Attributes:
        channels: A multiple of 4.
        silu: Whether SiLU follows.
        share: Channels of a shortcut, which is added first, for each of these; 0: there is none.
    """

    channels: int
    silu: bool
    share: int = 0

    #: The function in the module, and its source.
    function = "rms_norm"

    @property
    def name(self) -> str:
        """Unique, and fit for a file."""
        parts = [self.function, str(self.channels), *["silu"] * self.silu]
        return "_".join((*parts, *[f"share{self.share}"] * bool(self.share)))

    @property
    def shared_memory(self) -> int:
        """No dynamic shared memory."""
        return 0

    def defines(self) -> dict[str, int]:
        """Macros that the source expects."""
        return {"CHANNELS": self.channels, "SILU": int(self.silu), "SHARE": self.share}


#: What a kernel is specialised for.
Options = ConvOptions | NormOptions


def block_channels(channels: int) -> int:
    """Output channels of a block, for a convolution with as many in all: the most that divide.

    Blocks of 192 are the best of those that do not hold all channels: two frames fit.

    Args:
        channels: A multiple of 32.
    """
    if channels <= FUSED_CHANNELS:
        return channels
    if channels % 192 == 0:
        return 192
    return max(size for size in range(32, FUSED_CHANNELS + 1, 32) if channels % size == 0)


def block_frames(channels: int, frames: int, time_taps: int) -> int:
    """Output frames of a block: a power of two that divides ``frames``, as many as fit.

    Args:
        channels: Output channels of a block.
        frames: Output frames (of `Kind.DOUBLE_TIME`: half of them).
        time_taps: Whose halos have to fit too.
    """
    size = 4
    while size > 1 and (
        frames % size
        or size * channels // 2 > _SUMS
        or (channels == FUSED_CHANNELS and time_taps > 1)
    ):
        size //= 2
    return size
