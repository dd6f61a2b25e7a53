"""Chunks as graphs, on a stand-in that runs again what was recorded: the same bits, or eager."""

from __future__ import annotations

import asyncio
import gc
import logging
import types
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrize

from streamvae import FrameStream, LatentsError, UsageError, release, stream_decode, warmup
from streamvae._chunks import Array
from streamvae._pixels import render
from streamvae.codecs import codec_for
from streamvae.fast import Stepped, launched
from streamvae.fast._slots import idle_slots, load
from streamvae.testing import FakeBackend, FakeGraphs
from tests import tiny
from tests.codecs.walk import begun, noise, pieces, walk, whole
from tests.families import causal, partition

CACHED = [tiny.wan21, tiny.wan22, tiny.qwen_image]
#: Each with latents enough for two steady chunks and, where there can be one, a shorter last one.
FAMILIES = [
    *((make, 6) for make in CACHED),
    (causal.mochi, 4),
    (partition.cogvideox, 8),
    (partition.kvae_video, 14),
    (partition.kandinsky6_sr, 14),
    (partition.magvit, 4),
]


def latents(
    vae: nn.Module, steps: int, *, seed: int = 1, batch: int = 1, size: tuple[int, int] = (4, 3)
) -> torch.Tensor:
    """Latents for ``vae``."""
    return noise(batch, codec_for(vae).channels, steps, *size, seed=seed)


def stream(z: torch.Tensor, vae: nn.Module, backend: FakeBackend) -> FrameStream:
    """A stream over a device with graphs."""
    return stream_decode(z, vae, output="float32", backend=backend)


async def warm(vae: nn.Module, backend: FakeBackend, *, streams: int = 1) -> str:
    """Record graphs for latents of `latents`' size; how chunks are launched then."""
    shape = (1, codec_for(vae).channels, 21, 4, 3)
    return (await warmup(vae, shape, streams=streams, backend=backend)).step


def same(given: object, vae: nn.Module, z: torch.Tensor) -> bool:
    """Whether these are the frames of ``vae.decode``, bit for bit."""
    assert isinstance(given, np.ndarray)
    pixels: Array = render(whole(vae, z), "video", "float32").numpy()
    return np.array_equal(given, pixels)


@torch.no_grad()
def recorded(
    vae: nn.Module, z: torch.Tensor, graphs: FakeGraphs, streams: int = 1, count: int | None = None
) -> Stepped:
    """Walk ``z`` as a warm-up does, and record."""
    stepped = launched(codec_for(vae), graphs)
    codec = stepped.codec
    decoder = begun(codec, z)
    mode = "exact" if count is None else "fast"
    for _, piece in zip(range(3), pieces(codec, z, count, mode), strict=False):
        decoder.decode(piece)
    if stepped.launcher is not None:
        stepped.launcher.record(streams)
    decoder.close()
    return stepped


@pytest.fixture
def backend() -> FakeBackend:
    """A device with graphs."""
    return FakeBackend(graphs=FakeGraphs())


def graphs_of(backend: FakeBackend) -> FakeGraphs:
    """Its graphs."""
    assert backend.graphs is not None
    return backend.graphs


# Streams and warm-ups.


async def test_streams_never_record(backend: FakeBackend) -> None:
    """Without a warm-up every chunk is launched by itself, and nothing is said of it."""
    vae = tiny.wan21()
    z = latents(vae, 6)
    for _ in range(2):
        given = stream(z, vae, backend)
        assert same(await given.collect(), vae, z)
        assert (given.info.step, given.info.notes) == ("eager", ())
    assert graphs_of(backend).captures == 0


@pytest.mark.parametrize("make", CACHED)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
async def test_equals_decode(
    make: Callable[[], nn.Module], steps: int, backend: FakeBackend
) -> None:
    """After a warm-up streams of its size give the frames of vae.decode, bit for bit."""
    vae = make()
    assert await warm(vae, backend) == "graph"
    graphs = graphs_of(backend)
    before = graphs.replays
    for seed in (1, 2, 3):
        z = latents(vae, steps, seed=seed)
        given = stream(z, vae, backend)
        assert same(await given.collect(), vae, z)
        # The first two chunks have state of another form.
        assert (given.info.step == "graph") == (steps != 2)
    assert (graphs.captures, graphs.replays - before) == (1, 3 * max(steps - 2, 0))


