"""Steady chunks as graphs, on a stand-in that runs again what was recorded: the same bits."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from streamvae import FrameStream, LatentsError, UsageError, release, stream_decode, warmup
from streamvae._chunks import Array
from streamvae._pixels import render
from streamvae.codecs import codec_for
from streamvae.fast import launched
from streamvae.fast._slots import slots_of
from streamvae.fast._static import Lent, StaticCache
from streamvae.testing import FakeBackend, FakeGraphs
from tests import tiny
from tests.codecs.walk import begun, noise, pieces, walk, whole

FAMILIES = [tiny.wan21, tiny.wan22, tiny.qwen_image]


def stream(
    z: torch.Tensor, vae: nn.Module, graphs: FakeGraphs, backend: FakeBackend | None = None
) -> FrameStream:
    """A stream over a device with graphs; streams side by side share their device."""
    backend = backend or FakeBackend(graphs=graphs)
    return stream_decode(z, vae, output="float32", backend=backend)


def expected(vae: nn.Module, z: torch.Tensor) -> Array:
    """What ``vae.decode`` gives, as consumers see it."""
    pixels: Array = render(whole(vae, z), "video", "float32").numpy()
    return pixels


def same(given: object, vae: nn.Module, z: torch.Tensor) -> bool:
    """Whether these are the frames of ``vae.decode``, bit for bit."""
    assert isinstance(given, np.ndarray)
    return np.array_equal(given, expected(vae, z))


def latents(vae: nn.Module, steps: int, *, batch: int = 1, seed: int = 1) -> torch.Tensor:
    """Latents for ``vae``."""
    return noise(batch, codec_for(vae).channels, steps, 4, 3, seed=seed)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
async def test_equals_decode(make: Callable[[], nn.Module], steps: int) -> None:
    """A fresh slot and one that is used again give the frames of vae.decode, bit for bit."""
    vae, graphs = make(), FakeGraphs()
    for seed in (1, 2, 3):
        z = latents(vae, steps, batch=seed % 2 + 1, seed=seed)
        given = stream(z, vae, graphs)
        assert same(await given.collect(), vae, z)
        assert given.info.step == "graph"
    if steps > 1:
        assert graphs.captures == 2 * 2  # of each batch size, a first and a steady chunk
    # The first of a slot's streams has two eager chunks, to learn from.
    assert graphs.replays == (steps + 2 * (steps - 2) if steps > 1 else 0)


@pytest.mark.parametrize("make", FAMILIES)
async def test_two_at_once(make: Callable[[], nn.Module]) -> None:
    """Streams side by side have a slot each."""
    vae, graphs = make(), FakeGraphs()
    first, second = latents(vae, 5), latents(vae, 4, seed=2)
    device = FakeBackend(graphs=graphs)
    for _ in range(2):
        given: list[list[Array]] = [[], []]
        both = stream(first, vae, graphs, device), stream(second, vae, graphs, device)
        async with both[0], both[1]:
            chunks = [one.chunks() for one in both]
            for _ in range(4):
                for held, source in zip(given, chunks, strict=True):
                    held.append(np.asarray((await anext(source)).data))
            given[0].append(np.asarray((await anext(chunks[0])).data))
        assert same(np.concatenate(given[0], 1), vae, first)
        assert same(np.concatenate(given[1], 1), vae, second)
    assert graphs.captures == 2 * 2


async def test_left_early() -> None:
    """A slot that a cancelled stream gave back holds nothing of it."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    for stop in (1, 2, 6, 12):
        async with stream(latents(vae, 6, seed=stop), vae, graphs) as given:
            async for frame in given:
                if frame.index == stop:
                    break
    z = latents(vae, 5)
    assert same(await stream(z, vae, graphs).collect(), vae, z)
    assert graphs.captures == 2


@pytest.mark.parametrize("slicing", [False, True])
@pytest.mark.parametrize("make", FAMILIES)
def test_tiles_and_slices(make: Callable[[], nn.Module], slicing: bool) -> None:
    """Each tile of each clip has a slot of its own."""
    vae = make()
    if slicing:
        vae.enable_slicing()
    vae.enable_tiling(64, 64, 48, 48)
    graphs = FakeGraphs()
    z = noise(2, codec_for(vae).channels, 3, 11, 9)
    for _ in range(2):
        codec = launched(codec_for(vae), graphs).codec
        assert torch.equal(walk(codec, z), whole(vae, z))
    tiles = graphs.captures // 2
    assert tiles > 1
    assert graphs.replays == tiles * (1 + 3)


