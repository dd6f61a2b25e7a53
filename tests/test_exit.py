"""The end of the interpreter: programs that leave while a thread is inside torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Each is left differently by two threads in the same place: a few runs tell.
RUNS = 2

BEGIN = """
import asyncio, atexit, os, signal, sys, threading, time
import torch
from streamvae import StageTimeout, _threads, collect, stream_decode
from streamvae._threads import Worker, parked
from streamvae.testing import TagCodec, TagDecoder, tagged_latents
torch.set_num_threads(1)
begun = threading.Event()

def exiting():
    return _threads._process.exiting

def compute(going):
    # As a decode does it: many calls of torch, each of which lets go of the interpreter.
    left = torch.randn(128, 128)
    begun.set()
    while going():
        left = torch.tanh(left @ left)

class SlowDecoder(TagDecoder):
    def decode(self, latents):
        if self._seen == slow_at:
            # Well into the exit, but not for ever: a loaded machine has its second.
            end = []
            def going():
                if exiting() and not end:
                    end.append(time.monotonic() + 0.2)
                return not end or time.monotonic() < end[0]
            compute(going)
        return super().decode(latents)

class SlowCodec(TagCodec):
    def decoder(self):
        self.open_decoders += 1
        return SlowDecoder(self)
"""


def run(program: str, *, times: int = RUNS) -> list[tuple[int, str, str]]:
    """Exit code, output and complaints of ``program``, run several times."""
    given = []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", BEGIN + program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        given.append((done.returncode, done.stdout, done.stderr))
    return given


def test_after_a_timeout() -> None:
    """A program that gives up after a `StageTimeout` ends well though the decode goes on."""
    program = """
slow_at = 1
try:
    asyncio.run(stream_decode(tagged_latents(9), SlowCodec(), timeout=0.2).collect())
except StageTimeout:
    print("timeout")
"""
    assert run(program) == [(0, "timeout\n", "")] * RUNS


@pytest.mark.parametrize("slow_at", [1, 3])
def test_a_loop_that_is_left(slow_at: int) -> None:
    """A program that leaves its loop in the middle of a stream, without clean-up, ends well."""
    program = f"""
slow_at = {slow_at}
loop = asyncio.new_event_loop()
async def begin():
    frames = aiter(stream_decode(tagged_latents(9), SlowCodec()))
    await anext(frames)
    while not begun.is_set():
        await asyncio.sleep(0.001)
    return frames
frames = loop.run_until_complete(begin())
print("left")
"""
    codes = [(code, output) for code, output, _ in run(program)]
    assert codes == [(0, "left\n")] * RUNS


def test_a_call_that_takes_too_long() -> None:
    """A call that would go on for ever is left between two steps; what waits is cancelled."""
    program = """
worker = Worker("endless")
running = worker.submit(compute, lambda: True)
queued = worker.submit(compute, lambda: True)
begun.wait()
atexit.unregister(_threads._process.end)
@atexit.register
def look():
    print(running.done(), queued.cancelled(), len(_threads._process.threads))
atexit.register(_threads._process.end)
sys.exit(3)
"""
    assert run(program, times=1) == [(3, "True True 0\n", "")]


@pytest.mark.parametrize("waits", ["idle", "parked", "closed"])
def test_an_exit_waits_for_nobody_who_does_nothing(waits: str) -> None:
    """Threads that wait, for calls or for the outside world, are not waited for."""
    program = f"""
worker, waiting = Worker("waiting"), threading.Event()
def wait():
    with parked():
        begun.set()
        threading.Event().wait()
{"worker.submit(wait); begun.wait()" if waits == "parked" else "worker.submit(int).result()"}
{"worker.close()" if waits == "closed" else ""}
atexit.unregister(_threads._process.end)
began = []
atexit.register(lambda: print(time.monotonic() - began[0] < _threads.GRACE))
atexit.register(_threads._process.end)
atexit.register(lambda: began.append(time.monotonic()))
"""
    assert run(program, times=1) == [(0, "True\n", "")]


def test_an_interrupt_hurries_it() -> None:
    """Ctrl-C during the wait ends it, without a word; the call is left at once."""
    program = """
worker = Worker("endless")
def interrupt():
    if exiting():
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            compute(lambda: True)
    return True
running = worker.submit(compute, interrupt)
begun.wait()
"""
    assert run(program, times=1) == [(0, "", "")]


def test_calls_of_the_last_moment() -> None:
    """On the way out the main thread may still use a worker; daemon threads begin nothing more."""
    program = """
tried, refused = threading.Event(), []
def late():
    while not exiting():
        time.sleep(0.001)
    refused.append(Worker("late").submit(int).cancelled())
    tried.set()
worker = Worker("busy")
atexit.unregister(_threads._process.end)
@atexit.register
def use():
    print(worker.submit(int, "4").result(30), tried.wait(30), refused)
    _threads._process.end()  # what began since
threading.Thread(target=late, daemon=True).start()
atexit.register(_threads._process.end)
print(worker.submit(int, "3").result(30))
"""
    assert run(program, times=1) == [(0, "3\n4 True [True]\n", "")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("leave", ["sys.exit(5)", "os._exit(5)"])
def test_a_forked_child(leave: str) -> None:
    """A child that exits does not wait for its parent's threads, and does for its own."""
    program = f"""
gate = threading.Event()
busy = Worker("busy")
busy.submit(gate.wait, 60)
slow_at = 1
child = os.fork()
if child == 0:
    signal.alarm(60)
    own = Worker("own")
    def slow():
        compute(lambda: not exiting())
        time.sleep(0.2)
    own.submit(slow)
    begun.wait()
    {leave}
status = os.waitpid(child, 0)[1]
gate.set()
print(os.waitstatus_to_exitcode(status))
"""
    assert [one[:2] for one in run(program)] == [(0, "5\n")] * RUNS


def test_a_stream_in_a_thread_goes_on() -> None:
    """A program whose main thread ends first streams on in its other threads, to their end."""
    program = """
def stream():
    threading.main_thread().join()
    print(collect(tagged_latents(9), TagCodec())[0].shape[0])
threading.Thread(target=stream).start()
"""
    assert run(program, times=1) == [(0, "9\n", "")]
