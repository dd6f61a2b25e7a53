"""What tests of the flow share: virtual time, a scene of fakes, and what must be left of it."""

import asyncio
import functools
import gc
import inspect
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import torch

from streamvae import Frame, FrameStream, stream_decode
from streamvae.abc import Rendered
from streamvae.testing import FakeBackend, MemorySink, TagCodec, run_virtual, tagged_latents

P = ParamSpec("P")

#: Latents of a scene: more than all queues hold, so that a stream is always cut off in the middle.
LATENTS = 12

#: Seconds that times here are given in: few polls, so that virtual time stays cheap.
UNIT = 0.003


def virtual(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test in virtual time, on a loop of its own; it must leave no task."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            await no_task_left()

        run_virtual(main())

    # Not to be taken for the coroutine function it wraps.
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def others() -> set[asyncio.Task[Any]]:
    """Every task but the one that asks."""
    return asyncio.all_tasks() - {asyncio.current_task()}


async def until(condition: Callable[[], bool], what: str, *, seconds: float = 10) -> None:
    """Wait for a state; in virtual time that costs none, and threads work meanwhile."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(seconds / 1000)
    raise AssertionError(f"waited in vain: {what}")


async def no_task_left() -> None:
    """Cancelled tasks get the turns they need to end; then there must be none."""
    for _ in range(50):
        if not others():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"tasks left behind: {others()}")


def no_thread_left(*, but: tuple[str, ...] = ()) -> None:
    """No thread of streamvae is left, those of devices and of ``but`` excepted."""
    allowed = ("streamvae launch", "streamvae copy", *but)
    for thread in threading.enumerate():
        if thread.name.startswith("streamvae") and not thread.name.startswith(allowed):
            thread.join(10)
            assert not thread.is_alive(), f"thread left behind: {thread.name}"


async def take(
    frames: AsyncIterable[Frame], seen: list[int], *, stop_after: int | None = None
) -> None:
    """Read frames (their tags) into ``seen``; keep none of them. Leave by ``break`` if told to."""
    async for frame in frames:
        seen.append(tag(frame.data))
        del frame
        if len(seen) == stop_after:
            break


def tag(data: Any) -> int:
    """A frame's first byte."""
    return int(data.reshape(-1)[0])


@dataclass
class Scene:
    """A device, a codec and a sink, as a stream would find them."""

    queue_size: int = 2
    backend: FakeBackend = field(
        default_factory=lambda: FakeBackend(decode=10 * UNIT, download=3 * UNIT)
    )
    codec: TagCodec = field(default_factory=lambda: TagCodec(2))
    sink: MemorySink = field(default_factory=lambda: MemorySink(seconds=2 * UNIT))
    latents: torch.Tensor = field(default_factory=lambda: tagged_latents(LATENTS, start=40))

    @property
    def expected(self) -> list[int]:
        """The tags of the whole stream."""
        return self.codec.expected(self.latents)

    def before_latent(self, latent: int) -> list[int]:
        """The tags of the frames that come before those of ``latent``."""
        return self.expected[: self.codec.frames(latent) if latent else 0]

    def stream(self, latents: Any = None, **options: Any) -> FrameStream:
        """A stream of this scene."""
        options = {"sinks": self.sink, "queue_size": self.queue_size} | options
        return stream_decode(
            self.latents if latents is None else latents,
            self.codec,
            backend=self.backend,
            **options,
        )

    async def nothing_left(self, *, but: tuple[str, ...] = ()) -> None:
        """Every task, thread, turn, slot, chunk and decoder was given back."""
        await no_task_left()
        no_thread_left(but=but)
        backend = self.backend
        await until(
            lambda: not (backend.unfinished or backend.copying or backend.arriving),
            "the device is idle",
        )
        await until(lambda: not self.codec.open_decoders, "the decoder is closed")
        await self._touch()
        if backend.device_chunks.alive or backend.host_chunks.alive:
            gc.collect()
        alive = (backend.device_chunks.alive, backend.host_chunks.alive)
        assert alive == (0, 0), f"chunks alive on the device and on the host: {alive}"

    async def _touch(self) -> None:
        """One more launch and copy: with it the device's threads let go of what was abandoned."""
        backend, turn, slot = self.backend, self.backend.turn(), self.backend.slot()
        assert turn.query()
        assert slot.query()
        made = Rendered(torch.zeros(4, dtype=torch.uint8), torch.tensor([True, True]))
        handle, ready = await asyncio.wrap_future(backend.launch(lambda: made, turn))
        copy = await asyncio.wrap_future(backend.download(handle, ready, slot))
        assert copy is not None
        for event in (*backend.arrivals, *backend.launches, *backend.copies):
            event.set()
        await until(copy.done.query, "the copy")
        await asyncio.wrap_future(backend.collect(copy))
        # A thread lets go of a call's result only when it turns to the next call.
        nothing, _ = await asyncio.wrap_future(backend.launch(lambda: None, backend.turn()))
        await asyncio.wrap_future(backend.settle(nothing))
        await asyncio.wrap_future(backend.run(lambda: None))

    async def next_is_right(self) -> None:
        """Another stream over the same device and codec gives every frame."""
        again = Scene(self.queue_size, self.backend, self.codec)
        again.codec.fail_at = None
        seen: list[int] = []
        async with again.stream() as stream:
            await take(stream, seen)
        assert seen == again.sink.tags == again.expected
        assert again.sink.calls == ["open", "close"]

    async def check(
        self,
        seen: list[int],
        *,
        calls: tuple[str, ...] = ("open", "abort"),
        but: tuple[str, ...] = (),
    ) -> None:
        """What holds however a stream ended: see ``tests/test_cancellation.py``."""
        assert seen == self.expected[: len(seen)]
        assert seen == self.sink.tags[: len(seen)], "a frame was seen before the sink accepted it"
        assert self.sink.tags == self.expected[: len(self.sink.tags)]
        await self.nothing_left(but=but)
        assert tuple(self.sink.calls) == calls
        await self.next_is_right()
        await self.nothing_left(but=but)


@contextmanager
def no_threads() -> Iterator[None]:
    """Have the system refuse new threads: none can have a stack of this size."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


async def drained(source: AsyncIterator[Any]) -> list[Any]:
    """Everything an async generator gives."""
    async with aclosing(source) as items:  # type: ignore[type-var]
        return [item async for item in items]