async def test_chunks_of_another_length() -> None:
    """A graph is for one number of latents; other chunks of its stream go by the same state."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    z = latents(vae, 8)
    for _ in range(2):
        codec = launched(codec_for(vae), graphs).codec
        given = walk(codec, z, 3, "fast")  # 1, 3, 3, 1
        assert torch.allclose(given, whole(vae, z), atol=5e-6)
    assert (graphs.captures, graphs.replays) == (1, 1 + 2)


@pytest.mark.parametrize(
    ("graphs", "why"),
    [
        (FakeGraphs(failure=torch.OutOfMemoryError("CUDA out of memory.\nTried")), "out of memory"),
        (FakeGraphs(failure=RuntimeError("operation not permitted")), "not permitted"),
        (FakeGraphs(room=10), "10 are left"),
    ],
)
async def test_cannot_be_recorded(
    graphs: FakeGraphs, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Then chunks are launched kernel by kernel; info says why, the log says it once."""
    vae = tiny.wan21()
    z = latents(vae, 6)
    with caplog.at_level(logging.WARNING, "streamvae"):
        given = stream(z, vae, graphs)
        assert same(await given.collect(), vae, z)
    assert given.info.step.startswith("eager (")
    assert why in given.info.step
    assert "\n" not in given.info.step
    assert len(caplog.records) == 1
    assert graphs.replays == 0
    assert not graphs.held  # what the rehearsal took is there for others


async def test_recorded_after_a_failure() -> None:
    """A stream that could not record leaves nothing behind: the next one can."""
    vae, z = tiny.wan21(), noise(1, 4, 5, 4, 3)
    failing, working = FakeGraphs(failure=RuntimeError("no")), FakeGraphs()
    await stream(z, vae, failing).collect()
    given = stream(z, vae, working)
    assert same(await given.collect(), vae, z)
    assert given.info.step == "graph"


async def test_weights_that_moved() -> None:
    """Slots of weights that are elsewhere now are not used, between streams or within one."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    z = latents(vae, 6)
    await stream(z, vae, graphs).collect()
    vae.double().float()  # elsewhere
    stepped = launched(codec_for(vae), graphs)
    codec = stepped.codec
    given = []
    with torch.no_grad():
        decoder = begun(codec, z)
        for number, piece in enumerate(pieces(codec, z)):
            if number == 4:
                vae.double().float()
            given.append(decoder.decode(piece).clone())
        decoder.close()
    assert torch.equal(torch.cat(given, 2), whole(vae, z))
    assert "moved" in stepped.step()
    assert (graphs.captures, graphs.replays) == (4, 4 + 2)
    assert len(graphs.retired) == 1


async def test_a_first_chunk_that_cannot_be_recorded() -> None:
    """It stays eager; the others are a graph all the same."""
    vae, graphs = tiny.wan21(), FakeGraphs(failure=RuntimeError("full"), after=1)
    for seed in (1, 2):
        z = latents(vae, 5, seed=seed)
        given = stream(z, vae, graphs)
        assert same(await given.collect(), vae, z)
        assert given.info.step == "graph"
    assert (graphs.captures, graphs.replays) == (1, 3 + 4)
    assert not graphs.held


async def test_new_values_at_the_same_place() -> None:
    """Weights that were written to in place are read by the next replay."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    z = latents(vae, 5)
    await stream(z, vae, graphs).collect()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.1)
    assert same(await stream(z, vae, graphs).collect(), vae, z)
    assert graphs.captures == 2


def hooked(vae: nn.Module) -> None:
    """As accelerate does."""
    add_hook_to_module(vae, AlignDevicesHook(execution_device="cpu"))


def watched(vae: nn.Module) -> None:
    """As profilers do."""
    vae.decoder.conv_in.register_forward_hook(lambda *_: None)


def foreign(vae: nn.Module) -> None:
    """As adapters do."""
    vae.decoder.nonlinearity = _Other()


class _Other(nn.SiLU):
    """Nobody's."""


