"""Plans held to what streams then take: chunks, frames, and memory."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib
import pkgutil
import threading
import weakref
from collections.abc import Iterator

import accelerate
import pytest
import torch

import tests.families
from streamvae import LatentsError, Plan, StreamInfo, UsageError, stream_decode
from streamvae._plan import Rehearsed
from streamvae._rehearsal import _Walk, planned
from streamvae.abc import Codec
from streamvae.codecs import ModuleCodec, codec_for
from streamvae.testing import TagCodec
from tests import tiny
from tests.codecs.walk import noise, whole
from tests.families.family import Family
from tests.families.images import IMAGES as PICTURES


def _families() -> Iterator[Family]:
    for module in pkgutil.iter_modules(tests.families.__path__):
        found = getattr(importlib.import_module(f"tests.families.{module.name}"), "FAMILIES", ())
        yield from (family for family in found if isinstance(family, Family))


FAMILIES = {family.name: family for family in _families()}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)

#: One for each way of walking time, also walked for four times as long.
LONG = ("wan21", "hunyuan15", "ltx", "hunyuan_video", "svd")


class Measured(_Walk):
    """The same walk over tensors that are there, every chunk of it."""

    def whole(self, chunks: tuple[int, ...]) -> Rehearsed | None:
        """Walk, counting off the weights whose place others take (the old ``weight_norm``)."""
        self._enter()
        self._ledger.live = 0
        return super().whole(chunks)

    def _enter(self) -> None:
        assert isinstance(self._codec, ModuleCodec)
        for part in self._codec.module.modules():
            for own in vars(part).values():
                if isinstance(own, torch.Tensor):
                    self._ledger._enter(own.untyped_storage())

    def _period(self, sizes: tuple[int, ...]) -> int:
        return 0


@torch.no_grad()
def check(codec: Codec, plan: Plan) -> None:
    """Hold a plan to the walk itself."""
    with torch.random.fork_rng(devices=[]):
        measured = Measured(codec, plan.shape, plan.output).whole(plan.chunks)
    assert measured is not None
    assert plan.frames == measured.frames
    assert plan.drained == measured.drained
    assert plan.state_bytes == measured.state
    assert plan.chunk_bytes == measured.chunk
    assert plan.launch_bytes == pytest.approx(measured.launch, rel=0.03)
    assert sum(plan.chunks) == plan.shape[codec.axis]
    assert sum(plan.frames) + plan.drained == plan.total == codec.frames(sum(plan.chunks))


@each_family
def test_plans_come_true(family: Family) -> None:
    """Frames of each chunk, state and peak are those of the walk, for every family."""
    length = sorted(family.lengths)[len(family.lengths) // 2]
    codec = codec_for(family.make(), family.call(length))
    check(codec, codec.plan(tuple(family.noise(length).shape)))


@pytest.mark.parametrize("name", LONG)
def test_long_plans_come_true(name: str) -> None:
    """What a plan passes over, since it only repeats, is as it says; else nothing grows."""
    family = FAMILIES[name]
    vae = family.make()
    plans = []
    for length in (4 * max(family.lengths), 8 * max(family.lengths)):
        codec = codec_for(vae, family.call(length))
        plans.append(codec.plan(tuple(family.noise(length).shape)))
    one, twice = plans
    check(codec_for(vae, family.call(one.shape[2])), one)
    if not family.growing:
        # Some keep a few channels of each latent that is known beforehand, and nothing else.
        latents = family.noise(one.shape[2]).nbytes if codec.wants_all else 0
        assert twice.state_bytes == one.state_bytes + latents
        assert twice.device_bytes == pytest.approx(one.device_bytes + latents, abs=latents)


@pytest.mark.parametrize("name", ["wan21", "hunyuan_video"])
def test_plans_with_tiles_come_true(name: str) -> None:
    """With spatial tiling on, as with larger batches cut into slices, a plan is the walk's."""
    family = FAMILIES[name]
    vae = family.make()
    assert family.tile is not None
    family.tile(vae)
    vae.enable_slicing()
    length = min(length for length in family.lengths if length > 1)
    shape = tuple(family.noise(length, batch=2, size=family.tiled).shape)
    codec = codec_for(vae, family.call(length))
    check(codec, codec.plan(shape))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_plans_of_pictures(picture) -> None:
    """Pictures come one by one and leave nothing behind."""
    codec = codec_for(picture.make())
    plan = codec.plan((3, *picture.latents))
    check(codec, plan)
    assert (plan.chunks, plan.frames, plan.state_bytes) == ((1, 1, 1), (1, 1, 1), 0)


