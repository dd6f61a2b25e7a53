"""One autoencoder for many requests: each as if it were alone, in turn, and never for ever."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from streamvae import ClosedError, LatentsError, UsageError, stream_decode
from streamvae.codecs import codec_for
from streamvae.live import Busy, RequestTimeout, Service
from streamvae.live._admission import SOONEST, Need
from streamvae.testing import FakeBackend, MemorySink, TagCodec, one_by_one, tagged_latents
from tests import tiny
from tests.codecs.walk import noise, whole
from tests.flow import LATENTS, UNIT, Scene, take, until, virtual
from tests.test_stream_pipeline import call as wan_call
from tests.test_stream_pipeline import pictures, wan

EIGHT = range(8)


def service(scene: Scene, **options: Any) -> Service:
    """A service over a scene's codec and device."""
    return Service(scene.codec, backend=scene.backend, **options)


def clip(seed: int, latents: int = LATENTS) -> torch.Tensor:
    """Tagged latents of a stream of its own."""
    return tagged_latents(latents, start=10 * seed)


@virtual
async def test_eight_streams_are_each_as_if_alone() -> None:
    """Eight requests at once each give their own frames, in order, and leave nothing behind."""
    scene = Scene()
    seen: list[list[int]] = [[] for _ in EIGHT]
    sinks = [MemorySink() for _ in EIGHT]

    async def one(seed: int) -> None:
        async with given.stream(clip(seed), sinks=sinks[seed]) as stream:
            await take(stream, seen[seed])

    async with service(scene, max_streams=8) as given:
        await asyncio.gather(*map(one, EIGHT))
        assert (given.active, given.waiting) == (0, 0)

    for seed in EIGHT:
        assert seen[seed] == sinks[seed].tags == scene.codec.expected(clip(seed))
    await scene.nothing_left()


async def test_eight_clips_of_a_real_autoencoder() -> None:
    """Eight requests over one tiny Wan each give the bits that ``vae.decode`` gives."""
    vae = tiny.wan21()
    clips = [noise(1, 4, 1 + seed % 4, 3, 2, seed=seed) for seed in EIGHT]

    async def one(latents: torch.Tensor) -> np.ndarray:
        async with given.stream(latents, output="float32") as stream:
            return await stream.collect()

    async with Service(vae, max_streams=4, warmup=(1, 4, 3, 3, 2)) as given:
        assert given.codec.family == "AutoencoderKLWan"
        together = await asyncio.gather(*map(one, clips))

    for frames, latents in zip(together, clips, strict=True):
        assert np.array_equal(frames, whole(vae, latents).float().movedim(1, -1).numpy())


@virtual
async def test_streams_take_turns() -> None:
    """No stream is more than one chunk ahead of another that wants to go on."""
    scene = Scene()
    done = [0, 0, 0]
    spread: list[int] = []

    async def one(seed: int) -> None:
        async with given.stream(clip(seed)) as stream:
            async for chunk in stream.chunks():
                done[seed] += 1
                if chunk.index < LATENTS - 1:
                    spread.append(max(done) - min(done))

    async with service(scene) as given:
        await asyncio.gather(*map(one, range(3)))

    assert done == [LATENTS] * 3
    assert max(spread) <= 1


@virtual
async def test_first_frames_come_in_turn() -> None:
    """The k-th stream's first frame comes within 2k times the time of a first chunk, alone."""
    scene = Scene()
    loop = asyncio.get_running_loop()

    async def first() -> float:
        began = loop.time()
        async with given.stream(clip(1)) as stream:
            frames = aiter(stream)
            await anext(frames)
            arrived = loop.time() - began
            async for _ in frames:  # it goes on, in the way of the others
                pass
            return arrived

    async with service(scene, max_streams=8) as given:
        alone = await first()
        arrived = sorted(await asyncio.gather(*(first() for _ in EIGHT)))

    assert all(seconds <= 2 * k * alone for k, seconds in enumerate(arrived, 1))


@virtual
async def test_one_who_comes_late_sees_a_picture_soon() -> None:
    """A first chunk goes before the later ones of those who are at it."""
    scene = Scene(codec=TagCodec(1))
    loop = asyncio.get_running_loop()
    async with service(scene, max_streams=8) as given:
        requests = [given.stream(clip(seed, 20)) for seed in range(6)]
        running = [asyncio.create_task(_finished(request)) for request in requests]
        await asyncio.sleep(8.5 * 10 * UNIT)
        began = loop.time()
        async with given.stream(clip(7)) as stream:
            await anext(aiter(stream))
            waited = loop.time() - began
        await asyncio.gather(*running)

    # Two that are launched, its own, and its copy; not the six that wait.
    assert waited < 4.5 * 10 * UNIT


