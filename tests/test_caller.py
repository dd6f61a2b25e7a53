"""The caller's world reaches the user's code on threads of ours."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from streamvae import collect, iter_decode, save, stream_decode
from streamvae._caller import CallerContext, ThreadState, caller
from streamvae._chunks import HostChunk, StreamInfo
from streamvae._pixels import render
from streamvae.sinks import ThreadSink
from streamvae.testing import FakeBackend, TagCodec, tagged_latents
from tests import tiny
from tests.codecs.walk import noise
from tests.families import pictures
from tests.test_families import FAMILIES

request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")

BFLOAT16 = torch.autocast("cpu", torch.bfloat16)


class Noting(ThreadSink):
    """Notes the request that each of its calls belongs to."""

    def __init__(self) -> None:
        super().__init__("noting")
        self.seen: list[tuple[str, str]] = []

    def note(self, call: str) -> None:
        """Note it."""
        assert threading.current_thread().name == "streamvae sink noting"
        self.seen.append((call, request.get()))

    def start(self, info: StreamInfo) -> None:
        self.note("start")

    def put(self, chunk: HostChunk) -> None:
        self.note("put")

    def finish(self) -> None:
        self.note("finish")

    def stop(self) -> None:
        self.note("stop")


def noting(seen: list[str], latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Latents one by one, with the request that each is made for."""
    try:
        for step in range(latents.shape[2]):
            seen.append(request.get())
            yield latents[:, :, step : step + 1]
    finally:
        seen.append(f"closed for {request.get()}")


async def test_context_variables_reach_every_thread() -> None:
    """Iterables, transforms and sinks see the variables of the task that runs the stream."""
    made: list[str] = []
    transformed: list[str] = []
    sink = Noting()

    def transform(pixels: torch.Tensor) -> torch.Tensor:
        transformed.append(request.get())
        return pixels

    request.set("seventh")
    stream = stream_decode(
        noting(made, tagged_latents(3)),
        TagCodec(2),
        sinks=sink,
        transform=transform,
        backend=FakeBackend(),
    )
    await stream.finish()
    assert made == ["seventh"] * 3 + ["closed for seventh"]
    assert set(transformed) == {"seventh"}
    assert [call for call, _ in sink.seen] == ["start", *["put"] * (len(sink.seen) - 2), "finish"]
    assert {seen for _, seen in sink.seen} == {"seventh"}


async def test_streams_side_by_side_have_each_its_own() -> None:
    """Two streams that share a launch thread keep their requests apart."""
    backend, codec = FakeBackend(), TagCodec(2)

    async def one(name: str) -> None:
        request.set(name)
        made: list[str] = []
        transformed: list[str] = []

        def transform(pixels: torch.Tensor) -> torch.Tensor:
            transformed.append(request.get())
            return pixels

        latents = noting(made, tagged_latents(8))
        await stream_decode(latents, codec, transform=transform, backend=backend).finish()
        assert {*made, *transformed} == {name, f"closed for {name}"}

    await asyncio.gather(*(asyncio.create_task(one(name)) for name in ("a", "b", "c")))
    assert request.get() == "none"


async def test_what_a_call_sets_the_next_one_finds() -> None:
    """A copy for each thread: a span begun in one step ends in another, and the caller's stays."""
    request.set("outer")

    def spans() -> Iterator[torch.Tensor]:
        token = request.set("inner")
        for step in range(3):
            assert request.get() == "inner"
            yield tagged_latents(3)[:, :, step : step + 1]
        request.reset(token)
        assert request.get() == "outer"

    await stream_decode(spans(), TagCodec(2), backend=FakeBackend()).finish()
    assert request.get() == "outer"


async def test_a_stream_that_is_left_ends_in_its_context() -> None:
    """An iterable's clean-up and a sink's ``stop`` belong to the request, too."""
    request.set("eighth")
    made: list[str] = []
    sink = Noting()
    latents = noting(made, tagged_latents(50))
    async with stream_decode(latents, TagCodec(2), sinks=sink, backend=FakeBackend()) as stream:
        async for _ in stream:
            break
    assert made[-1] == "closed for eighth"
    assert sink.seen[-1] == ("stop", "eighth")


@pytest.mark.parametrize("how", ["save", "collect", "iter_decode"])
def test_programs_without_a_loop(how: str) -> None:
    """The loop is in a thread of ours: what runs there, async iterables too, is the caller's."""
    made: list[tuple[str, bool, torch.dtype | None]] = []
    sink = Noting()
    latents = tagged_latents(3)

    def note() -> None:
        on = torch.is_autocast_enabled("cpu")
        made.append((request.get(), on, torch.get_autocast_dtype("cpu") if on else None))

    async def generating() -> AsyncIterator[torch.Tensor]:
        for step in range(3):
            note()
            yield latents[:, :, step : step + 1]

    options = {"sinks": sink, "backend": FakeBackend()}
    token = request.set("script")
    try:
        with torch.autocast("cpu", torch.float16):
            if how == "save":
                save(generating(), TagCodec(2), **options)  # type: ignore[arg-type]
            elif how == "collect":
                collect(generating(), TagCodec(2), **options)  # type: ignore[arg-type]
            else:
                list(iter_decode(generating(), TagCodec(2), **options))  # type: ignore[arg-type]
    finally:
        request.reset(token)
    assert made == [("script", True, torch.float16)] * 3
    assert {seen for _, seen in sink.seen} == {"script"}


