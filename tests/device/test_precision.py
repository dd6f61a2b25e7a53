"""Errors of fast mode against float32, chunks by step and joules, on a card."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from streamvae import verify
from streamvae.report._bench import bench
from streamvae.report._bench_clip import random_wan
from streamvae.report._bench_found import Settings
from streamvae.report._bench_loops import EXACT, OWN
from tests.codecs.walk import noise

from . import card

pytestmark = pytest.mark.cuda

LATENTS = noise(1, 16, 6, 9, 11)


def _narrow(dtype: torch.dtype) -> nn.Module:
    """Wan 2.1 with as few channels as kernels take."""
    return nn.Module.to(random_wan(base_dim=32, num_res_blocks=1), card.DEVICE, dtype)


def test_fast_mode_is_accepted() -> None:
    """Whatever step fast mode takes here, it is no further from float32 than decode itself is."""
    found = verify(_narrow(torch.bfloat16), LATENTS, mode="fast")
    assert found.precision is not None, found
    assert found.verdict in {"equal", "accepted"}, found
    assert len(found.precision.drift) == 6
    assert found.precision.reference == f"float32 on {card.DEVICE}"


def test_the_reference_is_without_tf32() -> None:
    """A float32 decode on the card is as good as one on the host; TF32 rounds as float16 does."""
    assert torch.backends.cudnn.allow_tf32
    vae = _narrow(torch.float16)
    here, host = (
        verify(vae, LATENTS, mode="fast", reference_device=place).precision
        for place in (None, "cpu")
    )
    assert here is not None
    assert host is not None
    assert host.reference == "float32 on cpu"
    assert here.whole.error == pytest.approx(host.whole.error, rel=0.05)
    assert torch.backends.cudnn.allow_tf32


def test_chunks_and_joules_of_a_bench() -> None:
    """Chunks launched as graphs stand beside those of the decoder itself; joules are counted."""
    settings = replace(
        Settings(None, card.DEVICE),
        parts=("chunks", "energy"),
        rounds=1,
        size=(64, 112),
        latents=3,
        energy_seconds=0.5,
    )
    found = bench(settings)
    assert {OWN, EXACT} <= {row.way for row in found.chunks}
    assert all(row.first and row.steady for row in found.chunks)
    if not find_spec("pynvml"):
        assert any("streamvae[energy]" in note for note in found.notes)
    elif found.energy:
        assert all(row.joules > 0 and row.frames > 0 for row in found.energy)
        assert found.energy[0].idle_watts > 0
    else:  # a driver that does not count
        assert any(note.startswith("no joules a frame: NVML") for note in found.notes)