async def _finished(request: Any) -> None:
    async with request as stream:
        await stream.finish()


@virtual
async def test_waiting_for_a_place() -> None:
    """Requests wait in the order of coming, know their place, and are let in one by one."""
    scene = Scene()
    async with service(scene, max_streams=1, max_waiting=2) as given:
        async with given.stream(clip(0)) as stream:
            requests = [given.stream(clip(seed)) for seed in (1, 2)]
            assert [request.position for request in requests] == [0, 0]
            waiting = [asyncio.create_task(_finished(request)) for request in requests]
            await until(lambda: given.waiting == 2, "the queue")
            assert [request.position for request in requests] == [1, 2]
            with pytest.raises(Busy, match="is full; try again in") as refused:
                await given.stream(clip(3)).__aenter__()
            assert refused.value.retry_after >= SOONEST
            await stream.finish()
            # The block is not left yet: the place was given back by the stream's end.
            await until(lambda: given.waiting == 1, "the next one")
            assert [request.position for request in requests] == [0, 1]
        await asyncio.gather(*waiting)
        assert given.health()["active"] == 0
    await scene.nothing_left()


@virtual
async def test_retry_after_is_measured() -> None:
    """When to come again follows from how far the streams are that run."""
    scene = Scene(backend=FakeBackend(decode=4.0), codec=TagCodec(1))
    async with service(scene, max_streams=1, max_waiting=0) as given:
        async with given.stream(clip(0, 5)) as stream:
            frames = aiter(stream)
            for _ in range(2):
                await anext(frames)
            with pytest.raises(Busy) as refused:
                await given.stream(clip(1)).__aenter__()
            # Two of five frames took eight seconds.
            assert refused.value.retry_after == pytest.approx(12, rel=0.1)
            async for _ in frames:
                pass
        assert given.health()["retry_after"] == SOONEST


@virtual
async def test_a_request_in_time_and_one_too_late() -> None:
    """A request has so many seconds, waiting included; then it ends, and says so."""
    scene = Scene()
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    seconds = 45 * UNIT
    async with service(scene, timeout=seconds, max_streams=1) as given:
        began = loop.time()
        with pytest.raises(RequestTimeout, match="did not end within"):
            async with given.stream(clip(0)) as stream:
                await take(stream, seen)
        assert loop.time() - began == pytest.approx(seconds, abs=UNIT)
        assert seen == scene.codec.expected(clip(0))[: len(seen)] != []
        async with given.stream(clip(1, 1)) as stream:
            assert (await stream.collect()).shape[1] == 1

        async with given.stream(clip(2), timeout=10**4) as stream:
            with pytest.raises(RequestTimeout) as late:
                await given.stream(clip(3), timeout=UNIT).__aenter__()
            assert late.value.seconds == UNIT
            assert given.waiting == 0
            await stream.finish()
        assert given._books.cancelled == {"timeout": 2}
    await scene.nothing_left()


@virtual
async def test_reasons_of_those_who_leave() -> None:
    """Left, cancelled, given up waiting, failed: each is counted once, and frees its place."""
    scene = Scene()
    async with service(scene, max_streams=1) as given:
        async with given.stream(clip(0)) as stream:
            await anext(aiter(stream))
        holding = asyncio.create_task(_finished(given.stream(clip(1))))
        await until(lambda: given.active == 1, "the stream")
        waiting = asyncio.create_task(_finished(given.stream(clip(2))))
        await until(lambda: given.waiting == 1, "the queue")
        for task in (waiting, holding):
            task.cancel()
            await asyncio.wait([task])
        scene.codec.fail_at = 3
        with pytest.raises(ValueError, match="latent 3 was to fail"):
            await _finished(given.stream(clip(3)))
        scene.codec.fail_at = None
        await _finished(given.stream(clip(4)))

        assert given._books.cancelled == {"left": 1, "cancelled": 1, "waiting": 1}
        assert given._books.ended == {"finished": 1, "failed": 1, "cancelled": 2}
        assert (given.active, given.waiting) == (0, 0)
    await scene.nothing_left()


