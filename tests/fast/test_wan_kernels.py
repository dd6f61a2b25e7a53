"""The kernels' weights, options and reference: what can be told of them without a card."""

from __future__ import annotations

import ctypes
import itertools
import json
import re

import pytest
import torch
from torch.nn import functional

from streamvae._pixels import quantise
from streamvae.fast._wan.compiler import KERNELS
from streamvae.fast._wan.conv_shape import ConvShape
from streamvae.fast._wan.cubins import MANIFEST
from streamvae.fast._wan.cuda_kernels import CudaKernels
from streamvae.fast._wan.driver import ConvArguments, NormArguments
from streamvae.fast._wan.interface import Activation, Convolution, Frames
from streamvae.fast._wan.options import (
    MAX_FRAMES,
    SHARED_LIMIT,
    ConvOptions,
    Kind,
    Options,
    block_channels,
    block_frames,
)
from streamvae.fast._wan.recording import RecordingKernels
from streamvae.fast._wan.reference import ReferenceKernels
from streamvae.fast._wan.selftest import Case, SelfTestError, check
from streamvae.fast._wan.weights import pack, phase_weights, unpack
from tests.fast.emulator import EmulatedDriver
from tools.build_kernels import shipped_options, stale

CPU = torch.device("cpu")
SHIPPED = shipped_options()
#: As torch rounds float32 sums in another order.
TOLERANCE = 1e-5


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((96, 96, 3, 3, 3), 96),
        ((384, 192, 3, 3, 3), 192),
        ((384, 16, 3, 3, 3), 192),
        ((64, 32, 1, 1, 1), 64),
        ((3, 96, 3, 3, 3), 8),
        ((768, 64, 3, 1, 1), 192),
    ],
)
def test_images_hold_every_weight(shape: tuple[int, ...], block: int) -> None:
    """A weight image undone gives the weights, rounded once, and zeros where there are none."""
    weight = noise(*shape)
    rows = unpack(pack(weight, block)).flatten(0, 1)
    out, inputs = shape[:2]
    assert torch.equal(rows[:out, :inputs], weight.flatten(2).bfloat16())
    assert not rows[out:].any()
    assert not rows[:, inputs:].any()


