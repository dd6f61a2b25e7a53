"""Graphs for families that hand their state from chunk to chunk: the same bits, one launch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamvae.codecs import codec_for
from streamvae.fast import launched
from streamvae.fast._slots import slots_of
from streamvae.fast._steady import StaticState
from streamvae.testing import FakeGraphs
from tests.codecs.walk import begun, noise, pieces, walk, whole
from tests.families import causal, partition

#: Each with latents enough for two steady chunks and one that is none.
FAMILIES = [
    (causal.mochi, 4),
    (partition.cogvideox, 8),
    (partition.kvae_video, 14),
    (partition.kandinsky6_sr, 14),
    (partition.magvit, 4),
]


def latents(
    vae: nn.Module, steps: int, *, seed: int = 1, size: tuple[int, int] = (4, 3)
) -> torch.Tensor:
    """Latents for ``vae``."""
    return noise(1, codec_for(vae).channels, steps, *size, seed=seed)


@pytest.mark.parametrize(("make", "steps"), FAMILIES)
def test_equals_eager(make: Callable[[], nn.Module], steps: int) -> None:
    """Fresh slots and used ones give what the same walk gives kernel by kernel, bit for bit."""
    vae, graphs = make(), FakeGraphs()
    for seed in (1, 2, 3):
        z = latents(vae, steps, seed=seed)
        stepped = launched(codec_for(vae), graphs)
        assert torch.equal(walk(stepped.codec, z), walk(codec_for(vae), z))
        assert stepped.step() == "graph"
    assert graphs.captures == 1
    assert graphs.replays >= 3


@pytest.mark.parametrize(("make", "steps"), FAMILIES[3:])
def test_two_at_once_and_left(make: Callable[[], nn.Module], steps: int) -> None:
    """Walks side by side have a slot each, one that was left gives back a slot as good as new."""
    vae, graphs = make(), FakeGraphs()
    clips = [latents(vae, steps, seed=seed) for seed in (1, 2)]
    for _ in range(2):
        with torch.no_grad():
            codecs = [launched(codec_for(vae), graphs).codec for _ in clips]
            decoders = [begun(codec, z) for codec, z in zip(codecs, clips, strict=True)]
            given: list[list[torch.Tensor]] = [[], []]
            for parts in zip(*map(pieces, codecs, clips), strict=True):
                for frames, decoder, part in zip(given, decoders, parts, strict=True):
                    decoded = decoder.decode(part)
                    assert decoded is not None
                    frames.append(decoded.clone())
            left = begun(codecs[0], clips[1])
            left.decode(next(pieces(codecs[0], clips[1])))
            for decoder in (*decoders, left):
                decoder.close()
        for frames, z in zip(given, clips, strict=True):
            assert torch.equal(torch.cat(frames, 2), walk(codec_for(vae), z))
    assert graphs.captures == 2


def test_tiles() -> None:
    """Each tile has a slot of its own."""
    vae, graphs = partition.cogvideox(), FakeGraphs()
    vae.enable_tiling()
    z = latents(vae, 6, size=(9, 11))
    for _ in range(2):
        assert torch.equal(walk(launched(codec_for(vae), graphs).codec, z), whole(vae, z))


def test_memory_that_grows() -> None:
    """Where attention looks at all frames before, there is no graph, and nothing is said."""
    vae = causal.hunyuan15()
    stepped = launched(codec_for(vae), FakeGraphs())
    assert stepped.step() == "eager"


@pytest.mark.parametrize(("make", "steps"), FAMILIES[:1])
def test_slots_go_with_their_autoencoder(make: Callable[[], nn.Module], steps: int) -> None:
    """Nothing keeps an autoencoder that nobody else has."""
    vae = make()
    walk(launched(codec_for(vae), FakeGraphs()).codec, latents(vae, steps))
    assert slots_of(vae).nbytes
    gone = weakref.ref(vae)
    del vae
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("make", "steps"), FAMILIES)
def test_cannot_be_recorded(make: Callable[[], nn.Module], steps: int) -> None:
    """A failure leaves the walk as it was."""
    vae, graphs = make(), FakeGraphs(failure=torch.OutOfMemoryError("out of memory"))
    z = latents(vae, steps)
    stepped = launched(codec_for(vae), graphs)
    assert torch.equal(walk(stepped.codec, z), walk(codec_for(vae), z))
    assert "out of memory" in stepped.step()


def test_state_of_another_form() -> None:
    """A state is copied only into one of its form."""
    static = StaticState({"a": torch.zeros(2), "b": [torch.zeros(3), None, 1]})
    static.take({"a": torch.ones(2), "b": [torch.ones(3), None, 1]})
    state = static.lend()
    assert isinstance(state, dict)
    assert torch.equal(state["a"], torch.ones(2))
    assert static.nbytes == 20
    with pytest.raises(RuntimeError, match="changes its form"):
        static.take({"a": torch.ones(2), "b": [torch.ones(3), None, 2]})