async def test_streams_at_once(backend: FakeBackend) -> None:
    """So many streams have a graph each as were asked for; one more is launched chunk by chunk."""
    vae = tiny.wan21()
    await warm(vae, backend, streams=2)
    clips = [latents(vae, 5, seed=seed) for seed in (1, 2, 3)]
    streams = [stream(z, vae, backend) for z in clips]
    chunks = [one.chunks() for one in streams]
    given: list[list[Array]] = [[], [], []]
    for _ in range(5):
        for held, source in zip(given, chunks, strict=True):
            held.append(np.asarray((await anext(source)).data))
    assert all(same(np.concatenate(held, 1), vae, z) for held, z in zip(given, clips, strict=True))
    steps = sorted(one.info.step for one in streams)
    # The third has a slot as soon as one of the others, which may be chunks ahead, is over.
    assert steps[1:] == ["graph", "graph"]
    assert steps[0] in {"eager (none of the recorded graphs is free for it)", "graph"}
    for one in streams:
        await one.aclose()
    assert graphs_of(backend).captures == 2


async def test_warm_already(backend: FakeBackend) -> None:
    """A second warm-up records what is missing, and no more."""
    vae, graphs = tiny.wan21(), graphs_of(backend)
    for streams, captures in ((1, 1), (1, 1), (3, 3), (2, 3)):
        assert await warm(vae, backend, streams=streams) == "graph"
        assert graphs.captures == captures


async def test_left_early(backend: FakeBackend) -> None:
    """A slot that a cancelled stream gave back holds nothing of it."""
    vae = tiny.wan21()
    await warm(vae, backend)
    for stop in (1, 2, 6, 12):
        async with stream(latents(vae, 6, seed=stop), vae, backend) as given:
            async for frame in given:
                if frame.index == stop:
                    break
    z = latents(vae, 5)
    assert same(await stream(z, vae, backend).collect(), vae, z)
    assert idle_slots(vae)


async def test_beside_a_stream(backend: FakeBackend) -> None:
    """A warm-up while a stream of ours uses the device is refused before anything is decoded."""
    vae, other = tiny.wan21(), tiny.wan22()
    z = latents(other, 6)
    async with stream(z, other, backend) as running:
        frames = running.chunks()
        first = np.asarray((await anext(frames)).data)
        with pytest.raises(UsageError, match="a warmup beside 1 stream;"):
            await warm(vae, backend)
        rest = [np.asarray(chunk.data) async for chunk in frames]
    assert same(np.concatenate([first, *rest], 1), other, z)
    assert graphs_of(backend).captures == 0
    assert await warm(vae, backend) == "graph"


async def test_two_warmups_at_once(backend: FakeBackend) -> None:
    """They are two streams: at most one of them goes through."""
    made = [tiny.wan21(), tiny.wan22()]
    found = await asyncio.gather(*(warm(vae, backend) for vae in made), return_exceptions=True)
    assert sum(isinstance(one, UsageError) for one in found) >= 1
    assert {one for one in found if isinstance(one, str)} <= {"graph"}


async def test_another_device(backend: FakeBackend) -> None:
    """Streams of other devices do not hold up a warm-up."""
    vae = tiny.wan21()
    async with stream(latents(vae, 6), vae, FakeBackend(graphs=FakeGraphs())) as running:
        await anext(running.chunks())
        assert await warm(tiny.wan22(), backend) == "graph"


async def test_bad_shapes(backend: FakeBackend) -> None:
    """What is no shape of latents, and no number of streams, is refused before any work."""
    with pytest.raises(LatentsError, match="expected the shape of latents"):
        await warmup(tiny.wan21(), (1, 4, 0, 4, 3))
    with pytest.raises(LatentsError, match="C = 4"):
        await warmup(tiny.wan21(), (1, 5, 3, 4, 3))
    with pytest.raises(UsageError, match="streams of at least 1, got 0"):
        await warmup(tiny.wan21(), (1, 4, 3, 4, 3), streams=0)
    info = await warmup(tiny.wan21(), (1, 4, 1, 4, 3), backend=backend)
    assert info.step.startswith("eager (it could not be recorded: what it remembers changes")


# What the walks do with them.


@pytest.mark.parametrize(("make", "steps"), FAMILIES)
def test_equals_eager(make: Callable[[], nn.Module], steps: int) -> None:
    """Families of every form of state: as kernel by kernel, bit for bit, slot after slot."""
    vae, graphs = make(), FakeGraphs()
    recorded(vae, latents(vae, steps), graphs)
    for seed in (1, 2, 3):
        z = latents(vae, steps, seed=seed)
        stepped = launched(codec_for(vae), graphs)
        assert torch.equal(walk(stepped.codec, z), walk(codec_for(vae), z))
        assert stepped.step() == "graph"
    assert graphs.captures == 1
    assert graphs.replays >= 3