def test_images_are_what_the_hardware_reads() -> None:
    """Each weight lies where the swizzle of its address has it, in the row of its accumulator."""
    block, inputs, taps = 64, 64, 27
    weight = noise(2 * block, inputs, 3, 3, 3)
    memory = pack(weight, block).flatten()
    rounded = weight.flatten(2).bfloat16()
    stage = taps * block * 32  # elements of a chunk
    for out, channel, tap in itertools.product((0, 1, 9, 37, 64, 127), (0, 7, 8, 31, 33), (0, 26)):
        # Channel 32g + 8q + 2j + b is held in column 8 (4g + j) + 2q + b.
        inside = out % block
        g, q, j, b = inside // 32, inside // 8 % 4, inside // 2 % 4, inside % 2
        row = 8 * (4 * g + j) + 2 * q + b
        address = row * 64 + channel % 32 * 2
        address ^= (address >> 7 & 3) << 4
        chunk = out // block * 2 + channel // 32
        found = memory[chunk * stage + tap * block * 32 + address // 2]
        assert found == rounded[out, channel, tap]


def test_phases_equal_upsampling() -> None:
    """Four 2x2 convolutions over the input are a 3x3 one over the upsampled, images included."""
    weight, bias, given = noise(64, 32, 3, 3).double(), noise(64).double(), noise(1, 32, 5, 7)
    wide = functional.interpolate(given.double(), scale_factor=2.0, mode="nearest-exact")
    right = functional.conv2d(wide, weight, bias, padding=1)
    to = Frames.of(torch.empty(1, 10, 14, 64, dtype=torch.float64))
    layer = ReferenceKernels(torch.float64).convolution(Kind.UPSAMPLE, weight, bias)
    layer(Frames.of(given.permute(0, 2, 3, 1).double()), to=to)
    assert float((to.memory.permute(0, 3, 1, 2) - right).abs().max()) <= TOLERANCE
    phases = phase_weights(weight.float())
    rows = unpack(pack(phases, 32)).reshape(2, 4, 32, 32, 4)  # two blocks, four phases each
    assert torch.equal(rows.transpose(0, 1).reshape(4, 64, 32, 4), phases.flatten(3).bfloat16())


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_reference_convolution(missing: int, *, residual: bool) -> None:
    """Frames in any slots, taps left out, residual, and the norm's activation."""
    weight, bias, gamma = noise(12, 8, 3, 3, 3), noise(12, seed=1), noise(12, seed=2)
    memory = noise(9, 5, 6, 8)
    slots = (7, 2, 4, 0, 8, 1)[missing:]
    clip = memory[list(slots)].permute(3, 0, 1, 2)[None]
    used = weight[:, :, missing:]
    right = functional.conv3d(clip, used, bias, padding=(0, 1, 1))[0].permute(1, 2, 3, 0)
    added = noise(4, 5, 6, 12, seed=3) if residual else None
    right = right if added is None else right + added
    normed = functional.silu(functional.normalize(right, dim=-1) * 12**0.5 * gamma)
    sums, norms = torch.full((6, 5, 6, 12), torch.nan), torch.full((6, 5, 6, 12), torch.nan)
    layer = ReferenceKernels().convolution(Kind.PLAIN, weight, bias)
    layer(
        Frames(memory, slots),
        to=Frames(sums, (5, 0, 3, 1)),
        activation=Activation(gamma, Frames(norms, (2, 4, 1, 0))),
        residual=added,
    )
    assert float((sums[[5, 0, 3, 1]] - right).abs().max()) <= TOLERANCE
    assert float((norms[[2, 4, 1, 0]] - normed).abs().max()) <= TOLERANCE
    assert sums[[2, 4]].isnan().all()
    assert norms[[3, 5]].isnan().all()


def test_reference_doubles_time() -> None:
    """The second half of the channels is the later frame of two."""
    weight, bias, memory = noise(16, 8, 3, 1, 1), noise(16, seed=1), noise(4, 3, 5, 8)
    to = Frames.of(torch.empty(4, 3, 5, 8))
    ReferenceKernels().convolution(Kind.DOUBLE_TIME, weight, bias)(Frames.of(memory), to=to)
    right = functional.conv3d(memory.permute(3, 0, 1, 2)[None], weight, bias)[0]
    for frame in range(4):
        half = right[8 * (frame % 2) : 8 * (frame % 2) + 8, frame // 2]
        assert float((to.memory[frame] - half.permute(1, 2, 0)).abs().max()) <= TOLERANCE


def test_reference_head() -> None:
    """Pixels are not clamped; levels are those of pixels rounded and clamped."""
    weight, bias, memory = noise(3, 8, 3, 3, 3), noise(3, seed=1), noise(3, 4, 5, 8)
    pixels, levels = torch.empty(1, 4, 5, 3), torch.empty(1, 4, 5, 3, dtype=torch.uint8)
    finite = torch.tensor(data=True)
    ReferenceKernels().head(weight, bias)(Frames.of(memory), pixels)
    ReferenceKernels().head(weight, bias)(Frames.of(memory), levels, finite)
    assert finite
    right = functional.conv3d(memory.permute(3, 0, 1, 2)[None], weight, bias, padding=(0, 1, 1))
    right = right[0].permute(1, 2, 3, 0)
    assert float((pixels - right).abs().max()) <= TOLERANCE
    assert torch.equal(levels, quantise(right.clamp(-1, 1)))


@pytest.mark.parametrize("emulated", [False, True])
def test_levels_of_no_numbers(*, emulated: bool) -> None:
    """A NaN, which no level shows, is told of; infinity is only bright."""
    kernels = CudaKernels(CPU, EmulatedDriver(SHIPPED)) if emulated else ReferenceKernels()
    head = kernels.head(noise(3, 96, 3, 3, 3).bfloat16(), noise(3).bfloat16())
    memory = noise(1, 9, 17, 96).bfloat16()
    levels = torch.empty(1, 9, 17, 3, dtype=torch.uint8)
    for value, told in ((1.0, True), (float("inf"), True), (float("nan"), False)):
        finite = torch.tensor(data=True)
        memory[0, 4, 7] = value
        if value == float("inf"):  # of one sign, or sums of both would be NaN
            memory[0, 4, 7, 1:] = 1.0
        head(Frames.of(memory), levels, finite)
        assert bool(finite) is told


@pytest.mark.parametrize("options", SHIPPED.values(), ids=SHIPPED.keys())
def test_self_test_passes(options: Options) -> None:
    """The reference passes each specialisation's self-test, which launches that and no other."""
    check(ReferenceKernels(), CPU, options, (3, 5))
    recording = RecordingKernels()
    Case(options, CPU, (3, 5)).run(recording, torch.bfloat16)
    assert list(recording.options) == [options]


@pytest.mark.parametrize("options", SHIPPED.values(), ids=SHIPPED.keys())
def test_launches_are_right(options: Options) -> None:
    """What a kernel finds at the addresses of its arguments gives every element, all taps."""
    check(CudaKernels(CPU, EmulatedDriver(SHIPPED)), CPU, options, (9, 17))


class _OneWrong(ReferenceKernels):
    """Writes one element beside what is right, or one where nothing should be."""

    def __init__(self, *, stray: bool) -> None:
        super().__init__()
        self.stray = stray

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        right = super().convolution(kind, weight, bias)

        def wrong(source, *, to=None, activation=None, residual=None):
            right(source, to=to, activation=activation, residual=residual)
            memory, slots = to or activation.to
            nobodys = next(slot for slot in range(memory.shape[0]) if slot not in slots)
            element = memory[nobodys if self.stray else slots[-1], -1, -1]
            element[-1] = 0 if self.stray else element[-1] + 0.25

        return wrong


@pytest.mark.parametrize("stray", [False, True])
@pytest.mark.parametrize("write_norm", [False, True])
def test_self_test_finds_one_element(*, stray: bool, write_norm: bool) -> None:
    """One wrong element of all fails it, and so does one that should not have been written."""
    options = ConvOptions(Kind.PLAIN, 32, 32, 1, (3, 3, 3), False, not write_norm, write_norm)
    with pytest.raises(SelfTestError, match="got 1 of"):
        check(_OneWrong(stray=stray), CPU, options)


def test_options_fit() -> None:
    """Every specialisation's rings fit into shared memory and hold what is in use at once."""
    for options in SHIPPED.values():
        if not isinstance(options, ConvOptions):
            continue
        halos, stages, taps = options.rings
        assert options.shared_memory <= SHARED_LIMIT
        assert halos >= options.block_frames + options.taps[0] - 1
        assert stages >= 2
        assert options.taps[1] * options.taps[2] % taps == 0


def test_blocks_divide() -> None:
    """Blocks divide channels and frames, for any that a decoder may have."""
    for channels in range(32, 1057, 32):
        block = block_channels(channels)
        assert channels % block == 0
        for frames in range(1, MAX_FRAMES - 2):
            count = block_frames(block, frames, 3)
            assert frames % count == 0
            assert count * block // 2 <= 192


def test_calls_that_do_not_fit() -> None:
    """Frames that a layer cannot read are refused, before anything is launched."""
    shape = ConvShape.of(Kind.PLAIN, torch.empty(64, 32, 3, 3, 3))
    flags = {"residual": False, "write_sum": True, "write_norm": False}
    for frames, channels in ((5, 32), (1, 32), (4, 64)):
        source = Frames.of(torch.empty(frames, 1, 1, channels))
        with pytest.raises(ValueError, match="expected 2 to 4 frames of 32 channels"):
            shape.options(source, 2, **flags)


@pytest.mark.parametrize(
    ("source", "structure"), [("causal_conv.cu", ConvArguments), ("rms_norm.cu", NormArguments)]
)
def test_arguments_are_the_kernels_own(source: str, structure: type[ctypes.Structure]) -> None:
    """Arguments have the fields of the kernel's structure, in its order, in the same types."""
    text = (KERNELS / source).read_text()
    body = re.search(r"struct Arguments \{\n(.*?)\n\};", text, re.DOTALL).group(1)
    body = re.sub(r"//.*", "", body)
    found = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.fullmatch(r"((?:const )?\w+\*?) (.*)", declaration).groups()
        ctype = {"u32": ctypes.c_uint, "int": ctypes.c_int, "float": ctypes.c_float}.get(kind)
        for name in names.split(", "):
            table = name.endswith("[kMaxFrames]")
            wanted = ctypes.c_int * MAX_FRAMES if table else ctype or ctypes.c_void_p
            found.append((name.removesuffix("[kMaxFrames]"), wanted))
    assert found == list(structure._fields_)
    assert f"kMaxFrames = {MAX_FRAMES};" in text


def test_cubins_are_of_their_sources() -> None:
    """What is shipped was compiled from the sources beside it, for decoders as released."""
    assert stale() == []
    assert len(json.loads(MANIFEST.read_text())["cubins"]) == len(SHIPPED)


def test_prepared_calls() -> None:
    """A layer that is called again, with other frames, sizes, sums or residuals, is right again."""
    weight, bias = noise(96, 96, 3, 3, 3).bfloat16() / 30, noise(96).bfloat16()
    gamma = noise(96, seed=1)
    mine = CudaKernels(CPU, EmulatedDriver(SHIPPED)).convolution(Kind.PLAIN, weight, bias)
    right = ReferenceKernels().convolution(Kind.PLAIN, weight, bias)
    calls = [
        (size, slots, residual)
        for residual in (False, True)
        for size in ((3, 5), (9, 17))
        for slots in ((2,), (0,), (1,))
    ]
    for size, slots, residual in calls:
        memory, added = noise(3, *size, 96).bfloat16(), noise(1, *size, 96).bfloat16()
        given, expected = (torch.zeros(3, *size, 96, dtype=torch.bfloat16) for _ in range(2))
        for layer, written in ((mine, given), (right, expected)):
            layer(
                Frames(memory, slots),
                activation=Activation(gamma, Frames(written, slots)),
                residual=added if residual else None,
            )
        assert float((given.float() - expected.float()).abs().max()) <= 2**-6
        assert given[slots[0]].any()
