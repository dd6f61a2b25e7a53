"""Callers without a loop: interrupts at every step, dropped iterators, programs that end."""

from __future__ import annotations

import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import streamvae
from streamvae import ClosedError, collect, iter_decode, save
from streamvae._loop_thread import LoopThread, run_on_loop_thread
from streamvae.sinks import NpyFile, Null, ThreadSink
from streamvae.testing import TagCodec, tagged_latents
from tests.test_locks import in_child

ROOT = Path(__file__).parent.parent
#: Whose steps are interrupted.
OURS = {
    str(Path(streamvae.__file__).parent / name)
    for name in ("_loop_thread.py", "_frame_iterator.py", "_sync.py")
}
#: Between two of these steps; more of them take long.
STRIDE = 3


def loops_end() -> None:
    """Wait for the threads of loops, each of which has to end by itself."""
    for thread in threading.enumerate():
        if thread.name == "streamvae loop":
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _no_loop_left() -> Iterator[None]:
    """However a test ends, its loops do."""
    yield
    gc.collect()
    loops_end()


def all_frames(codec: TagCodec) -> None:
    """Iterate to the end."""
    assert [frame.data.flat[0] for frame in iter_decode(tagged_latents(4), codec)] == [0, 2, 4, 6]


def some_frames(codec: TagCodec) -> None:
    """Iterate a little, then close."""
    frames = iter_decode(tagged_latents(40), codec)
    assert next(frames).index == 0
    frames.close()


WAYS: dict[str, Callable[[TagCodec], object]] = {
    "save": lambda codec: save(tagged_latents(4), codec, Null()),
    "collect": lambda codec: collect(tagged_latents(4), codec),
    "all": all_frames,
    "some": some_frames,
}


def in_finalizer(frame: FrameType | None) -> bool:
    """Whether a frame is a finalizer's, from where nobody would get the interrupt."""
    while frame is not None and frame.f_code.co_name != "drop":
        frame = frame.f_back
    return frame is not None


def interrupted(step: int, call: Callable[[], object]) -> bool:
    """Run ``call`` and raise KeyboardInterrupt at a step of ours; False if there are fewer."""
    left = step

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in OURS or in_finalizer(frame):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_every_step(way: str) -> None:
    """The call ends, its thread too, the decoder is closed, and the next call is right."""
    WAYS[way](TagCodec())  # what is done once
    codec, step = TagCodec(), 0
    while interrupted(step, lambda: WAYS[way](codec)):
        loops_end()
        while codec.open_decoders:  # closed by the launch thread, which nobody waits for any more
            time.sleep(0)
        step += STRIDE
    assert step > 30
    all_frames(codec)


class Collecting(ThreadSink):
    """Collects garbage on its thread."""

    def put(self, chunk: object) -> None:
        gc.collect()


async def collecting(chunk: object) -> None:
    """Collects garbage on the loop's thread."""
    gc.collect()


def transforming(pixels: Any) -> Any:
    """Collects garbage on the launch thread."""
    gc.collect()
    return pixels


class Player:
    """An object in a cycle, with an iterator that has begun."""

    def __init__(self, codec: TagCodec, **options: Any) -> None:
        self.frames = iter_decode(tagged_latents(300), codec, **options)
        self.me = self
        next(self.frames)


PLACES: dict[str, Callable[[], dict[str, Any]]] = {
    "launch thread": lambda: {"transform": transforming},
    "sink's thread": lambda: {"sinks": Collecting("c")},
    "loop's thread": lambda: {"sinks": collecting},
}


