"""Sinks that fail while there are others: which goes on, what is raised, what is left behind."""

import asyncio
import logging
from collections.abc import Awaitable

import pytest

from streamvae import SinkFailure, SinkTimeout, UsageError, save
from streamvae._chunks import HostChunk, StreamInfo
from streamvae.testing import FakeBackend, MemorySink, StuckSink, TagCodec, tagged_latents

from .flow import LATENTS, UNIT, Scene, others, take, until, virtual


async def raised(ending: Awaitable[object]) -> Exception:
    """What it raised."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each test says which
        await ending
    return caught.value


def goes_on(fragile: MemorySink) -> tuple[Scene, MemorySink]:
    """A scene whose first sink may fail, and its second, which does not."""
    return Scene(sink=fragile), MemorySink(seconds=UNIT, name="other")


@pytest.mark.parametrize("chunk", [0, 5, LATENTS - 1])
@virtual
async def test_the_others_go_on(chunk: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every frame comes, the other sink is complete, and then the error is raised as it was."""
    scene, other = goes_on(MemorySink(fail_at=chunk, name="fragile"))
    seen, safe = list[int](), len(scene.before_latent(chunk))
    stream = scene.stream(sinks=(scene.sink, other), on_sink_error="continue")
    with caplog.at_level(logging.ERROR, "streamvae"):
        error = await raised(take(stream, seen))
    assert type(error) is OSError
    assert error.__notes__ == [
        f"While sink fragile took chunk {chunk}.",
        *([f"Sink fragile keeps the {safe} before it."] if safe else []),
        "Sink other is complete.",
    ]
    assert seen == other.tags == scene.expected
    assert scene.sink.tags == scene.before_latent(chunk)
    assert (scene.sink.calls, other.calls) == (["open", "abort"], ["open", "close"])
    said = f"OSError: the sink was to fail at chunk {chunk}"
    assert stream.stats.failures == (SinkFailure("fragile", chunk, safe, said),)
    assert [record.getMessage() for record in caplog.records] == [
        f"sink fragile failed and is left behind, the stream goes on: {said}"
    ]
    await scene.nothing_left()
    await scene.next_is_right()


@virtual
async def test_an_error_that_is_kept_keeps_no_chunk() -> None:
    """While the stream goes on, what failed holds none of its frames."""
    scene = Scene(sink=MemorySink(fail_at=0))
    async with scene.stream(on_sink_error="continue"):
        await until(lambda: scene.sink.calls == ["open", "abort"], "it failed")
        await asyncio.sleep(100 * UNIT)
        assert scene.backend.host_chunks.alive == 6, "as many as the queues and stages hold"
    await scene.nothing_left()


@virtual
async def test_without_a_sink_frames_go_on() -> None:
    """Whoever looks at frames gets all of them, also when no sink is left."""
    scene, seen = Scene(sink=MemorySink(fail_at=2)), list[int]()
    error = await raised(take(scene.stream(on_sink_error="continue"), seen))
    assert type(error) is OSError
    assert seen == scene.expected
    await scene.nothing_left()


@virtual
async def test_without_a_sink_there_is_nothing_to_finish() -> None:
    """For the sinks' sake alone nothing is decoded any more when the last of them has failed."""
    scene, second = goes_on(MemorySink(fail_at=2, name="one"))
    second = MemorySink(fail_at=3, name="two")
    stream = scene.stream(sinks=(scene.sink, second), on_sink_error="continue")
    error = await raised(stream.finish())
    assert str(error) == "the sink was to fail at chunk 2"
    assert "Sink two failed at chunk 3: OSError: the sink was to fail at chunk 3" in error.__notes__
    assert scene.backend.device_chunks.total < LATENTS
    assert [failure.sink for failure in stream.stats.failures] == ["one", "two"]
    await scene.nothing_left()


@virtual
async def test_finish_with_a_sink_left() -> None:
    """It goes on to the end for the one that is left, and raises what the other one raised."""
    scene, other = goes_on(MemorySink(fail_at=2))
    stream = scene.stream(sinks=(scene.sink, other), on_sink_error="continue")
    async with stream:
        assert type(await raised(stream.finish())) is OSError
    assert other.tags == scene.expected
    assert other.calls == ["open", "close"]
    await scene.nothing_left()


@virtual
async def test_a_sink_that_cannot_be_opened() -> None:
    """It is left behind before the first frame, and its error comes at the end."""
    scene, other = goes_on(MemorySink(fail_open=True, name="closed door"))
    seen = list[int]()
    async with scene.stream(sinks=(scene.sink, other), on_sink_error="continue") as stream:
        assert stream.stats.failures[0].chunk is None
        error = await raised(take(stream, seen))
    assert error.__notes__ == [
        "While sink closed door was opened; it got no frame.",
        "Sink other is complete.",
    ]
    assert seen == other.tags == scene.expected
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@pytest.mark.parametrize("policy", ["stop", "continue"])
@virtual
async def test_a_sink_that_cannot_be_completed(policy: str) -> None:
    """The other one has every frame too, so it is completed."""
    scene, other = goes_on(MemorySink(fail_close=True, name="full"))
    seen = list[int]()
    stream = scene.stream(sinks=(scene.sink, other), on_sink_error=policy)
    error = await raised(take(stream, seen))
    assert error.__notes__ == [
        "While sink full was closed; it has every frame.",
        f"Sink full keeps the {len(scene.expected)} before it.",
        "Sink other is complete.",
    ]
    assert seen == other.tags == scene.expected
    assert (scene.sink.calls, other.calls) == (["open", "close", "abort"], ["open", "close"])
    await scene.nothing_left()