@virtual
async def test_a_dropped_stream_gives_its_place_back() -> None:
    """A stream that nobody holds any more stops, and the next one is let in."""
    scene = Scene()
    async with service(scene, max_streams=1) as given:
        request = given.stream(clip(0))
        stream = await request.__aenter__()
        await anext(aiter(stream))
        del request, stream
        gc.collect()
        await until(lambda: given.active == 0, "its place")
        await _finished(given.stream(clip(1)))
    await scene.nothing_left()


@virtual
async def test_draining() -> None:
    """Those who wait are sent away, those who run may end, and after the grace they are ended."""
    scene = Scene()
    async with service(scene, max_streams=2) as given:
        quick = asyncio.create_task(_finished(given.stream(clip(0, 2))))
        slow = asyncio.create_task(_finished(given.stream(clip(1))))
        await until(lambda: given.active == 2, "both")
        waiting = asyncio.create_task(_finished(given.stream(clip(2))))
        await until(lambda: given.waiting == 1, "the queue")

        draining = asyncio.create_task(given.drain(60 * UNIT))
        with pytest.raises(Busy, match="draining and takes no more"):
            await waiting
        assert given.health()["status"] == "draining"
        with pytest.raises(Busy) as refused:
            await given.stream(clip(3)).__aenter__()
        assert refused.value.reason == "draining"
        await quick
        await draining
        assert given.active == 0
        with pytest.raises(ClosedError, match="one that drained"):
            await slow
        await given.drain(0)
        assert given._books.cancelled == {"drain": 1}
        assert given._books.refused == {"draining": 2}
    assert given.health()["status"] == "closed"
    await scene.nothing_left()


@virtual
async def test_leaving_drains() -> None:
    """Leaving the block in good order waits for streams; leaving it by an error ends them."""
    for error, whole_stream in ((None, True), (RuntimeError("over"), False)):
        scene = Scene()
        seen: list[int] = []

        async def watch(given: Service, seen: list[int] = seen) -> None:
            async with given.stream(clip(0)) as stream:
                await take(stream, seen)

        try:
            async with service(scene) as given:
                watching = asyncio.create_task(watch(given))
                await until(lambda: bool(seen), "the first frame")  # noqa: B023
                if error is not None:
                    raise error
        except RuntimeError:
            pass
        await asyncio.wait([watching])
        assert (watching.exception() is None) == whole_stream
        assert (seen == scene.codec.expected(clip(0))) == whole_stream
        await scene.nothing_left()


@virtual
async def test_one_let_in_while_draining_begins() -> None:
    """A request whose place was given just as draining began is sent away, and nothing hangs."""
    scene = Scene()
    async with service(scene, max_streams=1) as given:
        held = given._admission.enter(Need())
        assert held is not None
        waiting = asyncio.create_task(_finished(given.stream(clip(1))))
        await until(lambda: given.waiting == 1, "the queue")
        held.leave()
        assert given.active == 1
        await given.drain(0)
        with pytest.raises(Busy):
            await waiting
        assert given.active == 0
    await scene.nothing_left()


@virtual
async def test_previews_are_behind() -> None:
    """A preview's stream gets a chunk when the others have had several each."""
    scene = Scene()
    arrived: list[str] = []

    async def one(name: str, **options: Any) -> None:
        async with given.stream(clip(0), **options) as stream:
            async for chunk in stream.chunks():
                del chunk
                arrived.append(name)

    async with service(scene) as given:
        preview = asyncio.create_task(one("preview", priority="preview"))
        await until(lambda: given.active == 1, "the preview")
        await asyncio.gather(preview, *(one("final") for _ in range(2)))

    last_final = len(arrived) - 1 - arrived[::-1].index("final")
    assert 1 <= arrived[:last_final].count("preview") <= 6
    assert arrived.count("preview") == LATENTS