@pytest.mark.parametrize(("make", "steps"), FAMILIES)
def test_side_by_side(make: Callable[[], nn.Module], steps: int) -> None:
    """Interleaved walks do not meet, nor does one that was left in the middle."""
    vae, graphs = make(), FakeGraphs()
    recorded(vae, latents(vae, steps), graphs, streams=2)
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


@pytest.mark.parametrize("make", [*CACHED, partition.cogvideox])
@pytest.mark.parametrize("slicing", [False, True])
def test_tiles_and_slices(make: Callable[[], nn.Module], slicing: bool) -> None:
    """Each tile of each clip has a slot of its own."""
    vae, graphs = make(), FakeGraphs()
    if slicing:
        vae.enable_slicing()
    vae.enable_tiling(*([] if make is partition.cogvideox else [64, 64, 48, 48]))
    steps = 6 if make is partition.cogvideox else 4
    z = latents(vae, steps, batch=2, size=(11, 9))
    recorded(vae, z, graphs)
    assert graphs.captures > 1
    for seed in (1, 2):
        z = latents(vae, steps, batch=2, size=(11, 9), seed=seed)
        stepped = launched(codec_for(vae), graphs)
        assert torch.equal(walk(stepped.codec, z), whole(vae, z))
        assert stepped.step() == "graph"