@pytest.mark.parametrize("output", ["uint8", "float32", "device"])
def test_plans_of_sound(output) -> None:
    """Sound keeps latents, and holds samples back until the end; it is never quantised."""
    codec = codec_for(tiny.oobleck(strides=(2, 3, 2)))
    plan = codec.plan((1, 8, 50), 8, output=output)
    check(codec, plan)
    assert plan.drained > 0
    assert plan.output == ("device" if output == "device" else "float32")


def live() -> int:
    """Bytes of all tensors alive, by another count."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


@torch.no_grad()
def test_state_is_what_is_alive() -> None:
    """The state that a plan foretells is what a stream's tensors weigh between two chunks."""
    codec = codec_for(tiny.wan21())
    plan = codec.plan((1, 4, 9, 3, 2))
    decoder, before = codec.decoder(), live()
    latents = noise(1, 4, 9, 3, 2)
    decoder.begin(latents)
    before += latents.nbytes
    for piece in latents.split(1, 2):
        decoder.decode(piece)
        del piece
    assert live() - before == plan.state_bytes


@torch.no_grad()
def test_normalised_weights_are_no_state() -> None:
    """Weights that the old ``weight_norm`` computes at every call take the last ones' place."""
    codec = codec_for(tiny.oobleck(strides=(2, 3, 2)))
    plan = codec.plan((1, 8, 50), 8)
    decoder, before = codec.decoder(), live()
    latents = noise(1, 8, 50)
    before += latents.nbytes
    kept = []
    for piece in latents.split(8, 2):
        decoder.decode(piece)
        del piece
        kept.append(live() - before)
    assert max(kept) == plan.state_bytes > 0


def test_what_queues_hold() -> None:
    """Peaks are a launch and the chunks that may be alive beside it, by the room in queues."""
    codec = codec_for(tiny.wan21())
    plans = {queue: codec.plan((1, 4, 40, 3, 2), queue_size=queue) for queue in (1, 2)}
    launch, chunk = plans[2].launch_bytes, plans[2].chunk_bytes
    assert chunk == 4 * 24 * 16 * 3
    assert [plan.device_bytes for plan in plans.values()] == [
        launch + 2 * chunk,
        launch + 3 * chunk,
    ]
    assert [plan.host_bytes for plan in plans.values()] == [5 * chunk, 7 * chunk]
    left = codec.plan((1, 4, 40, 3, 2), output="device")
    assert left.chunk_bytes == 4 * chunk
    assert left.host_bytes == 0
    assert left.device_bytes == left.launch_bytes + 6 * left.chunk_bytes


async def test_plan_of_a_stream() -> None:
    """``info.plan`` is there with the latents' length, and is how the stream then goes."""
    vae = tiny.wan21()
    latents = noise(1, 4, 6, 3, 2)
    async with stream_decode(latents, vae, queue_size=1) as stream:
        plan = stream.info.plan
        assert plan is not None
        given = [len(chunk) async for chunk in stream.chunks()]
    assert tuple(given) == plan.frames == (1, 4, 4, 4, 4, 4)
    assert (plan.total, plan.queue_size, plan.output) == (21, 1, "uint8")
    assert (
        await asyncio.to_thread(lambda: plan.state_bytes)
        == codec_for(vae).plan(tuple(latents.shape)).state_bytes
    )
    async with stream_decode(list(latents.split(1, 2)), vae) as stream:
        assert stream.info.plan is None


async def test_what_is_not_foretold() -> None:
    """A transform's memory and a foreign codec's are unknown, and the plan says so."""
    async with stream_decode(noise(1, 4, 2, 3, 2), tiny.wan21(), transform=torch.neg) as stream:
        plan = stream.info.plan
        assert plan is not None
        assert (plan.frames, plan.drained) == ((1, 4), 0)
        assert (plan.state_bytes, plan.launch_bytes, plan.chunk_bytes) == (None, None, None)
        assert (plan.device_bytes, plan.host_bytes) == (None, None)
        assert "decoder state: unknown" in str(plan)
    codec = TagCodec(2)
    foreign = planned(
        codec, (1, 1, 4, 2, 2), None, "exact", output="uint8", queue_size=2, device="cpu",
        again=lambda: codec,
    )  # fmt: skip
    assert foreign.state_bytes is None


def test_autoencoders_that_cannot_be_copied() -> None:
    """Hooks of diffusers' own and methods that were replaced make memory unknown, not wrong."""
    cast = tiny.wan21()
    cast.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    replaced = tiny.wan21()
    forward = replaced.decoder.conv_in.forward
    replaced.decoder.conv_in.forward = lambda *args: 1 * forward(*args)
    for vae in (cast, replaced):
        plan = codec_for(vae).plan((1, 4, 3, 3, 2))
        assert plan.frames == (1, 4, 4)
        assert plan.state_bytes is None


