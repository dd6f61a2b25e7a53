"""Blocking code as a sink: one thread, one call at a time, an end in every case."""

import asyncio
import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import ClosedError
from streamvae.sinks import ThreadSink
from tests.sinks.streams import cut, describe, keep


class Diary(ThreadSink):
    """Writes down what is called, where; ``put`` can be held up, anything can be made to fail."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("diary")
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.fails = fails
        self.began, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread())
        if call == self.fails:
            raise OSError(28, "No space left on device")

    def start(self, info: StreamInfo) -> None:
        self._note("start")

    def put(self, chunk: HostChunk) -> None:
        self.began.set()
        self.go_on.wait(10)
        self._note("put")

    def finish(self) -> None:
        self._note("finish")

    def stop(self) -> None:
        self._note("stop")


async def test_one_thread_in_order(frames: np.ndarray, thread_ended: Callable[[str], bool]) -> None:
    """All calls run on one named daemon thread, in order, and it ends with the sink."""
    sink = Diary()
    await keep(sink, frames)
    assert sink.calls == ["start", "put", "put", "put", "put", "finish"]
    (thread,) = sink.threads
    assert thread.daemon
    assert thread.name == "streamvae sink diary"
    assert thread_ended("diary")
    assert sink.committed == len(frames)


@pytest.mark.parametrize("fails", ["start", "put", "finish", "stop"])
async def test_errors_come_out(
    fails: str, frames: np.ndarray, thread_ended: Callable[[str], bool]
) -> None:
    """What the code raises comes out as itself; the thread ends whatever fails."""
    sink = Diary(fails)
    with pytest.raises(OSError, match="No space left") as caught:
        await keep(sink, frames) if fails != "stop" else await _open_and_abort(sink, frames)
    if fails in {"put", "finish"}:
        done = 13 if fails == "finish" else 0
        assert caught.value.__notes__ == [f"In sink diary, {done} committed before."]
    if fails != "start":
        with pytest.raises(ClosedError):
            await sink.close()
    await sink.abort()
    assert thread_ended("diary")
    assert sink.calls.count("stop") == (fails != "start")


async def _open_and_abort(sink: ThreadSink, frames: np.ndarray) -> None:
    await sink.open(describe(frames))
    await sink.abort()


async def test_abort_waits_for_a_call_nobody_awaits(
    frames: np.ndarray, thread_ended: Callable[[str], bool]
) -> None:
    """A cancelled write runs to its end; the abort comes after it, even if cancelled itself."""
    sink = Diary()
    await sink.open(describe(frames))
    sink.go_on.clear()
    write = asyncio.create_task(sink.write(next(cut(frames))))
    await asyncio.to_thread(sink.began.wait, 10)
    write.cancel()
    await asyncio.wait([write])
    abort = asyncio.create_task(sink.abort())
    await asyncio.sleep(0)
    abort.cancel()
    await asyncio.wait([abort])
    assert abort.cancelled()
    assert sink.calls == ["start"]
    sink.go_on.set()
    assert thread_ended("diary")
    assert sink.calls == ["start", "put", "stop"]


async def test_withdrawn_write(frames: np.ndarray) -> None:
    """A write cancelled while another call holds the thread never happens."""
    sink = Diary()
    chunks = list(cut(frames))
    await sink.open(describe(frames))
    sink.go_on.clear()
    first = asyncio.create_task(sink.write(chunks[0]))
    await asyncio.to_thread(sink.began.wait, 10)
    second = asyncio.create_task(sink.write(chunks[1]))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    sink.go_on.set()
    await first
    await sink.abort()
    assert sink.calls == ["start", "put", "stop"]
    assert sink.committed == 1


async def test_close_cut_off_before_it_began(frames: np.ndarray) -> None:
    """A close withdrawn in time completes nothing, and abort stops the sink."""
    sink = Diary()
    await sink.open(describe(frames))
    sink.go_on.clear()
    write = asyncio.create_task(sink.write(next(cut(frames))))
    await asyncio.to_thread(sink.began.wait, 10)
    close = asyncio.create_task(sink.close())
    await asyncio.sleep(0)
    close.cancel()
    await asyncio.wait([close])
    sink.go_on.set()
    await write
    await sink.abort()
    assert sink.calls == ["start", "put", "stop"]


async def test_second_open_at_once(frames: np.ndarray) -> None:
    """Two streams cannot open one sink, even at the same moment."""
    sink = Diary()
    info = describe(frames)
    results = await asyncio.gather(sink.open(info), sink.open(info), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ClosedError]
    await sink.abort()


def test_abandoned(frames: np.ndarray, thread_ended: Callable[[str], bool]) -> None:
    """A sink whose loop died, and which nobody ends, takes its thread along."""
    sink = Diary()
    asyncio.run(sink.open(describe(frames)))
    del sink
    gc.collect()
    assert thread_ended("diary")
