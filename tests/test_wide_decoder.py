"""What ``tools/train_wide_decoder.py`` learns from, and that it learns."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from streamvae.models import default_vae, demo_latents

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, as a module."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location(
        "train_wide_decoder", TOOLS / "train_wide_decoder.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("default_vae_model", None)


def test_latents_are_folded_place_by_place(tool: ModuleType) -> None:
    """64 channels of a place become 16 of the four places in it, none lost and each normal."""
    given, _ = demo_latents()
    given = given[:, :, :3, :4, :4]
    folded = tool.fold(given)
    assert folded.shape == (1, 16, 3, 8, 8)
    assert folded.mean((0, 2, 3, 4)).abs().max() < 1e-5
    assert folded.std((0, 2, 3, 4)).allclose(torch.ones(16), atol=1e-4)
    other = given.clone()
    other[0, :, 1, 2, 3] += 1
    changed = ((tool.fold(other) - folded).abs() > 0.1).any(1)[0]
    assert changed.nonzero().tolist() == [[1, y, x] for y in (4, 5) for x in (6, 7)]


def test_more_of_a_scene(tool: ModuleType) -> None:
    """Latents go to and fro in time and are mirrored at edges; what was there stays."""
    given = torch.arange(2 * 3 * 2.0).view(1, 1, 2, 3, 2)
    more = tool.extended(given, 5, 7, 2)
    assert more.shape == (1, 1, 5, 7, 2)
    assert more[:, :, :2, :3].equal(given)
    assert more[0, 0, :, 0, 0].tolist() == [0, 6, 0, 6, 0]
    assert more[0, 0, 0, :, 0].tolist() == [0, 2, 4, 2, 0, 2, 4]
    assert tool.extended(given, 1, 2, 1).shape == (1, 1, 1, 2, 1)


def test_crops_are_of_the_same_places(tool: ModuleType) -> None:
    """A crop of latents has the frames of its place and time, which the embedded VAE decodes."""
    scene = tool.Scene.load(torch.device("cpu"), quick=True)
    whole = default_vae().decode(demo_latents()[0][:, :, :3, :4, :4]).sample
    assert scene.frames.equal(whole)
    latents, frames = scene.crop(np.random.default_rng(3), 2, 4)
    assert (latents.shape, frames.shape) == ((1, 16, 2, 4, 4), (1, 3, 5, 32, 32))
    places = [
        (y, x)
        for y in range(5)
        for x in range(5)
        if scene.latents[:, :, :2, y : y + 4, x : x + 4].equal(latents)
    ]
    ((y, x),) = places
    assert whole[:, :, :5, 8 * y : 8 * y + 32, 8 * x : 8 * x + 32].equal(frames)


def test_it_learns(tool: ModuleType) -> None:
    """Two steps bring it nearer to the scene, and what comes out is ready to decode."""
    scene = tool.Scene.load(torch.device("cpu"), quick=True)
    before = tool.evaluate(tool.build(quick=True).eval(), scene)
    vae = tool.train(scene, minutes=10, quick=True)
    assert tool.evaluate(vae, scene) > before
    assert not vae.training
    assert not any(weight.requires_grad for weight in vae.parameters())
    assert vae.dtype == torch.float32