def test_chunks_of_several_latents() -> None:
    """Graphs are for one number of latents a chunk; those of 3 do not stand in the way of 1."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    z = latents(vae, 11)
    recorded(vae, z, graphs, count=3)
    fast = launched(codec_for(vae), graphs)
    assert torch.allclose(walk(fast.codec, z, 3, "fast"), whole(vae, z), atol=5e-6)
    assert (fast.step(), graphs.replays) == ("graph", 2)  # 1, 3, [3, 3], 1
    exact = launched(codec_for(vae), graphs)
    assert torch.equal(walk(exact.codec, z), whole(vae, z))
    assert exact.step() == "eager (none of the recorded graphs is free for it)"
    recorded(vae, z, graphs)
    exact = launched(codec_for(vae), graphs)
    assert torch.equal(walk(exact.codec, z), whole(vae, z))
    assert (exact.step(), graphs.captures) == ("graph", 2)


def test_memory_that_grows() -> None:
    """Where attention looks at all frames before, there is no graph, and nothing is said."""
    vae, graphs = causal.hunyuan15(), FakeGraphs()
    stepped = recorded(vae, latents(vae, 4), graphs)
    assert (stepped.step(), stepped.launcher) == ("eager", None)
    assert graphs.captures == 0


def test_a_launch_that_fails() -> None:
    """A replay that raises leaves the state as it was: the stream goes on, eager, and says so."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    z = latents(vae, 7)
    recorded(vae, z, graphs)
    stepped = launched(codec_for(vae), graphs)
    given = []
    with torch.no_grad():
        decoder = begun(stepped.codec, z)
        for number, piece in enumerate(pieces(stepped.codec, z)):
            graphs.launch_failure = (
                RuntimeError("CUDA error: out of memory") if number == 4 else None
            )
            given.append(decoder.decode(piece).clone())
        decoder.close()
    assert torch.equal(torch.cat(given, 2), whole(vae, z))
    assert stepped.step() == "eager (it could not be launched: CUDA error: out of memory)"
    assert graphs.replays == 2
    assert torch.equal(walk(launched(codec_for(vae), graphs).codec, z), whole(vae, z))


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory"),
        (RuntimeError("operation not permitted"), "not permitted"),
    ],
)
async def test_cannot_be_recorded(
    failure: RuntimeError, why: str, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """A warm-up says why in info and, once, in the log; streams go on, and so does the next one."""
    vae, graphs = tiny.wan21(), graphs_of(backend)
    graphs.failure = failure
    with caplog.at_level(logging.WARNING, "streamvae"):
        step = await warm(vae, backend, streams=2)
    assert step.startswith("eager (it could not be recorded")
    assert why in step
    assert "\n" not in step
    assert len(caplog.records) == 1
    z = latents(vae, 5)
    given = stream(z, vae, backend)
    assert same(await given.collect(), vae, z)
    assert given.info.step == "eager"
    graphs.failure = None
    assert await warm(vae, backend) == "graph"


async def test_room_for_some(backend: FakeBackend) -> None:
    """What was recorded before memory was full is used."""
    vae = tiny.wan21()
    full = FakeBackend(graphs=FakeGraphs(failure=torch.OutOfMemoryError("full"), after=2))
    assert "full" in await warm(vae, full, streams=3)
    z = latents(vae, 4)
    given = stream(z, vae, full)
    assert same(await given.collect(), vae, z)
    assert given.info.step == "graph"


# What makes a graph the wrong one.


def moved(vae: nn.Module) -> None:
    """As a round trip to the host does."""
    vae.double().float()


@torch.no_grad()
def laid_out_anew(vae: nn.Module) -> None:
    """The same places, other strides."""
    for part in vae.decoder.modules():
        if isinstance(part, nn.Conv3d):
            values = part.weight.detach().clone()
            strides = torch.empty_like(values, memory_format=torch.channels_last_3d).stride()
            part.weight.data = torch.as_strided(part.weight.data, part.weight.shape, strides)
            part.weight.copy_(values)


class Halved(torch.Tensor):
    """Weights that are half of what their memory holds, as quantised ones are something else."""

    @classmethod
    def __torch_function__(cls, func, kinds, args=(), kwargs=None):
        plain = [
            one.as_subclass(torch.Tensor) * 0.5 if isinstance(one, Halved) else one for one in args
        ]
        return func(*plain, **(kwargs or {}))


def of_a_subclass(vae: nn.Module) -> None:
    """The same memory, seen otherwise."""
    part = vae.decoder.conv_out
    weight = part.weight.data.as_subclass(Halved)
    del part.weight
    part.weight = weight


def another_forward(vae: nn.Module) -> None:
    """A function of its own on the decoder."""
    inner = vae.decoder.forward
    vae.decoder.forward = types.MethodType(
        lambda _, *args, **kwargs: inner(*args, **kwargs) * 0.5, vae.decoder
    )


def replaced_parameter(vae: nn.Module) -> None:
    """Another parameter, which leaves the old one where it was."""
    vae.decoder.conv_out.weight = nn.Parameter(vae.decoder.conv_out.weight * 0.5)


def parametrised(vae: nn.Module) -> None:
    """As weight norm does."""

    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 0.5

    parametrize.register_parametrization(vae.decoder.conv_out, "weight", Half())


def hooked(vae: nn.Module) -> None:
    """As accelerate does."""
    add_hook_to_module(vae, AlignDevicesHook(execution_device="cpu"))


def watched(vae: nn.Module) -> None:
    """As profilers do, and those who change what passes."""
    vae.decoder.conv_in.register_forward_hook(lambda _, __, given: given * 0.5)


class Other(nn.SiLU):
    """Nobody's."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Half as much."""
        return super().forward(hidden) * 0.5


def foreign(vae: nn.Module) -> None:
    """As adapters do."""
    vae.decoder.nonlinearity = Other()


CHANGES = [
    moved,
    laid_out_anew,
    of_a_subclass,
    another_forward,
    replaced_parameter,
    parametrised,
    hooked,
    watched,
    foreign,
]


@pytest.mark.parametrize("change", CHANGES)
async def test_changed_between_streams(
    change: Callable[[nn.Module], None], backend: FakeBackend
) -> None:
    """A graph of something else is not launched; notes say that it was recorded for nothing."""
    vae, graphs = tiny.wan21(), graphs_of(backend)
    await warm(vae, backend)
    change(vae)
    z, before = latents(vae, 6), graphs.replays
    given = stream(z, vae, backend)
    assert same(await given.collect(), vae, z)
    assert given.info.step.startswith("eager")
    assert "were recorded and not used" in "".join(given.info.notes)
    assert graphs.replays == before


@pytest.mark.parametrize("change", CHANGES[-6:])
async def test_nothing_to_record(change: Callable[[nn.Module], None], backend: FakeBackend) -> None:
    """What may change from chunk to chunk, or reads weights its own way, is never recorded."""
    vae = tiny.wan21()
    change(vae)
    expected = "graph" if change is replaced_parameter else "eager (no graph over"
    assert (await warm(vae, backend)).startswith(expected)


def test_moved_within_a_stream() -> None:
    """The chunks that follow are of the new weights, with the state of those before."""
    vae, graphs = tiny.wan21(), FakeGraphs()
    z = latents(vae, 6)
    recorded(vae, z, graphs)
    plain, stepped = codec_for(vae), launched(codec_for(vae), graphs)
    given: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        decoders = [begun(one, z) for one in (plain, stepped.codec)]
        for number, piece in enumerate(pieces(plain, z)):
            if number == 4:
                moved(vae)
            for frames, decoder in zip(given, decoders, strict=True):
                frames.append(decoder.decode(piece).clone())
        for decoder in decoders:
            decoder.close()
    assert torch.equal(*(torch.cat(frames, 2) for frames in given))
    assert "moved" in stepped.step()
    assert graphs.replays == 2


@pytest.fixture
def precision() -> Iterator[None]:
    """Torch's switches of precision as they were."""
    conv = torch.backends.cudnn.conv
    before = (torch.backends.fp32_precision, conv.fp32_precision)
    yield
    torch.backends.fp32_precision, conv.fp32_precision = before


async def test_precision_switches(precision: None, backend: FakeBackend) -> None:
    """Graphs are for the switches that they were recorded under, the new ones too."""
    vae, graphs = tiny.wan21(), graphs_of(backend)
    z, conv = latents(vae, 5), torch.backends.cudnn.conv
    torch.backends.fp32_precision, conv.fp32_precision = "ieee", "tf32"
    await warm(vae, backend)
    before = graphs.replays
    assert same(await stream(z, vae, backend).collect(), vae, z)
    assert graphs.replays == before + 3
    conv.fp32_precision = "ieee"
    assert same(await stream(z, vae, backend).collect(), vae, z)
    assert graphs.replays == before + 3
    conv.fp32_precision = "tf32"
    await stream(z, vae, backend).collect()
    assert graphs.replays == before + 6


async def test_new_values_at_the_same_place(backend: FakeBackend) -> None:
    """Weights that were written to in place are read by the next replay."""
    vae = tiny.wan21()
    z = latents(vae, 5)
    await warm(vae, backend)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.1)
    given = stream(z, vae, backend)
    assert same(await given.collect(), vae, z)
    assert given.info.step == "graph"