@pytest.mark.parametrize("change", [hooked, watched, foreign])
async def test_what_may_change(change: Callable[[nn.Module], None]) -> None:
    """Hooks and modules of others keep their say at every chunk: no graph, and info says so."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    change(vae)
    z = latents(vae, 5)
    given = stream(z, vae, graphs)
    assert same(await given.collect(), vae, z)
    assert given.info.step.startswith("eager (no graph over")
    assert graphs.captures == 0


async def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """STREAMVAE_GRAPHS=0 has every chunk launched by itself."""
    monkeypatch.setenv("STREAMVAE_GRAPHS", "0")
    vae, graphs = tiny.wan21(), FakeGraphs()
    given = stream(latents(vae, 5), vae, graphs)
    await given.collect()
    assert given.info.step == "eager (STREAMVAE_GRAPHS=0)"
    assert graphs.captures == 0


async def test_other_families_as_ever() -> None:
    """A family without graphs says nothing of them."""
    vae = tiny.kl()
    given = stream(noise(2, 4, 4, 4), vae, FakeGraphs())
    await given.collect()
    assert given.info.step == "eager"


async def test_idle_slots_are_bounded() -> None:
    """What idle slots keep has a bound in bytes; the longest idle go first, to be freed in time."""
    vae = tiny.wan21()
    small, large = noise(1, 4, 4, 2, 2), noise(1, 4, 4, 4, 4)
    graphs = FakeGraphs(idle_bytes=0)
    await stream(small, vae, graphs).collect()
    assert (slots_of(vae).nbytes, len(graphs.retired)) == (0, 1)
    graphs = FakeGraphs()
    await stream(small, vae, graphs).collect()
    one = slots_of(vae).nbytes
    graphs.idle_bytes = 5 * one - 1
    await stream(large, vae, graphs).collect()
    kept = slots_of(vae).nbytes
    assert kept == 4 * one
    assert len(graphs.retired) == 1
    assert release() >= kept
    assert slots_of(vae).nbytes == 0


async def test_slots_go_with_their_autoencoder() -> None:
    """Nothing keeps an autoencoder that nobody else has."""
    vae = tiny.wan21()
    await stream(latents(vae, 4), vae, FakeGraphs()).collect()
    held, gone = slots_of(vae), weakref.ref(vae)
    assert held.nbytes
    del vae
    gc.collect()
    assert gone() is None
    assert held.nbytes  # ours, and nobody's to release
    release()
    assert held.nbytes


async def test_warmup() -> None:
    """After it the first stream has its graph; any number of latents will do."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    backend = FakeBackend(graphs=graphs)
    info = await warmup(vae, (1, 4, 21, 4, 3), backend=backend)
    assert info.step == "graph"
    assert graphs.captures == 2
    z = latents(vae, 5)
    before = graphs.replays
    assert same(await stream(z, vae, graphs).collect(), vae, z)
    assert (graphs.captures, graphs.replays) == (2, before + 5)


async def test_warmup_of_no_latents() -> None:
    """A shape that is none is refused before anything is decoded."""
    with pytest.raises(LatentsError, match="expected the shape of latents"):
        await warmup(tiny.wan21(), (1, 4, 0, 4, 3))
    with pytest.raises(LatentsError, match="C = 4"):
        await warmup(tiny.wan21(), (1, 5, 3, 4, 3))


def test_first_chunk_of_two() -> None:
    """Diffusers would take the second latent for a part of the first frame."""
    vae = tiny.wan21()
    decoder = launched(codec_for(vae), FakeGraphs()).codec.decoder()
    with pytest.raises(UsageError, match="first chunk of 1 latent"):
        decoder.decode(latents(vae, 2))


class Written:
    """A decoder's step that does not do what diffusers' do."""

    def __init__(self, spoil: str) -> None:
        self.spoil = spoil

    def __call__(self, x: torch.Tensor, cache: StaticCache) -> None:
        kept = x[:, :, -2:].clone()
        if self.spoil == "written":
            x.add_(1)
        if self.spoil != "forgotten":
            cache[0] = kept


@pytest.mark.parametrize(
    ("spoil", "message"), [("written", "wrote to"), ("forgotten", "did not go to its cache")]
)
def test_copies_that_matter(spoil: str, message: str) -> None:
    """A copy is left out only where it could not be told: otherwise nothing is recorded."""
    cache = StaticCache([torch.zeros(1, 1, 2, 1, 1)])
    cache.lent = Lent(frozenset({0}))
    step = Written(spoil)
    with pytest.raises(RuntimeError, match=message):
        with cache.lent:
            step(torch.ones(1, 1, 4, 1, 1), cache)
        cache.lent.settle()


def test_cache_takes_what_diffusers_keeps() -> None:
    """Shorter memories come after zeros, marks are zeros, the rest is not understood."""
    cache = StaticCache([torch.ones(1, 1, 2, 1, 1), None])
    buffer = cache[0]
    cache.rewind()
    assert cache == [None, None]
    cache[0] = torch.full((1, 1, 1, 1, 1), 3.0)
    assert cache[0] is buffer
    assert isinstance(buffer, torch.Tensor)
    assert buffer.flatten().tolist() == [0.0, 3.0]
    cache[0] = "Rep"
    assert not buffer.any()
    cache[1] = "Rep"
    assert cache[1] == "Rep"
    with pytest.raises(TypeError, match="a slice"):
        cache[0:1] = [None]
    with pytest.raises(TypeError, match="got int"):
        cache[1] = 3