async def test_admission_by_the_plan_of_memory(tmp_path: Path) -> None:
    """What a request reserves is what its plan foretells, wherever its latents are."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 3, 2)
    save_file({"latents": latents}, tmp_path / "clip.safetensors")
    need = Need.of(codec_for(vae).plan(tuple(latents.shape), output="float32"))
    assert need is not None
    budget = 2 * need.kept + need.working

    async with Service(vae, max_streams=4, memory=budget) as given:
        for shape_known in (latents, tmp_path / "clip.safetensors", latents.numpy()):
            async with given.stream(shape_known, output="float32") as stream:
                assert given.health()["memory_reserved"] == need.kept + need.working
                assert np.array_equal(
                    await stream.collect(), whole(vae, latents).movedim(1, -1).numpy()
                )
        async with given.stream(one_by_one(latents)) as stream:
            assert given.health()["memory_reserved"] == budget // 4
            await stream.finish()
        async with (
            given.stream(latents, output="float32"),
            given.stream(latents, output="float32"),
        ):
            third = given.stream(latents, output="float32")
            entering = asyncio.create_task(_finished(third))
            await until(lambda: third.position == 1, "the queue")
            assert given.active == 2
        await entering
        with pytest.raises(LatentsError, match="expected latents that decode in"):
            await given.stream(noise(1, 4, 3, 16, 16)).__aenter__()
        with pytest.raises(LatentsError):
            await given.stream(noise(1, 5, 3, 3, 2)).__aenter__()
        assert (given.active, given.waiting) == (0, 0)


async def test_a_codec_of_ones_own_takes_its_share() -> None:
    """Where no plan can tell, each stream takes an equal part; what does not fit is refused."""
    async with Service(TagCodec(), max_streams=4, memory=400, backend=FakeBackend()) as given:
        async with given.stream(tagged_latents(2)) as stream:
            assert given.health()["memory_reserved"] == 100
            await stream.finish()
        async with given.stream(tagged_latents(2), transform=lambda pixels: pixels) as stream:
            assert given.health()["memory_reserved"] == 100
        with pytest.raises(LatentsError, match="expected latents of shape"):
            await given.stream(noise(1, 5, 3, 3, 2)).__aenter__()


async def test_a_pipeline_s_latents() -> None:
    """A service over a pipeline decodes its latents as the pipeline does."""
    pipe = wan()
    latents = pipe(**wan_call(), output_type="latent", return_dict=False)[0]

    async with Service(pipe, memory=2**30) as given, given.stream(latents) as stream:
        frames = await stream.collect()

    assert np.array_equal(frames[0], pictures(pipe))


async def test_the_embedded_autoencoder_is_loaded_once() -> None:
    """Streams of a service without a source share one module."""
    async with Service() as given:
        module = given.codec.module  # type: ignore[attr-defined]
        latents = noise(1, given.codec.channels, 1, 2, 2)
        frames = []
        for _ in range(2):
            async with given.stream(latents) as stream:
                frames.append(await stream.collect())
        assert given._source is module
        alone = await stream_decode(latents, module).collect()
    assert all(np.array_equal(one, alone) for one in frames)


async def test_what_it_refuses() -> None:
    """Limits that are none, a second entering, a request outside, a source that is none."""
    for options in (
        {"max_streams": 0},
        {"max_waiting": -1},
        {"memory": 1.5},
        {"timeout": 0.0},
        {"device": "nowhere"},
    ):
        with pytest.raises(UsageError, match="expected"):
            Service(TagCodec(), **options)  # type: ignore[arg-type]
    given = Service(TagCodec(), backend=FakeBackend())
    with pytest.raises(ClosedError, match="inside 'async with'"):
        given.stream(tagged_latents(1))
    assert given.health()["status"] == "new"
    async with given:
        with pytest.raises(ClosedError, match="expected a fresh service"):
            await given.__aenter__()
        with pytest.raises(UsageError, match="expected timeout to be positive"):
            given.stream(tagged_latents(1), timeout=-1)
        with pytest.raises(UsageError, match="expected priority"):
            given.stream(tagged_latents(1), priority="high")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="expected fps"):
            given.stream(tagged_latents(1), fps=0)
        request = given.stream(tagged_latents(1))
        await _finished(request)
        with pytest.raises(ClosedError, match="expected a fresh request"):
            await request.__aenter__()
    with pytest.raises(TypeError, match="expected"):
        await Service(object()).__aenter__()


async def test_a_device_that_is_lost_is_told() -> None:
    """After an error that only a new process gets rid of, health says so."""
    codec = TagCodec()
    codec.decoder = _lost  # type: ignore[method-assign]
    async with Service(codec, backend=FakeBackend()) as given:
        assert given.health()["status"] == "ok"
        with pytest.raises(torch.AcceleratorError):
            await _finished(given.stream(tagged_latents(1)))
        assert given.health()["status"] == "failed"


def _lost() -> Any:
    raise torch.AcceleratorError("device lost")