async def test_switched_off(monkeypatch: pytest.MonkeyPatch, backend: FakeBackend) -> None:
    """STREAMVAE_GRAPHS=0 has every chunk launched by itself."""
    monkeypatch.setenv("STREAMVAE_GRAPHS", "0")
    assert await warm(tiny.wan21(), backend) == "eager (STREAMVAE_GRAPHS=0)"
    assert graphs_of(backend).captures == 0


async def test_other_families_as_ever(backend: FakeBackend) -> None:
    """A family without graphs says nothing of them."""
    info = await warmup(tiny.kl(), (2, 4, 4, 4), backend=backend)
    assert (info.step, info.notes) == ("eager", ())


# What is kept.


async def test_release(backend: FakeBackend) -> None:
    """It gives back what idle slots hold; a stream that runs keeps its own."""
    release()
    vae = tiny.wan21()
    await warm(vae, backend, streams=2)
    held = sum(slot.nbytes for slot in idle_slots(vae))
    z = latents(vae, 6)
    async with stream(z, vae, backend) as given:
        chunks = given.chunks()
        found = [np.asarray((await anext(chunks)).data) for _ in range(3)]
        assert 0 < release() < held
        found += [np.asarray(chunk.data) async for chunk in chunks]
        assert same(np.concatenate(found, 1), vae, z)
    assert release() > 0
    assert release() == 0


@pytest.mark.parametrize(("make", "steps"), [(tiny.wan21, 4), (causal.mochi, 4)])
def test_slots_go_with_their_autoencoder(make: Callable[[], nn.Module], steps: int) -> None:
    """Nothing keeps an autoencoder that nobody else has."""
    vae = make()
    recorded(vae, latents(vae, steps), FakeGraphs())
    assert idle_slots(vae)
    gone = weakref.ref(vae)
    del vae
    gc.collect()
    assert gone() is None


def test_state_of_another_form() -> None:
    """A state is copied only into one of its form."""
    own = {"a": torch.zeros(2), "b": [torch.zeros(3), None, 1]}
    load({"a": torch.ones(2), "b": [torch.ones(3), None, 1]}, own)
    assert torch.equal(own["b"][0], torch.ones(3))
    for other in ({"a": torch.ones(2), "b": [torch.ones(3), None, 2]}, {"a": torch.ones(2)}):
        with pytest.raises(RuntimeError, match="changes its form"):
            load(other, own)


def test_first_chunk_of_two() -> None:
    """Diffusers would take the second latent for a part of the first frame."""
    vae = tiny.wan21()
    decoder = launched(codec_for(vae), FakeGraphs()).codec.decoder()
    with pytest.raises(UsageError, match="first chunk of 1 latent"):
        decoder.decode(latents(vae, 2))