def _modes() -> tuple[object, ...]:
    device = torch.get_default_device()
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        device.type,
        torch.get_num_threads(),
    )


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", torch.float16, cache_enabled=False),
        lambda: torch.device("meta"),
    ],
)
def test_torch_s_modes_reach_iterables_and_sinks(
    mode: Callable[[], AbstractContextManager[object]],
) -> None:
    """What torch keeps by thread is there in an iterable and a sink as where the stream is made."""
    seen: list[tuple[object, ...]] = []
    latents = tagged_latents(2)

    def generating() -> Iterator[torch.Tensor]:
        for step in range(2):
            seen.append(_modes())
            yield latents[:, :, step : step + 1]

    class Sink(ThreadSink):
        def put(self, chunk: HostChunk) -> None:
            seen.append(_modes())

    async def run() -> None:
        with mode():
            expected.append(_modes())
            stream = stream_decode(
                generating(), TagCodec(2), sinks=Sink("modes"), backend=FakeBackend()
            )
        await stream.finish()

    expected: list[tuple[object, ...]] = []
    asyncio.run(run())
    assert len(seen) > 2
    assert set(seen) == set(expected)


def test_a_thread_is_as_it_was() -> None:
    """Whatever is entered is left again, also when the call raises."""
    before = _modes()
    with torch.inference_mode(), BFLOAT16, torch.device("meta"):
        inside = CallerContext(ThreadState.capture())
        expected = _modes()
    assert inside.run(_modes) == expected

    def broken() -> None:
        raise StopIteration("broken")

    with pytest.raises(StopIteration, match="broken"):
        inside.run(broken)
    assert _modes() == before


def test_outside_of_a_stream() -> None:
    """A sink that is driven by hand runs as whoever drives it."""
    with BFLOAT16:
        assert caller().run(_modes) == _modes()


@pytest.mark.parametrize("output", ["uint8", "float32", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
async def test_autocast_is_carried(output: str, dtype: torch.dtype) -> None:
    """Under autocast a stream gives what ``vae.decode`` gives in the same place."""
    vae = tiny.wan21()
    z = torch.randn(1, 4, 4, 4, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad(), BFLOAT16:
        # vae.decode itself takes no float64 then
        decoded = vae.decode(z.float() if dtype is torch.float64 else z).sample
        frames = await stream_decode(z, vae, output=output).collect()  # type: ignore[arg-type]
    assert decoded.dtype is torch.bfloat16
    expected = render(decoded, "video", output).float().numpy()  # type: ignore[arg-type]
    given = frames.float().numpy() if isinstance(frames, torch.Tensor) else frames
    assert np.array_equal(given, expected)
    with torch.no_grad():
        plain = render(vae.decode(z.float()).sample, "video", output)  # type: ignore[arg-type]
    assert not np.array_equal(given, plain.float().numpy())


@pytest.mark.parametrize("name", [name for name, one in FAMILIES.items() if one.half == 0.0])
async def test_every_family_under_autocast(name: str) -> None:
    """Families that are exact in bfloat16 are exact under autocast to it."""
    family = FAMILIES[name]
    vae, count = family.make(), max(family.lengths[:3])
    z, call = family.noise(count), family.call(count)
    with torch.no_grad(), BFLOAT16, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = render(family.reference(vae, z, call), "video", "float32").numpy()
        torch.manual_seed(0)
        frames = await stream_decode(z, vae, call=call, output="float32").collect()
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize(
    "family", [one for one in pictures.PICTURES if one.halves], ids=lambda family: family.name
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # torch's norms, under autocast
async def test_every_picture_under_autocast(family: pictures.Picture, dtype: torch.dtype) -> None:
    """Pictures equal vae.decode's under the same autocast, latents of either dtype."""
    vae, z = family.make(), noise(3, *family.latents, dtype=dtype)
    with BFLOAT16, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = render(pictures.one_by_one(family, vae, z), "image", "float32")
        torch.manual_seed(0)
        frames = await stream_decode(z, vae, call=family.call(), output="float32").collect()
    assert np.array_equal(frames, expected[:, 0].numpy())


async def test_autocast_reaches_transforms_and_ends_with_the_stream() -> None:
    """A transform is under it, what is ours is not, and the launch thread is free of it after."""
    seen: list[bool] = []

    def transform(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return pixels

    backend = FakeBackend()
    with BFLOAT16:
        under = stream_decode(tagged_latents(2), TagCodec(2), transform=transform, backend=backend)
    await under.finish()
    plain = stream_decode(tagged_latents(2), TagCodec(2), transform=transform, backend=backend)
    await plain.finish()
    assert seen == [True] * (len(seen) // 2) + [False] * (len(seen) // 2)
    assert not backend.run(lambda: torch.is_autocast_enabled("cpu")).result(10)
