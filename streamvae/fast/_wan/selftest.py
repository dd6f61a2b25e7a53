"""Every element of a kernel's output against float64, in places where mistakes would show.

Frames lie in slots in no order; what is not to be read, and what is not to be written, is NaN.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

import torch

from streamvae._pixels import quantise

from .cuda_kernels import CudaKernels
from .interface import Activation, Frames, Kernels
from .options import ConvOptions, Kind, NormOptions, Options
from .reference import ReferenceKernels

#: Height and width: two tiles by two, all cut off.
SIZE = (11, 19)
#: Blocks: few, so that each takes several tiles.
BLOCKS = 3
#: What an element may differ by, relative and absolute. Rounding to bfloat16 gives 2^-9 of it; the
#: absolute part is that of the approximate tanh where SiLU is about to vanish.
_RELATIVE, _ABSOLUTE = 2**-8, 2**-8
#: Levels of 255 that a pixel may differ by, if its sum is rounded to the next bfloat16.
_LEVELS = 1


class SelfTestError(RuntimeError):
    """A kernel gives wrong elements on this card."""


class Outputs(NamedTuple):
    """What a case wrote, by name; whole memories, untouched slots included."""

    tensors: dict[str, torch.Tensor]

    def equal(self, other: Outputs) -> bool:
        """Whether all bits are equal; NaN, which is what was not written, equals itself."""
        return all(
            torch.equal(mine.view(torch.uint8), other.tensors[name].view(torch.uint8))
            for name, mine in self.tensors.items()
        )


class Case:
    """Random inputs for one specialisation.

    Args:
        options: Of the kernel.
        device: Where.
        size: Height and width.
        seed: Of all that is random.
    """

    def __init__(
        self,
        options: Options,
        device: torch.device,
        size: tuple[int, int] = SIZE,
        seed: int = 0,
    ) -> None:
        self.options = options
        self.size = size
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        #: Odd, so that blocks of one frame are chosen; else two blocks of frames or three.
        self.frames = 3
        if isinstance(options, NormOptions):
            self._source = self._noise(self.frames, *size, options.channels)
            self._gamma = self._noise(options.channels).float()
            return
        if options.block_frames > 1:
            self.frames = {2: 6, 4: 8}[options.block_frames]
        self._convolution(options)

    def run(self, kernels: Kernels, dtype: torch.dtype, *, in_place: bool = False) -> Outputs:
        """Launch it.

        Args:
            kernels: Whose.
            dtype: Of outputs; pixels are uint8 if those are what is written.
            in_place: Write sums over the residual.
        """
        options = self.options
        if isinstance(options, NormOptions):
            normed = self._poisoned(dtype, self.frames, options.channels, self.size)
            kernels.norm(self._gamma)(self._source, normed, silu=options.silu)
            return Outputs({"norm": normed.memory})
        if options.kind is Kind.HEAD:
            return self._run_head(kernels, dtype)
        layer = kernels.convolution(options.kind, self._weight, self._bias)
        written = self.frames * (2 if options.kind is Kind.DOUBLE_TIME else 1)
        scale = 2 if options.kind is Kind.UPSAMPLE else 1
        size = (self.size[0] * scale, self.size[1] * scale)
        outputs = {}
        to: Frames | None = None
        activation: Activation | None = None
        residual = self._residual
        if in_place and residual is not None:
            residual = residual.to(dtype, copy=True)
            to = Frames.of(residual)
        elif options.write_sum:
            to = self._poisoned(dtype, written, self._channels, size)
        if to is not None:
            outputs["sum"] = to.memory
        if options.write_norm:
            activation = Activation(
                self._gamma, self._poisoned(dtype, written, self._channels, size)
            )
            outputs["norm"] = activation.to.memory
        layer(self._source_frames, to=to, activation=activation, residual=residual)
        return Outputs(outputs)

    def _run_head(self, kernels: Kernels, dtype: torch.dtype) -> Outputs:
        assert isinstance(self.options, ConvOptions)  # noqa: S101  # the caller has seen it
        quantised = self.options.write_norm and dtype == torch.bfloat16
        pixels = torch.empty(
            self.frames,
            *self.size,
            3,
            dtype=torch.uint8 if quantised else dtype,
            device=self._device,
        )
        finite = torch.ones((), dtype=torch.bool, device=self._device)
        kernels.head(self._weight, self._bias)(self._source_frames, pixels, finite)
        name = "levels" if self.options.write_norm else "pixels"
        return Outputs({name: pixels, "finite": finite})

    def _convolution(self, options: ConvOptions) -> None:
        block, taps = options.block_channels, options.taps
        # Two blocks of channels, where one need not have them all.
        self._channels = 384 if block == 192 and not options.write_norm else block
        rows = {Kind.HEAD: 3, Kind.DOUBLE_TIME: 2 * self._channels}.get(
            options.kind, self._channels
        )
        kernel = taps if taps[1:] != (3, 3) else (3, 3, 3)
        if options.kind is Kind.UPSAMPLE:
            kernel = (3, 3)  # type: ignore[assignment]
        fan = options.in_channels * taps[0] * taps[1] * taps[2]
        self._weight = self._noise(rows, options.in_channels, *kernel) / fan**0.5
        self._bias = self._noise(rows)
        self._gamma = self._noise(self._channels).float()
        self._source_frames = self._poisoned(
            torch.bfloat16, self.frames + taps[0] - 1, options.in_channels, self.size
        )
        for slot in self._source_frames.slots:
            self._source_frames.memory[slot] = self._noise(*self.size, options.in_channels)
        shape = (self.frames, *self.size, self._channels)
        self._residual = self._noise(*shape) if options.residual else None

    def _noise(self, *shape: int) -> torch.Tensor:
        noise = torch.randn(shape, generator=self._generator, device=self._device)
        return noise.bfloat16()

    def _poisoned(
        self, dtype: torch.dtype, frames: int, channels: int, size: tuple[int, int]
    ) -> Frames:
        """Frames in slots in no order, two of them nobody's; all NaN."""
        memory = torch.full(
            (frames + 2, *size, channels), float("nan"), dtype=dtype, device=self._device
        )
        state = random.Random(frames)  # noqa: S311  # the same in every run
        return Frames(memory, tuple(state.sample(range(frames + 2), frames)))


