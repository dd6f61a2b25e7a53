"""Worker threads, and how flow code awaits them."""

import asyncio
import concurrent.futures
import gc
import re
import subprocess
import sys
import threading
import weakref

import pytest

from streamvae import ControlFlowError
from streamvae._threads import Worker, calls_running, counted, outcome, parked

from .flow import no_threads


class Thing:
    """Something one can hold a weak reference to."""


def test_calls_run_in_order_on_one_thread() -> None:
    """Every call runs on the same daemon thread, in the order given, from whichever thread."""
    worker = Worker("tester")
    seen: list[tuple[int, threading.Thread]] = []
    futures = [
        worker.submit(lambda i=i: seen.append((i, threading.current_thread())))  # type: ignore[misc]
        for i in range(100)
    ]
    for future in futures:
        future.result(10)
    assert [index for index, _ in seen] == list(range(100))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1].daemon
    assert seen[0][1].name == "tester"
    worker.close()


def test_no_call_no_thread() -> None:
    """A worker that is never asked starts nothing."""
    before = threading.active_count()
    Worker("idle").close()
    assert threading.active_count() == before


def test_a_closed_worker_ends_after_its_calls() -> None:
    """What was queued still runs, then the thread ends; a later call starts another."""
    worker = Worker("tester")
    gate = threading.Event()
    first = worker.submit(gate.wait, 10)
    last = worker.submit(threading.current_thread)
    worker.close()
    gate.set()
    thread = last.result(10)
    assert first.result(10)
    thread.join(10)
    assert not thread.is_alive()
    assert worker.submit(threading.current_thread).result(10) is not thread
    worker.close()


def fail(error: BaseException) -> None:
    """Raise it."""
    raise error


def test_errors_reach_the_future() -> None:
    """What a call raises belongs to its future; the thread lives on."""
    worker = Worker("tester")
    for error in (ValueError("no"), ExceptionGroup("several", [ValueError()])):
        with pytest.raises(type(error)) as raised:
            worker.submit(fail, error).result(10)
        assert raised.value is error
    assert worker.submit(int, "3").result(10) == 3
    worker.close()


@pytest.mark.parametrize(
    "raised",
    [
        StopIteration(3),
        StopAsyncIteration(),
        GeneratorExit(),
        KeyboardInterrupt(),
        SystemExit(2),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        BaseExceptionGroup("several", [KeyboardInterrupt()]),
    ],
    ids=repr,
)
async def test_control_flow_reaches_the_loop_as_an_error(raised: BaseException) -> None:
    """What would end the awaiting task in silence, or hang it, is an error there."""
    worker = Worker("tester")
    with pytest.raises(ControlFlowError, match=re.escape(repr(raised))) as error:
        await asyncio.wait_for(outcome(worker.submit(fail, raised)), 10)
    assert error.value.__cause__ is raised
    assert await outcome(worker.submit(int, "3")) == 3
    worker.close()


def test_without_a_thread_nobody_waits() -> None:
    """Where the system gives no thread, once, every call that waits for it says so."""
    before = calls_running()
    worker = Worker("tester")
    with no_threads():
        refused = worker.submit(int, "3")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        refused.result(10)
    assert calls_running() == before
    assert worker.submit(int, "3").result(10) == 3
    worker.close()


def test_nothing_is_kept_of_a_call() -> None:
    """Neither arguments nor result stay alive until the next call."""
    worker = Worker("tester")
    thing = Thing()
    gone = weakref.ref(thing)
    future = worker.submit(lambda given: given, thing)
    assert future.result(10) is thing
    del thing, future
    worker.submit(int).result(10)
    gc.collect()
    assert gone() is None
    worker.close()


def test_running_calls_are_counted() -> None:
    """A virtual clock can see whether any call is queued or running; parked ones do not count."""
    before = calls_running()
    worker = Worker("tester")
    started, go_on, end = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(10)
        with parked():
            parked_now.set()
            end.wait(10)

    parked_now = threading.Event()
    future = worker.submit(work)
    assert started.wait(10)
    assert calls_running() == before + 1
    go_on.set()
    assert parked_now.wait(10)
    assert calls_running() == before
    end.set()
    future.result(10)
    worker.submit(int).result(10)
    while calls_running() > before:  # the last call is counted off just after its result is set
        pass
    worker.close()


def test_calls_for_other_threads_count_too() -> None:
    """A call counted for somebody else's thread counts from then on until it has ended."""
    before = calls_running()
    call = counted(int)
    assert calls_running() == before + 1
    assert call("4") == 4
    assert calls_running() == before


async def test_awaiting_a_call() -> None:
    """Flow code gets the result, or the error, of a worker's call."""
    worker = Worker("tester")
    assert await outcome(worker.submit(int, "5")) == 5
    with pytest.raises(ValueError, match="invalid literal"):
        await outcome(worker.submit(int, "five"))
    worker.close()


@pytest.mark.parametrize("keep", [False, True])
async def test_cancelling_the_wait(keep: bool) -> None:
    """A call that has not begun is withdrawn with its wait, unless it is to be kept."""
    worker = Worker("tester")
    gate = threading.Event()
    ran: list[int] = []
    running = worker.submit(gate.wait, 10)
    queued = worker.submit(ran.append, 1)
    task = asyncio.ensure_future(outcome(queued, keep=keep))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await outcome(running)
    await outcome(worker.submit(int))
    assert ran == ([1] if keep else [])
    worker.close()


async def test_a_call_that_has_begun_runs_to_its_end() -> None:
    """Cancelling its wait stops nobody in the middle of device work."""
    worker = Worker("tester")
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(10)
        ended.set()

    task = asyncio.ensure_future(outcome(worker.submit(work)))
    assert await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await outcome(worker.submit(int))
    assert ended.is_set()
    worker.close()


def test_a_loop_that_ended_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A call whose loop was closed before it ended says nothing, and the worker lives on."""
    worker = Worker("tester")
    gate = threading.Event()
    future = worker.submit(gate.wait, 10)

    async def start_and_go() -> None:
        task = asyncio.ensure_future(outcome(future))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(start_and_go())
    gate.set()
    assert worker.submit(int).result(10) == 0
    assert caplog.records == []
    worker.close()


def test_no_worker_keeps_the_interpreter_from_exiting() -> None:
    """A program ends though a call is stuck."""
    program = """
import threading
from streamvae import ControlFlowError
from streamvae._threads import Worker
begun = threading.Event()
def stuck():
    begun.set()
    threading.Event().wait()
Worker("stuck").submit(stuck)
begun.wait()
print("end")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert done.stdout == b"end\n"


async def test_a_kept_call_may_raise_unheard() -> None:
    """Of a call that was given up, asyncio does not complain when it raises after all."""
    worker, gate, complaints = Worker("test"), threading.Event(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda *said: complaints.append(said))

    def fail() -> None:
        gate.wait(10)
        raise OSError("too late")

    future = worker.submit(fail)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await outcome(future, keep=True)
    gate.set()
    await outcome(worker.submit(str))  # behind it
    worker.close()
    del future
    gc.collect()
    assert complaints == []
