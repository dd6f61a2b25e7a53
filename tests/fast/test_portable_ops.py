"""Operations between convolutions: the self-test sees mistakes, and Triton's have none."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from streamvae.fast._portable.choice import kernels_for
from streamvae.fast._portable.interface import Moments, Sums
from streamvae.fast._portable.selftest import (
    GROUP_NORM,
    RMS_NORM,
    SelfTestError,
    Variant,
    check,
    whole,
)
from streamvae.fast._portable.torch_ops import TorchOps
from streamvae.fast._wan.options import Kind

CPU = torch.device("cpu")
EVERY = tuple(dict.fromkeys((*RMS_NORM, *GROUP_NORM)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 5, 32])
def test_torchs_operations_are_right(dtype: torch.dtype, channels: int) -> None:
    """Those in float32 are those in float64, rounded."""
    check(TorchOps(), CPU, dtype, channels, EVERY)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_tritons_operations_are_right() -> None:
    """Every element that Triton's kernels write is right, in its interpreter."""
    program = Path(__file__).with_name("interpreted_triton.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class OneWrong(TorchOps):
    """Operations of which one writes one wrong element."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self._operation = operation

    def rms_norm(self, sums, **options):
        super().rms_norm(sums, **options)
        self._spoil("rms_norm", options.get("to_norm"))
        self._spoil("sums", options.get("to_sums"))

    def moments(self, sums, **options):
        found = super().moments(sums, **options)
        self._spoil("moments", found.mean)
        return found

    def scale_shift(self, sums, scale, shift, **options):
        super().scale_shift(sums, scale, shift, **options)
        self._spoil("scale_shift", options["to"])

    def add_taps(self, planes, bias, pixels):
        super().add_taps(planes, bias, pixels)
        self._spoil("add_taps", pixels)

    def _spoil(self, operation, written):
        if operation == self._operation and written is not None:
            written.view(-1)[-1] += 0.1


@pytest.mark.parametrize("operation", ["rms_norm", "sums", "moments", "scale_shift", "add_taps"])
def test_one_wrong_element_is_seen(operation: str) -> None:
    """A single wrong element, the last one, fails the self-test."""
    with pytest.raises(SelfTestError, match="got 1 of"):
        check(OneWrong(operation), CPU, torch.float32, 8, EVERY)


def test_what_is_left_out_is_seen() -> None:
    """Elements that were not written are wrong too."""

    class Lazy(TorchOps):
        def rms_norm(self, sums, **options):
            pass

    with pytest.raises(SelfTestError, match="of its norms wrong"):
        check(Lazy(), CPU, torch.float32, 8, [Variant("rms_norm", norm=True)])


@pytest.mark.parametrize("kind", [Kind.PLAIN, Kind.UPSAMPLE, Kind.DOUBLE_TIME])
def test_arrangements(kind: Kind) -> None:
    """Each pixel is taken from where its arrangement has it."""
    shape = {Kind.UPSAMPLE: (2, 2, 3, 4), Kind.DOUBLE_TIME: (1, 4, 6, 2)}.get(kind, (2, 4, 6, 1))
    products = torch.arange(48.0).view(shape)
    sums = Sums(products, kind)
    assert sums.shape == (2, 4, 6, 1)
    written = torch.empty(2, 4, 6, 1)
    TorchOps().rms_norm(sums, to_sums=written)
    if kind is Kind.UPSAMPLE:
        expected = products.unflatten(3, (2, 2, 1)).permute(0, 1, 3, 2, 4, 5).reshape(2, 4, 6, 1)
    elif kind is Kind.DOUBLE_TIME:
        expected = products.unflatten(3, (2, 1)).permute(0, 3, 1, 2, 4).reshape(2, 4, 6, 1)
    else:
        expected = products
    assert torch.equal(written, expected)


def test_moments_of_parts() -> None:
    """Parts of different sizes are put together as if they had been one."""
    given = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)) + 1000
    parts = given.split([64, 36], 1)
    count = torch.tensor([64.0, 36.0])
    means = torch.stack([part.mean(1) for part in parts], 1)
    squares = torch.stack([part.var(1, correction=0) * part.shape[1] for part in parts], 1)
    mean, variance = whole(Moments(count, means, squares))
    assert torch.allclose(mean, given.mean(1))
    assert torch.allclose(variance, given.var(1, correction=0), rtol=1e-4)


def test_a_cpu_has_torchs() -> None:
    """On a CPU there is nothing else to choose, and nothing to say of it."""
    kernels, why = kernels_for(CPU, torch.float32, {8}, RMS_NORM)
    assert isinstance(kernels.ops, TorchOps)
    assert why == ""
    assert kernels_for(CPU, torch.float32, {16}, GROUP_NORM)[0] is kernels
