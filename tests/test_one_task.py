"""A stream is one task's, on one loop: anything else is refused, and harms nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from streamvae import AVStream, ConcurrentUseError, FrameStream

from .av import AVScene
from .flow import Scene, others, take, until, virtual

Stream = FrameStream | AVStream


def frames_of(stream: Stream) -> AsyncIterator[Any]:
    """One pass over frames."""
    return aiter(stream)


def chunks_of(stream: Stream) -> AsyncIterator[Any]:
    """One pass over chunks."""
    return stream.chunks()


@pytest.mark.parametrize("iterate", [frames_of, chunks_of])
@pytest.mark.parametrize("scene", [Scene, AVScene])
@virtual
async def test_a_second_task_is_refused(
    scene: type[Scene | AVScene], iterate: Callable[[Stream], AsyncIterator[Any]]
) -> None:
    """Two tasks on one iterator would share its frames: the second gets an error, the first all."""
    alone, both = scene(), scene()
    async with alone.stream() as stream:
        expected = len([item async for item in iterate(stream)])
    async with both.stream() as stream:
        items = iterate(stream)

        async def one() -> int:
            return len([item async for item in items])

        first = asyncio.create_task(one())
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(ConcurrentUseError, match="one task at a time"):
                await anext(items)
        assert await first == expected
    await both.nothing_left()


def on_another_loop(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
    """Run it on a loop in a thread of its own, where it may take some seconds at most."""

    async def main() -> object:
        return await asyncio.wait_for(work(), 20)

    return asyncio.run(main())


@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize("what", ["aclose", "anext", "aenter", "collect"])
@pytest.mark.parametrize("scene", [Scene, AVScene])
@virtual
async def test_another_loop_is_refused(
    scene: type[Scene | AVScene], what: str, entered: bool
) -> None:
    """On another loop nobody would be woken: it raises there, and goes on here."""
    here = scene()
    stream = here.stream()
    items = None if entered else aiter(stream)
    if items is None:
        await stream.__aenter__()
    else:
        await anext(items)

    async def work() -> object:
        if what == "anext":
            return await anext(aiter(stream) if items is None else items)
        return await getattr(stream, {"aenter": "__aenter__"}.get(what, what))()

    with pytest.raises(RuntimeError, match="event loop|iterated before"):
        await asyncio.to_thread(on_another_loop, work)
    if items is not None:
        assert len([item async for item in items]) > 10
    await stream.aclose()
    await here.nothing_left()


@virtual
async def test_closing_what_is_over_works_anywhere() -> None:
    """A stream that has ended holds no loop: closing it elsewhere does nothing."""
    scene, seen = Scene(), list[int]()
    stream = scene.stream()
    await take(stream, seen)
    await until(lambda: not others(), "it is over")
    await asyncio.to_thread(on_another_loop, stream.aclose)
    assert seen == scene.expected
    await scene.nothing_left()