@pytest.fixture
def _uncollected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Garbage is collected where a test says so; what could not be raised there is an error."""
    failures: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    gc.collect()
    gc.disable()
    yield failures
    gc.enable()
    assert not failures


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("own", [False, True], ids=["another stream's", "its own"])
def test_an_iterator_is_collected(place: str, own: bool) -> None:
    """On whatever thread that happens, its stream ends, and so does the one whose thread it is."""
    codec, options = TagCodec(), PLACES[place]()
    player = Player(codec, **(options if own else {}))
    assert codec.open_decoders == 1
    del player
    if own:
        loops_end_or_collect()
    else:
        assert len(list(iter_decode(tagged_latents(5), codec, **options))) == 5
    loops_end()
    assert not codec.open_decoders


def loops_end_or_collect() -> None:
    """Its own thread may be waiting for a consumer by now: then this thread collects."""
    for thread in threading.enumerate():
        if thread.name == "streamvae loop":
            thread.join(1)
    gc.collect()


def test_dropped_and_begun_again(tmp_path: Path) -> None:
    """A file whose iterator was left is free for the next stream."""
    for _ in range(3):
        for frame in iter_decode(tagged_latents(40), TagCodec(), sinks=NpyFile(tmp_path / "a.npy")):
            assert frame.index == 0
            break
    save(tagged_latents(3), TagCodec(), tmp_path / "a.npy")


def test_it_is_a_generator() -> None:
    """As it always was: send, throw, close, an end, and one user at a time."""
    codec = TagCodec()
    frames = iter_decode(tagged_latents(9), codec)
    assert isinstance(frames, Generator)
    assert frames.send(None).index == 0
    assert next(frames).index == 1
    with pytest.raises(KeyError, match="mine"):
        frames.throw(KeyError("mine"))
    assert not codec.open_decoders
    with pytest.raises(StopIteration):
        next(frames)
    frames = iter_decode(tagged_latents(9), codec)
    frames.close()
    assert list(frames) == []
    frames = iter_decode(tagged_latents(9), codec)
    with pytest.raises(KeyError):
        frames.throw(KeyError)


def test_two_threads_on_one_iterator() -> None:
    """The second is refused, as by a generator; the first gets every frame."""
    refused: list[BaseException] = []

    async def another(chunk: object) -> None:
        if refused or chunk.index != 2:  # type: ignore[attr-defined]
            return

        def step() -> None:
            try:
                next(frames)
            except ValueError as error:
                refused.append(error)

        thread = threading.Thread(target=step)
        thread.start()
        thread.join()

    frames = iter_decode(tagged_latents(3), TagCodec(), sinks=another, queue_size=1)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [str(error) for error in refused] == ["generator already executing"]


def test_closed_by_its_own_sink() -> None:
    """A sink on the loop may drop the iterator's loop: that only signals."""
    thread = LoopThread()

    async def close() -> str:
        thread.close()
        return "closed"

    assert thread.call(close) == "closed"
    thread.close()
    with pytest.raises(ClosedError, match="expected a loop that is running, got one that has"):
        thread.call(close)


def test_context_and_errors() -> None:
    """Calls see the caller's context variables; their errors come out as themselves."""
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)

    async def ask() -> int:
        return variable.get()

    async def fail() -> None:
        raise SystemExit(5)

    assert run_on_loop_thread(ask) == 7
    with pytest.raises(SystemExit, match="5"):
        run_on_loop_thread(fail)


def test_a_thread_that_cannot_be_entered() -> None:
    """What its beginning raises, whoever waits for the loop gets."""

    def enter() -> Any:
        raise OSError("no such device")

    async def never() -> None:
        raise AssertionError

    thread = LoopThread(enter)
    with pytest.raises(OSError, match="no such device"):
        thread.call(never)
    thread.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_iterator_in_a_forked_child() -> None:
    """It has no thread there: asked for more it says so, dropped it does nothing."""
    frames = iter_decode(tagged_latents(30), TagCodec())
    assert next(frames).index == 0

    def check() -> bool:
        list(frames)  # what has come already
        return False

    def refuse() -> bool:
        try:
            return check()
        except ClosedError:
            return len(collect(tagged_latents(3), TagCodec())[0]) == 3

    assert in_child(refuse)
    assert next(frames).index == 1
    frames.close()


ENDS = {
    "ends": ("pass", 0),
    "fails": ("raise ValueError", 1),
    "exits": ("sys.exit(3)", 3),
    "is interrupted": ("raise KeyboardInterrupt", -2),
    "in a cycle": ("me = []; me.append((me, frames)); del frames, me", 0),
    "on a thread that goes on": (
        "threading.Thread(target=lambda: (threading.main_thread().join(), list(frames))).start()",
        0,
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("sinks", ["()", "path"])
def test_a_program_ends_with_an_open_iterator(end: str, sinks: str, tmp_path: Path) -> None:
    """With its own exit code, no hang, no abort, and what was accepted kept."""
    code, status = ENDS[end]
    script = f"""
        import sys, threading
        from streamvae import iter_decode
        from streamvae.testing import TagCodec, tagged_latents
        path = {str(tmp_path / "a.raw")!r}
        frames = iter_decode(tagged_latents(300), TagCodec(), sinks={sinks})
        print(next(frames).index, flush=True)
        {code}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "0\n"), done.stderr
    assert "terminate called" not in done.stderr
    if sinks == "path":
        whole = end == "on a thread that goes on"
        assert (tmp_path / ("a.raw" if whole else "a.raw.partial")).stat().st_size > 0
