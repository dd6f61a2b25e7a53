"""What user code raises that is no error to Python: an error of the stream, at every position.

Never a hang, never the end of whoever awaits it, never success.
"""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from streamvae import ControlFlowError, HostChunk, StreamInfo
from streamvae.sinks import ThreadSink

from .flow import Scene, no_threads, take, virtual

#: What user code may raise.
RAISED: tuple[type[BaseException], ...] = (
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
)


class Odd(ThreadSink):
    """A sink of blocking code that raises in one of its calls."""

    def __init__(self, where: str, raised: type[BaseException] = ValueError) -> None:
        super().__init__("odd")
        self.where, self.raised = where, raised
        self.stopped = False

    def _at(self, where: str) -> None:
        if self.where == where:
            raise self.raised()

    def start(self, info: StreamInfo) -> None:
        self._at("start")

    def put(self, chunk: HostChunk) -> None:
        if chunk.index == 3:
            self._at("put")

    def finish(self) -> None:
        self._at("finish")

    def stop(self) -> None:
        self.stopped = True
        self._at("stop")


def options_for(
    where: str, raised: type[BaseException], scene: Scene
) -> tuple[Any, dict[str, Any]]:
    """Latents and options of a stream in which ``raised`` is raised, after some frames."""
    calls = 0

    def later(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise raised()

    def latents() -> Iterator[torch.Tensor]:
        try:
            for step in range(scene.latents.shape[2]):
                later()
                yield scene.latents[:, :, step : step + 1]
        except StopIteration as error:  # a generator cannot raise it
            raise ControlFlowError from error

    def transform(pixels: torch.Tensor) -> torch.Tensor:
        later()
        return pixels

    if where == "iterable":
        return latents(), {}
    if where == "transform":
        return None, {"transform": transform}
    if where == "progress":
        return None, {"progress": later}
    return None, {"sinks": (Odd(where, raised), scene.sink)}


@pytest.mark.parametrize("raised", RAISED, ids=lambda each: each.__name__)
@pytest.mark.parametrize("where", ["iterable", "transform", "progress", "start", "put", "finish"])
@virtual
async def test_it_is_an_error_of_the_stream(where: str, raised: type[BaseException]) -> None:
    """Whatever a sync callable raises, the stream ends with that as its error, soon."""
    scene = Scene()
    latents, options = options_for(where, raised, scene)
    seen: list[int] = []
    stream = scene.stream(latents, **options)
    with pytest.raises(ControlFlowError) as error:
        async with asyncio.timeout(60), stream:
            await take(stream, seen)
    assert isinstance(error.value.__cause__, raised)
    assert seen == scene.expected[: len(seen)]
    assert "close" not in scene.sink.calls or where == "finish"
    del error, stream, latents, options  # with the frame of `put`, which is not ours, and its chunk
    await scene.nothing_left()


@pytest.mark.parametrize("raised", RAISED, ids=lambda each: each.__name__)
@virtual
async def test_it_does_not_hide_the_first_error(raised: type[BaseException]) -> None:
    """Raised while a sink is aborted, it leaves the error that came first."""
    scene, sink = Scene(), Odd("stop", raised)
    scene.codec.fail_at = 4
    with pytest.raises(ValueError, match="latent 4"):
        async with scene.stream(sinks=(sink, scene.sink)) as stream:
            await take(stream, [])
    assert sink.stopped
    await scene.nothing_left()


@pytest.mark.parametrize("when", ["loading", "launching"])
@virtual
async def test_a_refused_thread_fails_one_stream(when: str) -> None:
    """Where no thread can be had, that stream says so; the next has them again and is whole."""
    scene = Scene()
    with pytest.raises(RuntimeError, match="can't start new thread") as kept:
        async with contextlib.AsyncExitStack() as stack:
            if when == "loading":
                stack.enter_context(no_threads())
            stream = await stack.enter_async_context(scene.stream())
            stack.enter_context(no_threads())
            await take(stream, [])
    await scene.next_is_right()
    assert kept.value is not None