def test_offloaded_and_compiled_autoencoders() -> None:
    """Hooks of accelerate's and compiled parts change nothing of the plan, nor it of them."""
    shape = (1, 4, 5, 3, 2)
    expected = codec_for(tiny.wan21()).plan(shape)
    hooked, compiled, method = (tiny.wan21() for _ in range(3))
    accelerate.cpu_offload(hooked, execution_device="cpu")
    compiled.decoder = torch.compile(compiled.decoder, backend="eager")
    method.decode = torch.compile(method.decode, backend="eager")
    for vae in (hooked, compiled, method):
        before = {name: id(one) for name, one in vae.named_parameters()}
        plan = codec_for(vae).plan(shape)
        assert (plan.state_bytes, plan.launch_bytes) == (
            expected.state_bytes,
            expected.launch_bytes,
        )
        assert {name: id(one) for name, one in vae.named_parameters()} == before
    assert torch.equal(whole(hooked, noise(*shape)), whole(tiny.wan21(), noise(*shape)))


def fakes() -> list[object]:
    """Every tensor without numbers that is alive."""
    return [one for one in gc.get_objects() if type(one).__name__ == "FakeTensor"]


@pytest.mark.parametrize("name", ["wan21", "magvit", "ltx-0.9.1", "ltx2_diffusion"])
def test_a_rehearsal_touches_nothing(name: str) -> None:
    """Weights, what codec and autoencoder keep, and generators are as they were."""
    family = FAMILIES[name]
    length = min(family.lengths)
    latents = family.noise(length)
    vae, call = family.make(), family.call(length)
    codec = codec_for(vae, call)
    generators = [one for one in call.values() if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in (torch.default_generator, *generators)]
    weights = copy.deepcopy(vae.state_dict())
    elsewhere = {id(one) for one in fakes()}  # torch.compile keeps some, too

    assert codec.plan(tuple(latents.shape)).state_bytes is not None

    after = [one.get_state() for one in (torch.default_generator, *generators)]
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))
    assert all(torch.equal(weights[key], one) for key, one in vae.state_dict().items())
    # No tensor without numbers has got anywhere.
    gc.collect()
    assert not [one for one in fakes() if id(one) not in elsewhere]


def test_rehearsed_once() -> None:
    """However many threads ask, one of them rehearses, and only when it is asked."""
    asked = list[int]()
    plan = codec_for(tiny.wan21()).plan((1, 4, 3, 3, 2))
    rehearse = plan._rehearse
    counting = Plan(
        **{name: getattr(plan, name) for name in (
            "family", "kind", "shape", "mode", "output", "device", "queue_size", "chunks", "total"
        )},
        _count=plan._count,
        _rehearse=lambda: (asked.append(1), rehearse())[1],
    )  # fmt: skip
    assert counting.frames == (1, 4, 4)
    assert asked == []
    threads = [threading.Thread(target=lambda: counting.device_bytes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [1]
    assert counting.device_bytes == plan.device_bytes


async def test_what_is_known_of_a_stream_keeps_no_weights() -> None:
    """``info`` may be kept without the autoencoder: what was not asked in time is unknown."""

    async def stream() -> tuple[StreamInfo, weakref.ref[torch.nn.Module]]:
        vae = tiny.wan21()
        async with stream_decode(noise(1, 4, 2, 3, 2), vae) as stream:
            await stream.finish()
            return stream.info, weakref.ref(vae)

    info, vae = await stream()
    gc.collect()
    assert vae() is None
    assert info.plan is not None
    assert info.plan.chunks == (1, 1)
    assert info.plan.state_bytes is None


def test_bad_latents_and_options() -> None:
    """What a stream would refuse, a plan refuses."""
    codec = codec_for(tiny.wan21())
    with pytest.raises(LatentsError, match="expected latents"):
        codec.plan((1, 5, 3, 3, 2))
    with pytest.raises(UsageError, match="expected latents_per_chunk=1 in exact mode"):
        codec.plan((1, 4, 9, 3, 2), 2)
    fast = codec.plan((1, 4, 9, 3, 2), 4, mode="fast")
    assert fast.chunks == (1, 4, 4)
    check(codec, fast)


def test_for_people() -> None:
    """A plan says in a few lines what it is about."""
    said = str(codec_for(tiny.wan21()).plan((1, 4, 37, 6, 8)))
    assert said.splitlines()[:3] == [
        "AutoencoderKLWan on cpu, latents 1 x 4 x 37 x 6 x 8: 145 frames",
        "chunks: 37 (of 37 x 1 latents)",
        "frames of each: 1, 36 x 4",
    ]
    assert said.splitlines()[3].startswith("decoder state: 1.7 MiB")