def check(
    kernels: Kernels, device: torch.device, options: Options, size: tuple[int, int] = SIZE
) -> Outputs:
    """Compare every element of one specialisation's output.

    Args:
        kernels: Those to be checked.
        device: Theirs.
        options: The specialisation.
        size: Height and width.

    Returns:
        What it wrote.

    Raises:
        SelfTestError: Some are wrong, or written where nothing should be.
    """
    case = Case(options, device, size)
    if isinstance(options, ConvOptions) and options.residual and options.write_sum:
        _compare(case, kernels, in_place=True)
    return _compare(case, kernels, in_place=False)


def _compare(case: Case, kernels: Kernels, *, in_place: bool) -> Outputs:
    given = case.run(kernels, torch.bfloat16, in_place=in_place)
    expected = case.run(ReferenceKernels(torch.float64), torch.float64, in_place=in_place)
    for name, right in expected.tensors.items():
        mine, right = given.tensors[name].double(), right.double()  # noqa: PLW2901
        if name == "levels":
            right = quantise(right.clamp(-1, 1).bfloat16()).double()  # noqa: PLW2901
            allowed = torch.full_like(right, _LEVELS)
        else:
            allowed = right.abs() * _RELATIVE + _ABSOLUTE
        # NaN where both are: what nobody was to write.
        wrong = ((mine - right).abs() > allowed) | (mine.isnan() != right.isnan())
        count = int(wrong.sum())
        if count:
            worst = float((mine - right).abs().nan_to_num(float("inf")).max())
            raise SelfTestError(
                f"expected {case.options.name} to be right, got {count} of {wrong.numel()} "
                f"elements of its {name} wrong, by up to {worst:.3g}"
            )
    return given


def check_all(kernels: CudaKernels, every: Iterable[Options]) -> None:
    """Check each specialisation, with few blocks that take several tiles.

    Raises:
        SelfTestError: See `check`.
    """
    few = kernels.with_max_blocks(BLOCKS)
    for options in every:
        check(few, kernels.device, options)