@virtual
async def test_two_at_one_chunk() -> None:
    """One error ends the stream, and the other is told with it."""
    sinks = [MemorySink(fail_at=3, name=name) for name in ("one", "two")]
    scene = Scene()
    error = await raised(take(scene.stream(sinks=sinks), []))
    assert error.__notes__[0] == "While sink one took chunk 3."
    assert "Sink two failed at chunk 3: OSError: the sink was to fail at chunk 3" in error.__notes__
    assert all(sink.calls == ["open", "abort"] for sink in sinks)
    await scene.nothing_left()


@virtual
async def test_the_stream_fails_too() -> None:
    """The stream's own error ends it, and says that a sink had been left behind."""
    scene = Scene(sink=MemorySink(fail_at=1, name="fragile"), codec=TagCodec(2, fail_at=4))
    other, seen = MemorySink(name="other"), list[int]()
    stream = scene.stream(sinks=(scene.sink, other), on_sink_error="continue")
    error = await raised(take(stream, seen))
    assert type(error) is ValueError
    assert "Sink fragile failed at chunk 1: OSError: the sink was to fail at chunk 1" in (
        error.__notes__
    )
    assert seen == other.tags == scene.before_latent(4)
    assert other.calls == ["open", "abort"]
    await scene.nothing_left()


@virtual
async def test_left_early_after_a_failure() -> None:
    """Whoever leaves in peace is told by the log and the stats; nothing looks complete."""
    scene, other = goes_on(MemorySink(fail_at=0, name="fragile"))
    async with scene.stream(sinks=(scene.sink, other), on_sink_error="continue") as stream:
        await take(stream, [], stop_after=3)
    assert [failure.sink for failure in stream.stats.failures] == ["fragile"]
    assert (scene.sink.calls, other.calls) == (["open", "abort"], ["open", "abort"])
    await scene.nothing_left()


@virtual
async def test_cancelled_while_a_sink_is_left_behind() -> None:
    """A stream cut off just as it aborts a sink lets it end."""

    class Slow(MemorySink):
        async def abort(self) -> None:
            await super().abort()
            await asyncio.sleep(UNIT)
            self.calls.append("ended")

    scene, other = goes_on(Slow(fail_at=1))
    async with scene.stream(sinks=(scene.sink, other), on_sink_error="continue"):
        await until(lambda: "abort" in scene.sink.calls, "it is being aborted", seconds=UNIT * 50)
        for task in others():
            if task.get_name() == "streamvae":
                task.cancel()
    assert scene.sink.calls == ["open", "abort", "ended"]
    assert other.calls == ["open", "abort"]
    await scene.nothing_left()


# Sinks that take too long.


class Hanging(MemorySink):
    """A sink that hangs in one of its calls, on the loop."""

    def __init__(self, where: str) -> None:
        super().__init__(name="hanging")
        self._where = where

    async def open(self, info: StreamInfo) -> None:
        await super().open(info)
        await self._hang("open")

    async def write(self, chunk: HostChunk) -> None:
        await self._hang("write")
        await super().write(chunk)

    async def close(self) -> None:
        await super().close()
        await self._hang("close")

    async def _hang(self, where: str) -> None:
        if where == self._where:
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("where", "said"),
    [("open", "open"), ("write", "take chunk 0"), ("close", "complete")],
)
@pytest.mark.parametrize("policy", ["stop", "continue"])
@virtual
async def test_a_sink_that_takes_too_long(where: str, said: str, policy: str) -> None:
    """It has failed after ``write_timeout``, in whichever call; the rest is as for any error."""
    scene, other = goes_on(Hanging(where))
    stream = scene.stream(
        sinks=(scene.sink, other), write_timeout=3, on_sink_error=policy, sink_timeout=5
    )
    seen = list[int]()
    error = await raised(take(stream, seen))
    assert type(error) is SinkTimeout
    assert str(error) == f"sink hanging did not {said} within 3 s"
    assert scene.sink.calls[-1] == "abort"
    if policy == "continue" or where == "close":
        assert seen == other.tags == scene.expected
        assert other.calls == ["open", "close"]
    else:
        assert other.calls[-1:] != ["close"]
    await scene.nothing_left()


@virtual
async def test_a_stuck_thread_is_left_behind() -> None:
    """A sink whose thread hangs costs its two timeouts once, and is named by both."""
    sink = StuckSink(stuck_at=1, name="dead share")
    scene, other = goes_on(sink)
    seen, began = list[int](), asyncio.get_running_loop().time()
    stream = scene.stream(
        sinks=(sink, other), write_timeout=3, sink_timeout=5, on_sink_error="continue"
    )
    error = await raised(take(stream, seen))
    assert asyncio.get_running_loop().time() - began == pytest.approx(8, abs=1)
    assert str(error) == "sink dead share did not take chunk 1 within 3 s"
    assert "sink dead share did not end within 5 s" in error.__notes__
    assert seen == other.tags == scene.expected
    assert other.calls == ["open", "close"]
    sink.release()
    await scene.nothing_left()


def test_save_raises_what_a_sink_raised() -> None:
    """Without a loop, too, a sink that was left behind is no success."""
    sinks = MemorySink(fail_at=1), MemorySink(name="other")
    with pytest.raises(OSError, match="was to fail at chunk 1"):
        save(tagged_latents(4), TagCodec(), sinks, on_sink_error="continue", backend=FakeBackend())
    assert sinks[1].calls == ["open", "close"]


def test_refused() -> None:
    """A policy that is none, and a timeout that is none, are named."""
    with pytest.raises(UsageError, match="expected on_sink_error to be one of 'stop', 'continue'"):
        save(tagged_latents(2), TagCodec(), MemorySink(), on_sink_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected write_timeout to be positive"):
        save(tagged_latents(2), TagCodec(), MemorySink(), write_timeout=0)
